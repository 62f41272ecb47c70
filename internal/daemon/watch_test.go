package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/callbacks"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
	"koji-relay/queue/file"
)

// scrape gives the metrics that w has counted, as Prometheus sees them.
func scrape(t *testing.T, w *watch) string {
	t.Helper()
	s := admin.New(admin.Options{
		Source:  func(context.Context) admin.Status { return admin.Status{} },
		Metrics: w.metrics, Recent: w.recent, Control: control{&Daemon{}, noQueue{}, noHistoryControl{}},
		Logger: slog.New(slog.DiscardHandler),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rec := httptest.NewRecorder()
	if _, err := rec.Body.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return rec.Body.String()
}

func wantSeries(t *testing.T, text string, series ...string) {
	t.Helper()
	for _, s := range series {
		if !strings.Contains(text, "\n"+s+"\n") {
			t.Errorf("no %s", s)
		}
	}
}

func TestTrimmedExtraIsCounted(t *testing.T) {
	t.Parallel()
	rules, err := callbacks.New(callbacks.Options{Events: []string{"*"}, ExtraLimit: 5})
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(&fakeSender{}, &fakeQueue{}, callbacks.Translation{})
	p.translate = rules.Translate
	kwargs := func(extra string) []byte {
		return []byte(`{"tag": {"name": "f43"}, "build": {"name": "bash", "version": "5", "release": "1", ` +
			`"extra": ` + extra +
			`}, "user": {"name": "me"}, "force": false}`)
	}
	p.publish(t.Context(), message.Commit{ID: deadCommit, Events: []message.Event{
		{Number: 0, Callback: "postTag", Kwargs: kwargs(`{"long": "too long by far"}`)},
		{Number: 1, Callback: "postTag", Kwargs: kwargs(`{}`)},
	}}, func() {})
	wantSeries(t, scrape(t, p.watch), "koji_relay_extra_trimmed_total 1")
}

func TestExpiredMessagesAreCountedByAddress(t *testing.T) {
	t.Parallel()
	store, err := file.Open(filepath.Join(t.TempDir(), "queue.db"), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.Put(t.Context(), []message.Unsent{{Message: message.Message{
		ID: deadCommit, Commit: deadCommit, Address: "build.tag", Body: "{}",
		Created: time.Now().Add(-2 * time.Hour)}}}, nil); err != nil {
		t.Fatal(err)
	}
	w := newWatch("test", "", slog.New(slog.DiscardHandler))
	expired := make(chan struct{}, 1)
	drainer := drain.New(store, noBroker{}, drain.Options{
		BatchSize: 100, BatchBytes: 8 << 20, Interval: 30 * time.Second,
		Expiry: queue.Expiry{MaxAge: time.Hour, ToDead: true},
		ObserveExpired: func(done queue.Expired, by queue.Expiry) {
			w.expired(done, by)
			select {
			case expired <- struct{}{}:
			default:
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- drainer.Run(ctx) }()
	select {
	case <-expired:
	case <-time.After(10 * time.Second):
		t.Error("expiry was not reported")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantSeries(t, scrape(t, w), `koji_relay_queue_expired_total{address="build.tag"} 1`,
		`koji_relay_dead_letter_total{reason="expired"} 1`)
}

// One grep for a message-id finds what became of the message, at each stage.
func TestFateOfAMessageIsLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	w := newWatch("test", "", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	m := message.Message{ID: "id-1", Commit: "c-1", Event: 3, Address: "build.tag", Body: "a secret"}
	rejected := message.Outcome{State: message.Rejected, Broker: "b:5672", Reason: "rejected: too old"}
	w.put([]message.Unsent{{Message: m, Outcome: rejected}}, nil, inspect.ViaSocket)
	w.sent(&m, inspect.ViaSocket, message.Outcome{State: message.Accepted, Broker: "b:5672"})
	w.drained(queue.Entry{Message: m}, rejected, queue.Settlement{Action: queue.Bury})
	w.drained(queue.Entry{Message: m}, message.Outcome{State: message.Accepted},
		queue.Settlement{Action: queue.Forget})
	const fields = `commit=c-1 event=3 address=build.tag message_id=id-1`
	for _, want := range []string{
		`level=DEBUG msg="message dealt with" fate=queued ` + fields,
		`level=DEBUG msg="message dealt with" fate=sent ` + fields + ` broker=b:5672`,
		`level=WARN msg="message set aside as a dead letter" ` + fields + ` reason="rejected: too old"`,
		`level=DEBUG msg="message dealt with" fate=drained ` + fields,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no line with %s in:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), m.Body) {
		t.Error("a body is logged")
	}
}

// noBroker is a sender without a broker.
type noBroker struct{}

func (noBroker) Usable() bool { return false }

func (noBroker) Answers() int64 { return 0 }
func (noBroker) SendPatiently(_ context.Context, msgs []message.Message) []message.Outcome {
	return make([]message.Outcome, len(msgs))
}
