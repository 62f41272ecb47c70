package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

var discard = slog.New(slog.DiscardHandler)

// fakeSource is a daemon's state that tests change.
type fakeSource struct {
	mu     sync.Mutex
	status Status
	calls  int
}

func (f *fakeSource) get(context.Context) Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	return f.status
}

func (f *fakeSource) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func (f *fakeSource) change(change func(*Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Brokers = append([]inspect.Broker(nil), f.status.Brokers...) // the cache holds the old slice
	change(&f.status)
}

// runningStatus is a daemon with all well: two brokers up and an empty queue.
func runningStatus() Status {
	now := time.Now()
	return Status{
		Version: "1.2.3", Host: "hub.example.com", Started: now.Add(-26 * time.Hour), Phase: Running,
		LogLevel: "info", Brokers: []inspect.Broker{
			{Name: "broker1.example.com:5671", State: inspect.Up, Since: now.Add(-26 * time.Hour), Active: true,
				TLS: true, Product: "ActiveMQ Artemis", Version: "2.40.0", Dialect: "literal", Login: "PLAIN",
				Target: "topic://koji.build.tag", CertExpires: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)},
			{Name: "broker2.example.com:5671", State: inspect.Up, Since: now.Add(-3 * time.Hour), TLS: true,
				Product: "ActiveMQ Artemis", Version: "2.40.0", Dialect: "literal", Login: "PLAIN"},
		},
		Queue: Queue{Enabled: true, Store: "postgres", Usable: true, Known: true},
		Outbox: Outbox{Known: true, Readers: []inspect.Reader{
			{Seen: now, Holder: inspect.Holder{PID: 41}},
			{Name: "new-bus", Seen: now, Holder: inspect.Holder{PID: 42}}}},
		Certificates: []Certificate{{Name: "cert", Subject: "CN=koji-relay",
			Expires: now.Add(90 * 24 * time.Hour)}},
		Config: Config{Path: "/etc/koji-hub/plugins/protonmsg.conf", Loaded: now.Add(-26 * time.Hour),
			Settings: []inspect.Setting{
				{Section: "broker", Key: "urls", Value: "amqps://broker1.example.com:5671 " +
					"amqps://broker2.example.com:5671", Source: "protonmsg.conf:2"},
				{Section: "broker", Key: "password_file", Value: "****", Source: "protonmsg.conf:9"},
				{Section: "queue", Key: "enabled", Value: "on", Source: "default"},
			}},
	}
}

// fakeControl records calls and answers as told.
type fakeControl struct {
	HistoryControl // tested by what uses it

	mu    sync.Mutex
	calls []string
	err   error
	items []inspect.Item
	fail  error // of List and Export, after the items
	lines string
	props string // of Show
}

func (f *fakeControl) note(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	return f.err
}

func (f *fakeControl) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *fakeControl) Reload(context.Context) Reload {
	f.note("reload")
	return Reload{Time: time.Unix(1700000000, 0).UTC(), OK: true, Changed: []string{"broker.urls"},
		NeedRestart: []string{"relay.socket"}}
}

func (f *fakeControl) SetLogLevel(_ context.Context, level string) error {
	return f.note("log-level " + level)
}
func (f *fakeControl) Pause(_ context.Context, what Pausable) error {
	return f.note("pause " + string(what))
}
func (f *fakeControl) Resume(_ context.Context, what Pausable) error {
	return f.note("resume " + string(what))
}

func (f *fakeControl) Check(_ context.Context, connecting bool) (any, error) {
	return map[string]bool{"connected": connecting}, f.note("check")
}

func (f *fakeControl) Tail(ctx context.Context, patterns []string, each func(inspect.Arrival) error,
	notice func(string) error) error {
	if err := f.note("tail " + strings.Join(patterns, " ")); err != nil {
		return err
	}
	if err := errors.Join(notice("subscribed"),
		each(inspect.Arrival{MessageID: "a", Props: map[string]any{"id": int64(1) << 60}})); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (f *fakeControl) SendTest(context.Context) (inspect.TestSent, error) {
	return inspect.TestSent{MessageID: "a", Outcome: "accepted"}, f.note("send-test")
}

func (f *fakeControl) List(_ context.Context, box inspect.Box, opts inspect.ListOptions,
	each func(inspect.Item) error) error {
	text, _ := json.Marshal(opts)
	if err := f.note("list " + string(box) + " " + string(text)); err != nil {
		return err
	}
	for _, i := range f.items {
		if err := each(i); err != nil {
			return err
		}
	}
	return f.fail
}

func (f *fakeControl) Show(_ context.Context, box inspect.Box, id string) (inspect.Item, error) {
	props := `{"type":"Tag"}`
	if f.props != "" {
		props = f.props
	}
	return inspect.Item{MessageID: id, Props: json.RawMessage(props), Body: `{"a": 1}`},
		f.note("show " + string(box) + " " + id)
}

func (f *fakeControl) selected(verb string, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	text, _ := json.Marshal(which)
	return inspect.Changed{Count: len(which.IDs)}, f.note(verb + " " + string(box) + " " + string(text))
}

func (f *fakeControl) Retry(_ context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	return f.selected("retry", box, which)
}

func (f *fakeControl) Drop(_ context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	return f.selected("drop", box, which)
}

func (f *fakeControl) Export(_ context.Context, w io.Writer) error {
	if err := f.note("export"); err != nil {
		return err
	}
	io.WriteString(w, f.lines)
	return f.fail
}

func (f *fakeControl) Import(_ context.Context, r io.Reader) (inspect.Imported, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return inspect.Imported{}, err
	}
	return inspect.Imported{Stored: len(text)}, f.note("import")
}

// newTestServer makes a Server that has looked at its source once.
func newTestServer(t *testing.T, status Status) (*Server, *fakeSource, *fakeControl) {
	t.Helper()
	source, control := &fakeSource{status: status}, &fakeControl{}
	s := New(Options{Source: source.get, Metrics: NewMetrics("1.2.3", ""), Recent: NewRecent(100),
		Control: control,
		Logger:  discard})
	s.refresh(t.Context())
	return s, source, control
}

// serveControl answers on a Unix socket until the test ends, and gives a client for it.
func serveControl(t *testing.T, s *Server) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.ServeControl(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return NewClient(socket)
}

// exercise makes every metric have a value.
func exercise(m *Metrics) {
	m.CommitTaken(inspect.ViaSocket,
		message.Commit{Events: []message.Event{{Callback: "postTag"}, {Callback: "postUntag"}}},
		message.Receipt{Sent: 1, NotTaken: []int{1}}, 3*time.Millisecond)
	m.CommitTaken(inspect.ViaSocket, message.Commit{}, message.Receipt{}, time.Millisecond)
	m.MessageSent("build.tag", "broker1.example.com:5671", time.Millisecond)
	m.SendFailed("broker1.example.com:5671", message.FailedRejected)
	m.QueuePut(3)
	m.QueueDrained(2)
	m.QueueExpired("build.tag", 1)
	m.OutboxMissed("new-bus", 3)
	m.DeadLetters(message.FailedTooLarge, 1)
	m.ExtraTrimmed(1)
	m.Reconnected("broker1.example.com:5671")
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	return request(t, h, http.MethodGet, "127.0.0.1:9763", path)
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }
