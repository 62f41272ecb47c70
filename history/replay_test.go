package history_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"koji-relay/history"
	"koji-relay/history/file"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// sink keeps what a replay sends, and fails where it is told to.
type sink struct {
	mu     sync.Mutex // guards the fields below
	sent   []message.Message
	fails  int // so many calls
	full   chan struct{}
	waits  int // calls of Waiting that say that all wait
	closed int
}

func (s *sink) Send(_ context.Context, _ *inspect.Replay, ms []message.Message) (done, refused int,
	err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails > 0 {
		s.fails--
		return 0, 0, errors.New("the queue is away")
	}
	s.sent = append(s.sent, ms...)
	if len(s.sent) >= 500 && s.full != nil {
		close(s.full)
		s.full = nil
	}
	return len(ms), 0, nil
}

func (s *sink) Waiting(_ context.Context, ids []string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits > 0 {
		s.waits--
		return len(ids), nil
	}
	return 0, nil
}

func (s *sink) Close() { s.closed++ }

func replaying(t *testing.T, store history.Store, s *sink) (stop func()) {
	r := history.NewReplayer(store, history.ReplayerOptions{Writer: "test",
		Logger: slog.New(slog.DiscardHandler),
		Open:   func(context.Context, *inspect.Replay) (history.Sink, error) { return s, nil },
		Note:   func(string, time.Time, inspect.Step) {}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestReplayGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	store, err := file.Open(filepath.Join(t.TempDir(), "history"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	began := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	var all []message.Message
	for n := range 1000 {
		all = append(all, storetest.Tagged(n, began.Add(time.Duration(n/300)*time.Second)))
	}
	storetest.Append(t, store, inspect.Accepted, all...)
	storetest.Append(t, store, inspect.Skipped, storetest.Tagged(2000, began))
	r := inspect.Replay{Query: inspect.HistoryQuery{Tag: "f4*", Until: time.Now()}, Rate: 1e6,
		State: inspect.ReplayRuns}
	if err := store.AddReplay(t.Context(), &r, nil); err != nil {
		t.Fatal(err)
	}
	first := &sink{fails: 2, full: make(chan struct{})}
	full := first.full
	stop := replaying(t, store, first)
	<-full
	stop()
	second := &sink{waits: 1}
	stop = replaying(t, store, second)
	defer stop()
	for deadline := time.Now().Add(30 * time.Second); ; {
		replays, err := store.Replays(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("replays %+v, error %v", replays, err)
		}
		if replays[0].State == inspect.ReplayDone {
			break
		}
		select {
		case <-t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	got := map[string]message.Message{}
	for _, m := range append(first.sent, second.sent...) {
		got[m.ID] = m
	}
	same := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	for i := range all {
		if diff := cmp.Diff(all[i], got[all[i].ID], same); diff != "" {
			t.Fatalf("message %d (-sent before +replayed):\n%s", i, diff)
		}
	}
	if sent := len(first.sent) + len(second.sent); len(got) != len(all) || sent > len(all)+200 {
		t.Errorf("%d messages were replayed, %d of them again, of %d", sent, sent-len(got), len(all))
	}
}

func TestJSONOfAHistoryBecomesTheMessageAgain(t *testing.T) {
	t.Parallel()
	for _, line := range []string{`{"message_id": "x"}`, `{`, `{"message_id":
		"7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55",
		"address": "a", "body": "{}", "props": [], "time": "2026-11-26T14:00:00Z"}`,
		`{"message_id": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "address": "a", "body": "1", "event": -5, ` +
			`"time": "2026-11-26T14:00:00Z"}`,
		// Found by FuzzReplayLine: the error told of a property, and a message came beside it.
		`{"message_id": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "address": "a", "body": "1", "props": {"a": "` +
			"\xc1" + `"}}`} {
		if row, err := history.FromJSON([]byte(line)); err == nil || row.ID != "" {
			t.Errorf("%q gives %+v, %v", line, row, err)
		}
	}
	skipped := `{"message_id": "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", "fate": "skipped"}`
	if row, err := history.FromJSON([]byte(skipped)); err != nil || row.ID != "" {
		t.Errorf("an event that made no message gives %+v, %v", row, err)
	}
}
