package relay

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestMechanismIsChosenByWhatThereIsToLogInWith(t *testing.T) {
	t.Parallel()
	const none = ""
	for _, row := range []struct {
		name    string
		login   login
		offered string
		want    string
	}{
		{"user", login{user: "u"}, "ANONYMOUS AMQPLAIN PLAIN", "PLAIN"},
		{"user is never dropped for ANONYMOUS", login{user: "u"}, "ANONYMOUS", none},
		{"nobody", login{}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"nobody, and the broker wants somebody", login{}, "PLAIN", none},
		{"certificate", login{certificate: true}, "PLAIN EXTERNAL ANONYMOUS", "EXTERNAL"},
		{"certificate and user", login{certificate: true, user: "u"}, "PLAIN EXTERNAL", "EXTERNAL"},
		{"certificate and user without EXTERNAL", login{certificate: true, user: "u"}, "ANONYMOUS PLAIN", "PLAIN"},
		{"certificate without EXTERNAL, as ActiveMQ", login{certificate: true}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"plain", login{policy: SASLPlain, certificate: true, user: "u"}, "EXTERNAL PLAIN", "PLAIN"},
		{"plain without a user", login{policy: SASLPlain}, "PLAIN ANONYMOUS", none},
		{"external", login{policy: SASLExternal}, "EXTERNAL", "EXTERNAL"},
		{"external not offered", login{policy: SASLExternal, user: "u"}, "PLAIN ANONYMOUS", none},
		{"anonymous", login{policy: SASLAnonymous, user: "u", certificate: true}, "EXTERNAL PLAIN ANONYMOUS", "ANONYMOUS"},
	} {
		if row.login.policy == "" {
			row.login.policy = SASLAuto
		}
		got, _, err := row.login.choose(strings.Fields(row.offered))
		if got != row.want || (err == nil) != (row.want != none) {
			t.Errorf("%s: %q, %v; not %q", row.name, got, err, row.want)
		}
	}
}

func TestLoginOnABroker(t *testing.T) {
	t.Parallel()
	users := map[string]string{"koji": "s3cret"}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, row := range []struct {
		name   string
		broker devbroker.Options
		user   string // URL's userinfo
		adjust func(*Options)
		login  string // expected mechanism, or
		reason string // expected reason for staying out
	}{
		{name: "user in the URL", broker: devbroker.Options{Users: users}, user: "koji:s3cret@", login: "PLAIN"},
		{name: "user from files", broker: devbroker.Options{Users: users}, login: "PLAIN", adjust: func(o *Options) {
			o.UserFile, o.PasswordFile = file("user", "koji\n"), file("password", "s3cret\n")
		}},
		{name: "user from options", broker: devbroker.Options{Users: users}, login: "PLAIN", adjust: func(o *Options) {
			o.User, o.Password = "koji", "s3cret"
		}},
		{name: "file missing", broker: devbroker.Options{Users: users}, reason: "read user_file: open", adjust: func(o *Options) {
			o.UserFile = filepath.Join(dir, "absent")
		}},
		{name: "file empty", broker: devbroker.Options{Users: users}, reason: "is empty", adjust: func(o *Options) {
			o.UserFile = file("empty", "\n")
		}},
		{name: "wrong password", broker: devbroker.Options{Users: users}, user: "koji:wrong-s3cret@",
			reason: "log in with PLAIN: the broker refused the credentials; it offers PLAIN, ANONYMOUS"},
		{name: "ANONYMOUS first in the list", broker: devbroker.Options{Users: users, Mechanisms: []string{"ANONYMOUS", "PLAIN"}},
			user: "koji:wrong-s3cret@", reason: "log in with PLAIN"},
		{name: "only ANONYMOUS", broker: devbroker.Options{Mechanisms: []string{"ANONYMOUS"}}, user: "koji:s3cret@",
			reason: "a user is configured, but the broker does not offer PLAIN"},
		{name: "nobody", login: "ANONYMOUS"},
		{name: "wrong prefix", broker: rabbit4(), user: "koji:s3cret@", reason: "set topic_prefix = /topic/koji",
			adjust: func(o *Options) { o.TopicPrefix = "topic://koji" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, row.broker)
			log := &lockedBuffer{}
			w := startRelay(t, func(o *Options) {
				o.Brokers = []Broker{{URL: "amqp://" + row.user + b.Addr()}}
				o.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				if row.adjust != nil {
					row.adjust(o)
				}
			})
			if row.reason == "" {
				w.await(0, Up)
				if got := w.Status()[0].Login; got != row.login {
					t.Errorf("logged in with %s, not %s", got, row.login)
				}
				wantAll(t, w.Send(t.Context(), sample(1)), message.Accepted, message.Done)
			} else {
				poll(t, row.reason, func() bool { return strings.Contains(w.Status()[0].Reason, row.reason) })
				if strings.Contains(w.Status()[0].Reason, "s3cret") || w.Usable() {
					t.Errorf("status %+v", w.Status()[0])
				}
			}
			w.stop()
			if strings.Contains(log.String(), "s3cret") {
				t.Errorf("the log has the password: %s", log.String())
			}
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Wire forms of the mechanisms frame that real brokers send, and some that nobody should.
func TestMechanismFrames(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, body string
		want       []string // nil = malformed
	}{
		{"array of short symbols", "\x00\x53\x40\xc0\x15\x01\xe0\x12\x02\xa3\x05PLAIN\x09ANONYMOUS", []string{"PLAIN", "ANONYMOUS"}},
		{"array of long symbols", "\x00\x53\x40\xd0\x00\x00\x00\x17\x00\x00\x00\x01\xf0\x00\x00\x00\x0e\x00\x00\x00\x01\xb3\x00\x00\x00\x05PLAIN", []string{"PLAIN"}},
		{"one symbol", "\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN", []string{"PLAIN"}},
		{"long descriptor", "\x00\x80\x00\x00\x00\x00\x00\x00\x00\x40\xc0\x08\x01\xa3\x05PLAIN", []string{"PLAIN"}},
		{"empty list", "\x00\x53\x40\x45", nil},
		{"another performative", "\x00\x53\x44\xc0\x08\x01\xa3\x05PLAIN", nil},
		{"cut short", "\x00\x53\x40\xc0\x15\x01\xe0\x12\x02\xa3\x05PLAIN\x09ANON", nil},
		{"count too high", "\x00\x53\x40\xc0\x0b\x01\xe0\x08\xff\xa3\x05PLAIN", nil},
		{"nothing", "", nil},
	} {
		fields, err := parsePerformative([]byte(row.body), saslMechanisms)
		var got []string
		if err == nil {
			got, err = parseMechanisms(fields)
		}
		if (err == nil) != (row.want != nil) || row.want != nil && !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, %v; not %q", row.name, got, err, row.want)
		}
	}
}

func TestPeerThatIsNoBrokerIsNamed(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		_, _ = io.ReadFull(there, make([]byte, 8))
		_, _ = there.Write([]byte("HTTP/1.1 400 Bad Request\r\n"))
		_ = there.Close()
	}()
	_, _, err := login{policy: SASLAuto}.negotiate(here)
	if err == nil || !strings.Contains(err.Error(), "does not speak AMQP 1.0") {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
}

func TestHangingUpOnALoginIsARefusal(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		_, _ = io.ReadFull(there, make([]byte, len(saslHeader)))
		_, _ = there.Write(saslHeader)
		_, _ = there.Write([]byte("\x00\x00\x00\x15\x02\x01\x00\x00\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN"))
		_, _ = io.ReadFull(there, make([]byte, len(initFrame("PLAIN", []byte("\x00u\x00p")))))
		_ = there.Close()
	}()
	_, _, err := login{policy: SASLAuto, user: "u", password: "p"}.negotiate(here)
	var auth *AuthError
	if !errors.As(err, &auth) || auth.Mechanism != "PLAIN" || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
}

func FuzzSASLFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x1f\x02\x01\x00\x00\x00\x53\x40\xc0\x15\x01\xe0\x12\x02\xa3\x05PLAIN\x09ANONYMOUS"))
	f.Add([]byte("\x00\x00\x00\x10\x02\x01\x00\x00\x00\x53\x44\xc0\x03\x01\x50\x01"))
	f.Add([]byte("\x00\x00\x00\x0c\xff\x01\x00\x00\x00\x53\x40\x45"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, want := range []byte{saslMechanisms, saslOutcome} {
			fields, err := readSASL(bytes.NewReader(frame), want)
			if err != nil {
				continue
			}
			_, _ = parseMechanisms(fields)
			_, _ = parseOutcome(fields)
		}
	})
}
