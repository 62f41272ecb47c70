package tlsclient

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"koji-relay/internal/certtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handshake connects to a server with cfg, and gives what Handshake says.
func handshake(t *testing.T, cfg *tls.Config, host string, o Options) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	defer served.Wait()
	defer l.Close()
	served.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(io.Discard, tls.Server(c, cfg)) // until the client ends it
	})
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s, err := Handshake(t.Context(), nc, host, o)
	if err == nil && (s.Conn == nil || s.Report() == nil) {
		t.Error("a layer that is set up tells nothing about itself")
	}
	return err
}

func TestServerMustHaveACertificateForItsName(t *testing.T) {
	t.Parallel()
	a, other := certtest.New(t), certtest.New(t)
	for _, row := range []struct {
		name, server, cacert, reason string
	}{
		{"right name", "127.0.0.1", a.Write("ca.pem", a.Cert), ""},
		{"another name", "broker.example.com", a.Write("ca2.pem", a.Cert), "127.0.0.1"},
		{"another authority", "127.0.0.1", other.Write("ca.pem", other.Cert), "unknown authority"},
		{"cacert missing", "127.0.0.1", "/nonexistent/ca.pem", "read cacert"},
		{"cacert without a certificate", "127.0.0.1", a.Write("empty.pem"), "holds no PEM certificate"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			err := handshake(t, &tls.Config{Certificates: []tls.Certificate{a.Issue(row.server)}}, "127.0.0.1",
				Options{CACert: row.cacert})
			if row.reason == "" && err != nil {
				t.Error(err)
			}
			if row.reason != "" && (err == nil || !strings.Contains(err.Error(), row.reason)) {
				t.Errorf("%v does not say %q", err, row.reason)
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	a := certtest.New(t)
	err := handshake(t, &tls.Config{
		Certificates: []tls.Certificate{a.Issue("127.0.0.1")}, MinVersion: tls.VersionTLS10,
		MaxVersion: tls.VersionTLS11,
	}, "127.0.0.1", Options{CACert: a.Write("ca.pem", a.Cert)})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("%v does not name the version", err)
	}
}

func TestCertificateErrorsNameFileAndRemedy(t *testing.T) {
	t.Parallel()
	a := certtest.New(t)
	pair := a.Issue("client")
	certOnly := a.Write("cert.pem", pair.Leaf)
	encrypted := filepath.Join(t.TempDir(), "encrypted.pem")
	if err := os.WriteFile(encrypted,
		pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ cert, key, want string }{
		{"/nonexistent", "", "read cert: open /nonexistent"},
		{certOnly, "/nonexistent", "read key: open /nonexistent"},
		{certOnly, "", "read client certificate " + certOnly},
		{certOnly, encrypted, "store it without a passphrase"},
		{certOnly, a.Write("other.key", a.NewKey()), "does not match"},
	} {
		_, err := loadCertificate(row.cert, row.key)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v does not say %q", err, row.want)
		}
	}
}
