package amqpconn

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
)

// old makes a server's certificate as sites still have them: an RSA key, the host in the common name, other
// names as given.
func (a *authority) old(commonName string, names ...string) tls.Certificate {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName},
		DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestLegacyServersAreRefusedWithTheRemedyOrTaken(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t), newAuthority(t)
	ca, otherCA := a.write("ca.pem", a.cert), other.write("ca.pem", other.cert)
	rsaOnly := []uint16{tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_CBC_SHA}
	for name, row := range map[string]struct {
		cert   tls.Certificate
		suites []uint16
		ca     string
		strict string // in the error without legacy_tls; empty = connects
		legacy string // with it
	}{
		"a common name only": {a.old("localhost"), nil, ca, "in the common name only (localhost)", ""},
		"a common name with a wildcard": {a.old("*.example.com"), nil, ca, "set legacy_tls = on",
			"common name only"},
		"the common name of another": {a.old("broker.example.com"), nil, ca, "set legacy_tls = on",
			"common name only"},
		"other names beside it": {a.old("localhost", "broker.example.com"), nil, ca,
			"is for broker.example.com and not for localhost", "not for localhost"},
		"of another authority": {a.old("localhost"), nil, otherCA, "common name only", "unknown authority"},
		"RSA key exchange only": {a.old("x", "localhost"), rsaOnly, ca,
			"set legacy_tls = on if it offers RSA key exchange only", ""},
		"both":        {a.old("localhost"), rsaOnly, ca, "legacy_tls = on", ""},
		"nothing old": {a.old("x", "localhost"), nil, ca, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := &tls.Config{Certificates: []tls.Certificate{row.cert}, CipherSuites: row.suites}
			if row.suites != nil {
				cfg.MaxVersion = tls.VersionTLS12
			}
			b := startBroker(t, devbroker.Options{TLSConfig: cfg})
			_, port, err := net.SplitHostPort(b.Addr())
			if err != nil {
				t.Fatal(err)
			}
			for _, legacy := range []bool{false, true} {
				o := testOptions()
				o.CACert, o.LegacyTLS = row.ca, legacy
				r := Probe(t.Context(), o, "amqps://localhost:"+port)
				want := row.strict
				if legacy {
					want = row.legacy
				}
				switch {
				case want == "" && r.Err != nil:
					t.Errorf("legacy_tls %v: %v", legacy, r.Err)
				case want != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), want)):
					t.Errorf("legacy_tls %v: %v does not say %q", legacy, r.Err, want)
				}
			}
		})
	}
}
