package amqpconn

import (
	"crypto/tls"
	"strings"
	"sync/atomic"
	"testing"

	"koji-relay/internal/certtest"
	"koji-relay/internal/devbroker"
)

func TestNothingIsOpenedOnABrokerOfAnotherAuthority(t *testing.T) {
	t.Parallel()
	a, other := certtest.New(t), certtest.New(t)
	b := startBroker(t, devbroker.Options{TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{a.Issue("127.0.0.1")}}})
	_, err := connect(t, b, func(o *Options) { o.CACert = other.Write("ca.pem", other.Cert) })
	if err == nil || !strings.Contains(err.Error(), "unknown authority") || b.Stats().Opened != 0 {
		t.Errorf("%v, %d opened", err, b.Stats().Opened)
	}
}

func TestClientCertificateIsReadAtEachConnect(t *testing.T) {
	t.Parallel()
	for _, separate := range []bool{false, true} {
		a := certtest.New(t)
		var seen atomic.Value
		b := startBroker(t, devbroker.Options{
			Mechanisms: []string{"PLAIN", "EXTERNAL", "ANONYMOUS"},
			TLSConfig: &tls.Config{
				Certificates: []tls.Certificate{a.Issue("127.0.0.1")},
				ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.Pool(),
				VerifyConnection: func(s tls.ConnectionState) error {
					seen.Store(s.PeerCertificates[0].Subject.CommonName)
					return nil
				},
			},
		})
		store := func(c tls.Certificate) (cert, key string) {
			if separate {
				return a.Write("client.pem", c.Leaf), a.Write("client.key", c.PrivateKey)
			}
			return a.WritePair("client.pem", c), ""
		}
		ca := a.Write("ca.pem", a.Cert)
		for _, name := range []string{"first", "second"} {
			cert, key := store(a.Issue(name))
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

// A server of TLS 1.3 refuses a certificate when our part of the handshake is over; one of 1.2 within it.
func TestRefusedClientCertificateSaysWhatToDo(t *testing.T) {
	t.Parallel()
	a, other := certtest.New(t), certtest.New(t)
	ca := a.Write("ca.pem", a.Cert)
	wanted := map[string]string{ // without a certificate; TLS 1.2 has no alert of its own for that
		"TLS 1.2": "wants another client certificate", "TLS 1.3": "name its file in cert",
	}
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
		b := startBroker(t, devbroker.Options{TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{a.Issue("127.0.0.1")}, MinVersion: version, MaxVersion: version,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool(),
		}})
		foreign := other.WritePair("other.pem", other.Issue("koji-hub"))
		_, err := connect(t, b, func(o *Options) { o.CACert, o.Cert = ca, foreign })
		if err == nil || !strings.Contains(err.Error(), "that the broker knows its authority") {
			t.Errorf("%s, a certificate of another authority: %v", name, err)
		}
		_, err = connect(t, b, func(o *Options) { o.CACert = ca })
		if want := wanted[name]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s without a certificate: %v", name, err)
		}
	}
}
