package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// site is a daemon with its files, in test mode: what it sends counts as accepted.
type site struct {
	*Daemon
	path   string // of the configuration
	socket string
	hub    *http.Client
	end    func() error // SIGTERM, and what Run returns
}

// newSite writes a configuration. settings are lines of sections, added to a minimal one.
func newSite(t *testing.T, message string) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "krd") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{path: filepath.Join(dir, "protonmsg.conf"), socket: filepath.Join(dir, "hub.sock")}
	s.write(t, message)
	s.hub = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.socket)
		},
	}}
	c, err := config.Load(s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.Daemon = New(Options{
		Config: c, Load: func() (*config.Config, error) { return config.Load(s.path) },
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Level: new(slog.LevelVar), Version: "9.9",
		LogLost: func() int64 { return 0 },
	})
	return s
}

// write puts settings of [message] into the configuration file.
func (s *site) write(t *testing.T, message string) {
	t.Helper()
	dir := filepath.Dir(s.path)
	text := fmt.Sprintf("[broker]\nurls = amqp://broker\ntopic_prefix = koji\ntest_mode = on\n[message]\n%s\n"+
		"[queue]\nstore = file\npath = %s/queue.db\n[relay]\nsocket = %s\ncontrol = %s/control.sock\nadmin =\n",
		message, dir, s.socket, dir)
	if err := os.WriteFile(s.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run starts the daemon and waits until it is ready.
func (s *site) run(t *testing.T) {
	t.Helper()
	intake, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(intake, context.Background()) }()
	s.end = func() error {
		stop()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.New("the daemon does not end")
		}
	}
	t.Cleanup(stop)
	within(t, "the daemon is ready", func() bool { return *s.phase.Load() == admin.Running })
}

// within waits for something that happens by itself.
func within(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for limit := time.After(time.Minute); !reached(); {
		select {
		case <-limit:
			t.Fatalf("not within a minute: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// post hands over a commit of one event, and gives the account and the events that the hub is to collect.
func (s *site) post(t *testing.T, callback string) (account map[string]int, events string) {
	t.Helper()
	body := fmt.Sprintf(`{"commit": %q, "events": [{"callback": %q, "kwargs": {"tag": {"name": "f39"}, `+
		`"build": {}}}]}`,
		uuid.NewString(), callback)
	resp, err := s.hub.Post("http://hub/v1/commits", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &account); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %v", resp.Status, text, err)
	}
	return account, resp.Header.Get("Koji-Relay-Events")
}

func TestDaemonFromItsStartToItsEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t, "events = postTag")
	s.run(t)
	if account, events := s.post(t, "postTag"); account["sent"] != 1 || events != "postTag" {
		t.Errorf("account %v, the hub is to collect %q", account, events)
	}
	// Nobody reads an outbox here: no socket for it, which could be in another relay's way.
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.socket), "poke.sock")); err == nil {
		t.Error("store = file: a socket for pokes is open")
	}
	if account, _ := s.post(t, "preTag"); account["skipped"] != 1 {
		t.Errorf("account %v, want the pre event skipped", account)
	}

	s.write(t, "events = p*Tag")
	if said := s.control().Reload(t.Context()); !said.OK || len(said.NeedRestart) != 0 {
		t.Errorf("reload: %+v", said)
	}
	if account, events := s.post(t, "preTag"); account["sent"] != 1 || events != "p*Tag" {
		t.Errorf("after a reload: account %v, the hub is to collect %q", account, events)
	}
	s.write(t, "durable = perhaps")
	if said := s.control().Reload(t.Context()); said.OK || len(said.Errors) == 0 {
		t.Errorf("a file with a mistake: %+v", said)
	}
	if account, events := s.post(t, "preTag"); account["sent"] != 1 || events != "p*Tag" {
		t.Errorf("after a refused reload: account %v, the hub is to collect %q", account, events)
	}

	if err := s.end(); err != nil {
		t.Error(err)
	}
	if _, err := s.hub.Post("http://hub/v1/commits", "application/json", strings.NewReader("{}")); err == nil {
		t.Error("the socket is served after the end")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.path), "*.sock")); len(left) > 0 {
		t.Errorf("sockets are left behind: %v", left)
	}
}

func TestPauseQueuesAndResumeDrains(t *testing.T) {
	t.Parallel()
	s := newSite(t, "events = *")
	s.run(t)
	if err := s.control().Pause(t.Context(), admin.Publish); err != nil {
		t.Fatal(err)
	}
	if account, _ := s.post(t, "postTag"); account["queued"] != 1 {
		t.Errorf("account %v, want the event queued", account)
	}
	// A reload must not end a pause.
	if said := s.control().Reload(t.Context()); !said.OK {
		t.Errorf("reload: %+v", said)
	}
	shown := s.status(t.Context())
	if !shown.Paused.Publish || !shown.Paused.Drain || shown.Queue.Depth != 1 || !shown.Queue.Known {
		t.Errorf("the status shows %+v, %+v; want paused with one message", shown.Paused, shown.Queue)
	}
	if err := s.control().Resume(t.Context(), admin.Publish); err != nil {
		t.Fatal(err)
	}
	within(t, "the queue is drained", func() bool { return s.status(t.Context()).Queue.Depth == 0 })
	if shown := s.status(t.Context()); shown.Paused.Publish || shown.Paused.Drain {
		t.Errorf("the status shows %+v after the pause", shown.Paused)
	}
	if err := s.end(); err != nil {
		t.Error(err)
	}
}

func TestLogLevelHoldsUntilAReload(t *testing.T) {
	t.Parallel()
	s := newSite(t, "events = *")
	s.run(t)
	if err := s.control().SetLogLevel(t.Context(), "loud"); err == nil {
		t.Error("a level that does not exist is taken")
	}
	if err := s.control().SetLogLevel(t.Context(), "error"); err != nil {
		t.Fatal(err)
	}
	if got := s.status(t.Context()).LogLevel; got != "error" {
		t.Errorf("the status shows %s, want error", got)
	}
	s.control().Reload(t.Context())
	if got := s.status(t.Context()).LogLevel; got != "info" {
		t.Errorf("the status shows %s after a reload, want that of the file", got)
	}
	if err := s.end(); err != nil {
		t.Error(err)
	}
}

func TestDaemonDoesNotStartWithoutSocketOrQueue(t *testing.T) {
	t.Parallel()
	running := newSite(t, "events = *")
	running.run(t)
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, s *site)
		want  string
	}{
		"another relay answers on the socket": {func(_ *testing.T, s *site) {
			s.opts.Config.Relay.Socket = running.socket
		}, "is another koji-relay running?"},
		"the queue's file is another relay's": {func(_ *testing.T, s *site) {
			s.opts.Config.Queue.Path = running.opts.Config.Queue.Path
		}, "in use by another process"},
		"a file that is no socket is in the way": {func(t *testing.T, s *site) {
			if err := os.WriteFile(s.socket, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "remove it or set another [relay] socket"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "events = *")
			tc.spoil(t, s)
			err := s.Run(t.Context(), t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run: %v, want %q in it", err, tc.want)
			}
		})
	}
	if account, _ := running.post(t, "postTag"); account["sent"] != 1 {
		t.Errorf("the relay that runs: %v", account)
	}
	if err := running.end(); err != nil {
		t.Error(err)
	}
}

// blind is a store that cannot be looked at.
type blind struct{ queue.Inspector }

func (blind) Stats(context.Context) (inspect.Statistics, error) {
	return inspect.Statistics{}, errors.New("disk gone")
}

func TestStatusOfAStoreThatCannotBeReadIsUnknown(t *testing.T) {
	t.Parallel()
	shown := StoppedStatus(t.Context(), &config.Config{}, blind{})
	if shown.Queue.Known || shown.Queue.Usable || shown.Queue.Error != "disk gone" {
		t.Errorf("the status shows %+v, want it unknown with the cause", shown.Queue)
	}
}

// full is a store that takes nothing more.
type full struct{ store }

func (full) Put(context.Context, []message.Unsent, []message.Undeliverable) (queue.Stored, error) {
	return queue.Stored{}, queue.ErrFull
}

func TestEventThatCannotBeQueuedStaysADeadLetter(t *testing.T) {
	t.Parallel()
	q, ids := deadEvents(t)
	q.store = full{q.store}
	if _, err := q.Retry(t.Context(), inspect.DeadBox, inspect.Selection{IDs: ids}); !errors.Is(err,
		queue.ErrFull) {
		t.Errorf("retry: %v, want %v", err, queue.ErrFull)
	}
	if got := boxIDs(t, q, inspect.DeadBox); len(got) != len(ids) {
		t.Errorf("dead letters are %v, want all of %v", got, ids)
	}
	if got := boxIDs(t, q, inspect.QueueBox); len(got) != 0 {
		t.Errorf("the queue holds %v", got)
	}
}
