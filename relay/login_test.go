package relay

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

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
		{name: "user from files", broker: devbroker.Options{Users: users}, login: "PLAIN",
			adjust: func(o *Options) {
				o.UserFile, o.PasswordFile = file("user", "koji\n"), file("password", "s3cret\n")
			}},
		{name: "file missing", broker: devbroker.Options{Users: users}, reason: "read user_file: open",
			adjust: func(o *Options) {
				o.UserFile = filepath.Join(dir, "absent")
			}},
		{name: "file empty", broker: devbroker.Options{Users: users}, reason: "is empty", adjust: func(o *Options) {
			o.UserFile = file("empty", "\n")
		}},
		{name: "wrong password", broker: devbroker.Options{Users: users}, user: "koji:wrong-s3cret@",
			reason: "log in with PLAIN: the broker refused the credentials; it offers PLAIN, ANONYMOUS"},
		{name: "ANONYMOUS first in the list", broker: devbroker.Options{Users: users,
			Mechanisms: []string{"ANONYMOUS", "PLAIN"}},
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
