package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// authority is a CA of our own with the certificates that the tests need, made once for the whole run.
type authority struct {
	ca []byte // PEM

	server, serverKey []byte // for localhost and 127.0.0.1
	client, clientKey []byte // common name koji-hub
	// strangerCA did not sign the servers' certificates.
	strangerCA []byte

	// clientPath holds both, as protonmsg's cert
	caPath, strangerPath, clientPath, clientCertPath, clientKeyPath string
}

var makeAuthority = sync.OnceValues(newAuthority)

func certificates(t testing.TB) *authority {
	t.Helper()
	a, err := makeAuthority()
	if err != nil {
		t.Fatalf("make certificates: %v", err)
	}
	return a
}

// files is what a server gets.
func (a *authority) files() map[string][]byte {
	return map[string][]byte{"ca.pem": a.ca, "server.pem": a.server, "server.key": a.serverKey}
}

func newAuthority() (*authority, error) {
	a := &authority{}
	ca, caKey, caPEM, _, err := certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "koji-relay test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return nil, err
	}
	a.ca = caPEM
	if _, _, a.server, a.serverKey, err = certify(x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		DNSNames:    []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey); err != nil {
		return nil, err
	}
	if _, _, a.client, a.clientKey, err = certify(x509.Certificate{
		Subject:     pkix.Name{CommonName: "koji-hub"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, caKey); err != nil {
		return nil, err
	}
	if _, _, a.strangerCA, _, err = certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "another CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		path    *string
		name    string
		content []byte
	}{
		{&a.caPath, "ca.pem", a.ca},
		{&a.strangerPath, "stranger.pem", a.strangerCA},
		{&a.clientCertPath, "client-cert.pem", a.client},
		{&a.clientKeyPath, "client-key.pem", a.clientKey},
		{&a.clientPath, "client.pem", append(append([]byte{}, a.client...), a.clientKey...)},
	} {
		*f.path = filepath.Join(scratch, f.name)
		if err := os.WriteFile(*f.path, f.content, 0o600); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// certify makes a key and a certificate for it, signed by parent or, where that is nil, by itself, for a day
// unless the template says otherwise. The
// server's certificate names localhost only, so that 127.0.0.1 is another name.
func certify(template x509.Certificate, parent *x509.Certificate,
	parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err != nil {
		return nil, nil, nil, nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(24 * time.Hour)
	}
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageDigitalSignature
	}
	if parent == nil {
		parent, parentKey = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), err
}
