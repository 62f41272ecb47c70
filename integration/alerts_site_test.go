package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// alertSite is a relay with two ways to one broker, both over TLS, and a database of its own.
type alertSite struct {
	testing.TB
	relay      *relay
	settings   settings
	ways       [2]*tlsWay
	admin      string
	database   *pgx.Conn
	clientPath string
	ca         *x509.Certificate
	caKey      *ecdsa.PrivateKey
}

// newAlertSite starts one; short makes the relay's own minutes short.
func newAlertSite(t *testing.T, broker, db *server, name string, short bool, more settings) *alertSite {
	t.Helper()
	s := &alertSite{TB: t, clientPath: filepath.Join(t.TempDir(), "client.pem")}
	var ca []byte
	var err error
	s.ca, s.caKey, ca, _, err = certify(x509.Certificate{Subject: pkix.Name{CommonName: "alert CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: days(90)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	caPath := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caPath, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	s.certify(s.clientPath, 90)
	var urls []string
	for i := range s.ways {
		s.ways[i] = newTLSWay(t, broker.addr())
		urls = append(urls, fmt.Sprintf("amqps://%s:%s@localhost:%d", user, password, s.ways[i].port))
	}
	if more["queue.enabled"] == "off" {
		urls = urls[:1]
	}
	s.exchange(90)
	part := newPart()
	subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, []string{tagTopic})...)
	port := freePorts(t)
	s.admin = "127.0.0.1:" + strconv.Itoa(port)
	s.settings = forBroker(rabbitmq40, part, broker).with(newDatabase(t, db, name), settings{
		"broker.urls": strings.Join(urls, " "), "broker.cacert": caPath, "broker.cert": s.clientPath,
		"broker.sasl": "PLAIN", "queue.interval": "1", "relay.admin": s.admin,
		"queue.database": db.patientString(name),
	}, more)
	if s.database, err = pgx.Connect(t.Context(), db.connString(name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.database.Close(context.Background()) })
	s.relay = newRelay(t, s.settings)
	if short {
		path, err := fragileBinary()
		if err != nil {
			t.Fatal(err)
		}
		s.relay.startCommand(t, exec.Command(path, "serve", "--config", s.relay.conf))
	} else {
		s.relay.start(t)
	}
	s.until("its brokers are up", is("koji_relay_broker_up", float64(len(urls))))
	return s
}

// post hands over a commit, and gives the status of the answer.
func (s *alertSite) post(body []byte) int {
	s.Helper()
	a, err := s.relay.post(within(s, time.Minute), body)
	if err != nil {
		s.Fatal(err)
	}
	return a.Code
}

func tag() []byte {
	body, _ := tagCommit(1)
	return body
}

// outbox is what the hub's plugin does: with a word on the socket where it tried that first.
func (s *alertSite) outbox(fallback string, age time.Duration) {
	s.Helper()
	if _, err := s.database.Exec(within(s, time.Minute), `INSERT INTO koji_relay.outbox
		(commit, event, created, callback, fallback, kwargs) VALUES (
		$1, 0, now() - make_interval(secs => $2), 'postTag', nullif($3, ''),
		'{"tag": {"name": "f39"}, "build": {"name": "pkg"}, "user": {"name": "kojiadmin"}, "force": false}')`,
		uuid.NewString(), age.Seconds(), fallback); err != nil {
		s.Fatal(err)
	}
}

// readers changes the readers of the outbox. A reload makes the relay look at once.
func (s *alertSite) readers(sql string) {
	s.Helper()
	if _, err := s.database.Exec(within(s, time.Minute), sql); err != nil {
		s.Fatal(err)
	}
	s.relay.signal(s, syscall.SIGHUP)
}

func (s *alertSite) sql(text string) {
	s.Helper()
	if _, err := s.database.Exec(within(s, time.Minute), text); err != nil {
		s.Fatal(err)
	}
}

// largeCommit has n events of size bytes each.
func largeCommit(n, size int) []byte {
	events := make([]string, n)
	for i := range events {
		events[i] = fmt.Sprintf(`{"callback": "postTag", "kwargs": {"tag": {"name": "f39"},
			"build": {"name": "pkg"}, "user": {"name": "kojiadmin"}, "force": false, "pad": %q}}`,
			strings.Repeat("x", size))
	}
	return fmt.Appendf(nil, `{"commit": %q, "events": [%s]}`, uuid.NewString(), strings.Join(events, ","))
}

// old puts a message into the queue that came there some time ago.
func (s *alertSite) old(age time.Duration) {
	s.Helper()
	since := time.Now().Add(-age).Format(time.RFC3339)
	line := fmt.Sprintf(`{"kind": "message", "message_id": %q, "address": "build.tag", "props": "{}",
		"body": "{}",
		"created": %q, "queued": %q}`, uuid.NewString(), since, since)
	s.relay.command(s, strings.Join(strings.Fields(line), " ")+"\n", "queue", "import")
}

func oldMessage(age time.Duration) func(*alertSite) {
	return func(s *alertSite) {
		s.Helper()
		s.relay.command(s, "", "pause")
		s.old(age)
		s.until("an old message", func(m metrics) bool {
			return m.total("koji_relay_queue_oldest_age_seconds") > age.Seconds()-60
		})
	}
}

func emptyQueue(s *alertSite) {
	s.Helper()
	s.relay.command(s, "", "queue", "drop", "--all", "--yes")
	s.until("an empty queue", is("koji_relay_queue_depth", 0))
}

func days(n int) time.Time { return time.Now().Add(time.Duration(n) * 24 * time.Hour) }

// certify writes a client's certificate for so many days.
func (s *alertSite) certify(path string, n int) {
	s.Helper()
	_, _, cert, key, err := certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "koji-hub"}, NotAfter: days(n),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, s.ca, s.caKey)
	if err == nil {
		err = os.WriteFile(path, append(cert, key...), 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// exchange gives the broker a certificate for so many days; its connections are made anew.
func (s *alertSite) exchange(n int) {
	s.Helper()
	_, _, cert, key, err := certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, NotAfter: days(n),
		DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, s.ca, s.caKey)
	if err != nil {
		s.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		s.Fatal(err)
	}
	for _, w := range s.ways {
		w.cut()
		w.present(pair)
		w.mend()
	}
}

// tlsWay leads to a broker, with TLS at this end, and can be cut.
type tlsWay struct {
	testing.TB
	port   int
	target string

	mu       sync.Mutex // guards the fields below
	pair     tls.Certificate
	listener net.Listener
	open     map[net.Conn]bool
}

func newTLSWay(t testing.TB, target string) *tlsWay {
	w := &tlsWay{TB: t, target: target, open: map[net.Conn]bool{}}
	w.port = freePorts(t)
	t.Cleanup(w.cut)
	return w
}

func (w *tlsWay) present(pair tls.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pair = pair
}

func (w *tlsWay) mend() {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	l, err := tls.Listen("tcp", "127.0.0.1:"+strconv.Itoa(w.port), &tls.Config{
		Certificates: []tls.Certificate{w.pair}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		w.Fatal(err)
	}
	w.listener = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
}

func (w *tlsWay) carry(c net.Conn) {
	defer c.Close()
	to, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer to.Close()
	w.mu.Lock()
	w.open[c] = true
	w.mu.Unlock()
	go func() {
		_, _ = io.Copy(c, to)
		c.Close()
	}()
	_, _ = io.Copy(to, c)
}

func (w *tlsWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil {
		w.listener.Close()
	}
	for c := range w.open {
		c.(*tls.Conn).NetConn().Close()
	}
	clear(w.open)
}
