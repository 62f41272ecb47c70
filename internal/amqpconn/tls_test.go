package amqpconn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
)

// authority issues certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	a.cert = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) sign(c *x509.Certificate, parent *x509.Certificate,
	key *ecdsa.PrivateKey) *x509.Certificate {
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for a server's name or a client.
func (a *authority) issue(name string) tls.Certificate {
	key := a.newKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	cert := a.sign(template, a.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// write stores PEM blocks of the certificates and keys given.
func (a *authority) write(name string, parts ...any) string {
	var text []byte
	for _, part := range parts {
		switch p := part.(type) {
		case *x509.Certificate:
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Raw})...)
		case *ecdsa.PrivateKey:
			der, err := x509.MarshalECPrivateKey(p)
			if err != nil {
				a.t.Fatal(err)
			}
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
		}
	}
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *authority) writePair(name string, c tls.Certificate) string {
	return a.write(name, c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey))
}

func TestServerMustHaveACertificateForItsName(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	for _, row := range []struct {
		name, server, cacert, reason string
	}{
		{"right name", "127.0.0.1", a.write("ca.pem", a.cert), ""},
		{"another name", "broker.example.com", a.write("ca2.pem", a.cert), "127.0.0.1"},
		{"another authority", "127.0.0.1", other.write("ca.pem", other.cert), "unknown authority"},
		{"cacert missing", "127.0.0.1", "/nonexistent/ca.pem", "read cacert"},
		{"cacert without a certificate", "127.0.0.1", a.write("empty.pem"), "holds no PEM certificate"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.issue(
				row.server)}}})
			_, err := connect(t, b, func(o *Options) { o.CACert = row.cacert })
			if row.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.reason) {
				t.Errorf("%v does not say %q", err, row.reason)
			}
			if b.Stats().Opened != 0 {
				t.Error("the connection was opened all the same")
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	b := startBroker(t, devbroker.Options{TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{a.issue("127.0.0.1")}, MinVersion: tls.VersionTLS10,
		MaxVersion: tls.VersionTLS11,
	}})
	_, err := connect(t, b, func(o *Options) { o.CACert = a.write("ca.pem", a.cert) })
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("%v does not name the version", err)
	}
}

func TestClientCertificateIsReadAtEachConnect(t *testing.T) {
	t.Parallel()
	for _, separate := range []bool{false, true} {
		a := newAuthority(t)
		var seen atomic.Value
		b := startBroker(t, devbroker.Options{
			Mechanisms: []string{"PLAIN", "EXTERNAL", "ANONYMOUS"},
			TLSConfig: &tls.Config{
				Certificates: []tls.Certificate{a.issue("127.0.0.1")},
				ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.pool(),
				VerifyConnection: func(s tls.ConnectionState) error {
					seen.Store(s.PeerCertificates[0].Subject.CommonName)
					return nil
				},
			},
		})
		store := func(c tls.Certificate) (cert, key string) {
			if separate {
				return a.write("client.pem", c.Leaf), a.write("client.key", c.PrivateKey)
			}
			return a.writePair("client.pem", c), ""
		}
		ca := a.write("ca.pem", a.cert)
		for _, name := range []string{"first", "second"} {
			cert, key := store(a.issue(name))
			c, err := connect(t, b, func(o *Options) { o.CACert, o.Cert, o.Key = ca, cert, key })
			if err != nil {
				t.Fatal(err)
			}
			if c.Mechanism != "EXTERNAL" || seen.Load() != name {
				t.Errorf("logged in with %s as %v, not as %s", c.Mechanism, seen.Load(), name)
			}
		}
	}
}

func TestCertificateErrorsNameFileAndRemedy(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	pair := a.issue("client")
	certOnly := a.write("cert.pem", pair.Leaf)
	encrypted := filepath.Join(a.dir, "encrypted.pem")
	if err := os.WriteFile(encrypted,
		pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ cert, key, want string }{
		{"/nonexistent", "", "read cert: open /nonexistent"},
		{certOnly, "/nonexistent", "read key: open /nonexistent"},
		{certOnly, "", "read client certificate " + certOnly},
		{certOnly, encrypted, "store it without a passphrase"},
		{certOnly, a.write("other.key", a.newKey()), "does not match"},
	} {
		_, err := loadCertificate(row.cert, row.key)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v does not say %q", err, row.want)
		}
	}
}
