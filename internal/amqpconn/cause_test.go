package amqpconn

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/certtest"
	"koji-relay/internal/devbroker"
)

// strangePeer answers one connection with answer, once it has read so many bytes, and hangs up; with reset it
// does so rudely.
func strangePeer(t *testing.T, read int, answer string, reset bool) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(c, make([]byte, read))
			_, _ = io.WriteString(c, answer)
			if reset {
				_, _ = io.ReadFull(c, make([]byte, 60)) // the login, and a part of our open
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// dialText is what an administrator reads of a connection that fails.
func dialText(t *testing.T, url string, adjust func(*Options)) string {
	t.Helper()
	o := testOptions()
	if adjust != nil {
		adjust(&o)
	}
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	e, err := endpoint.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), &o, e, slog.New(slog.DiscardHandler))
	if err == nil {
		c.Close()
		t.Fatalf("%s is no broker, and was connected to", url)
	}
	return failure.Cause(err)
}

const (
	saslOffer = "AMQP\x03\x01\x00\x00\x00\x00\x00\x19\x02\x01\x00\x00\x00\x53\x40\xc0\x0c\x01\xa3\x09ANONYMOUS"
	saslOK    = "\x00\x00\x00\x10\x02\x01\x00\x00\x00\x53\x44\xc0\x03\x01\x50\x00"
)

func TestCausesSayWhatToDo(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().String()
	free.Close()
	secured := certtest.New(t).Issue("127.0.0.1")
	tlsBroker := startBroker(t,
		devbroker.Options{TLSConfig: &tls.Config{Certificates: []tls.Certificate{secured}}})
	plain := func(says string) string { return "amqp://" + strangePeer(t, 8, says, false) }
	secure := func(says string) string { return "amqps://" + strangePeer(t, 100, says, false) }
	for name, c := range map[string]struct {
		url, want string
	}{
		"nothing listens": {"amqp://" + closed, "connect: connection refused"},
		"AMQP 0-9-1": {"amqp://" + strangePeer(t, 8, "AMQP\x00\x00\x09\x01", false),
			"rabbitmq-plugins enable rabbitmq_amqp1_0"},
		"no SASL": {"amqp://" + strangePeer(t, 8, "AMQP\x00\x01\x00\x00", false), "takes no SASL"},
		"a TLS alert": {"amqp://" + strangePeer(t, 8, "\x15\x03\x03\x00\x02\x02\x46", false),
			"expects TLS on this port; write amqps://"},
		"plain to a TLS broker": {"amqp://" + tlsBroker.Addr(), "write amqps://"},
		"HTTP": {"amqp://" + strangePeer(t, 8, "HTTP/1.1 400 Bad Request\r\n\r\n", false),
			"an HTTP server answers"},
		"SSH":                 {plain("SSH-2.0-OpenSSH_9.2p1\r\n"), "an SSH server answers"},
		"SMTP":                {plain("220 mx ESMTP\r\n"), "a mail or FTP server answers"},
		"IMAP":                {plain("* OK IMAP4rev1\r\n"), "a mail server answers"},
		"Redis":               {plain("-ERR unknown command\r\n"), "a Redis server answers"},
		"memcached":           {plain("ERROR\r\n"), "memcached answers"},
		"MySQL":               {plain("J\x00\x00\x00\n8.0.36\x00"), "a MySQL server answers"},
		"OpenWire":            {plain("\x00\x00\x01\x4b\x01ActiveMQ"), "OpenWire"},
		"silence and the end": {"amqp://" + strangePeer(t, 8, "", false), "as PostgreSQL and some TLS ports do"},
		"TLS to AMQP 1.0": {"amqps://" + strangePeer(t, 100, "AMQP\x00\x01\x00\x00", false),
			"does not speak TLS; write amqp://"},
		"TLS to AMQP 0-9-1": {"amqps://" + strangePeer(t, 100, "AMQP\x00\x00\x09\x01", false),
			"does not speak TLS; write amqp://"},
		"TLS to one that ends": {"amqps://" + strangePeer(t, 100, "", false),
			"check that the port in urls speaks TLS"},
		"TLS to HTTP": {"amqps://" + strangePeer(t, 100, "HTTP/1.1 400 Bad Request\r\n\r\n", false),
			"an HTTP server answers"},
		"TLS to HTTP without a status line": {"amqps://" + strangePeer(t, 100, "<!DOCTYPE HTML>", false),
			"an HTTP server answers"},
		"TLS to SSH":           {secure("SSH-2.0-OpenSSH\r\n"), "an SSH server answers"},
		"TLS to MySQL":         {secure("J\x00\x00\x00\n8.0.36"), "a MySQL server answers"},
		"an unknown authority": {"amqps://" + tlsBroker.Addr(), "issued by CN=test CA, an unknown authority"},
		"the end after the login": {"amqp://" + strangePeer(t, 8, saslOffer+saslOK+"AMQP\x00\x01\x00\x00", false),
			"virtual host"},
		"a reset after the login": {"amqp://" + strangePeer(t, 8, saslOffer+saslOK+"AMQP\x00\x01\x00\x00", true),
			"virtual host"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := dialText(t, c.url, nil)
			if !strings.Contains(text, c.want) || strings.Contains(text, "connect: connect:") ||
				strings.Contains(text, "->") {
				t.Errorf("the cause is %q, and does not say %q", text, c.want)
			}
		})
	}
}

func TestWhatPeersNameIsPrintableAndShort(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Product: "Evil\x1b[2J" + strings.Repeat("p", 50_000), Version: "1\n2"})
	c, err := connect(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if shown := c.Peer.Product + c.Peer.Version; len(shown) > 2*80+3 ||
		strings.ContainsAny(shown, "\x1b\n") {
		t.Errorf("the product is shown as %q", shown)
	}
	mechanisms := startBroker(t, devbroker.Options{Mechanisms: []string{"EVIL\x1b[31m"}})
	if text := dialText(t, mechanisms.URL(), nil); strings.Contains(text, "\x1b") ||
		!strings.Contains(text, "it offers EVIL") {
		t.Errorf("mechanisms are shown as %q", text)
	}
}
