package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"koji-relay/config"
	historyfile "koji-relay/history/file"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// halfBroker takes the first half of what it is given, and refuses one message for good.
type halfBroker struct {
	*testing.T
	answered map[string]bool
}

func (b *halfBroker) SendPatiently(_ context.Context, messages []message.Message) []message.Outcome {
	out := make([]message.Outcome, len(messages))
	for i := range out {
		id := messages[i].ID
		if b.answered[id] {
			b.Errorf("message %s is sent again, although it was answered", id)
		}
		switch {
		case strings.HasPrefix(id, "bad"):
			out[i] = message.Outcome{State: message.Rejected, Next: message.Dead, Reason: "bad"}
		case i <= len(out)/2:
			out[i] = message.Outcome{State: message.Accepted, Next: message.Done}
		default:
			out[i] = message.Outcome{State: message.Unknown, Next: message.Wait, Reason: "no answer"}
			continue
		}
		b.answered[id] = true
	}
	return out
}

// A broker that takes some of each batch gets all of it in the end, and nothing that it has answered again.
func TestAReplayGivesABrokerWhatItHasNotTaken(t *testing.T) {
	t.Parallel()
	sink := &brokerSink{relay: &halfBroker{t, map[string]bool{}}, log: slog.New(slog.DiscardHandler),
		dealt: map[string]bool{}}
	for batch := range 2 {
		messages := []message.Message{{ID: fmt.Sprintf("bad %d", batch)}}
		for n := range 20 {
			messages = append(messages, message.Message{ID: fmt.Sprintf("%d of %d", n, batch)})
		}
		var tries int
		done, refused, err := sink.Send(t.Context(), nil, messages)
		for ; err != nil && tries < 10; tries++ {
			if done != 0 || refused != 0 || !strings.Contains(err.Error(), "of 21 messages not taken: no answer") {
				t.Fatalf("it says %d, %d, %v", done, refused, err)
			}
			done, refused, err = sink.Send(t.Context(), nil, messages)
		}
		if done != 20 || refused != 1 || tries < 2 {
			t.Errorf("%d were taken and %d refused, after %d failures", done, refused, tries)
		}
	}
}

func TestReplaysAreBounded(t *testing.T) {
	t.Parallel()
	store, err := historyfile.Open(filepath.Join(t.TempDir(), "history"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	h := historyControl{store, func() *config.Config { return &config.Config{} }, true}
	start := func() error {
		_, err := h.StartReplay(t.Context(), inspect.Replay{Query: inspect.HistoryQuery{Tag: "f40"}}, nil)
		return err
	}
	for range maxReplays {
		if err := start(); err != nil {
			t.Fatal(err)
		}
	}
	var refused *admin.Error
	if err := start(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "100 replays run") {
		t.Errorf("one more gives %v", err)
	}
	if err := h.CancelReplay(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Errorf("one was cancelled, and another one gives %v", err)
	}
}
