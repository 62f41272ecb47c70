package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// told is a recorder that keeps what it hears, as "id what: reason".
type told struct{ lines []string }

func (t *told) Message(m *message.Message, via string, s inspect.Step) {
	t.lines = append(t.lines, fmt.Sprintf("%s by %s %s %s: %s", m.ID, via, s.Kind, s.Broker, s.Reason))
}

func (t *told) Step(id string, _ time.Time, s inspect.Step) {
	t.lines = append(t.lines, fmt.Sprintf("%s %s %s: %s", id, s.Kind, s.Broker, s.Reason))
}

func (t *told) Found(m *message.Message, s inspect.Step) {
	t.lines = append(t.lines, fmt.Sprintf("%s found %s %s: %s", m.ID, s.Kind, s.Broker, s.Reason))
}

func TestHistoryHearsWhatBecomesOfEachMessage(t *testing.T) {
	t.Parallel()
	w, heard := newWatch("test", "", slog.New(slog.DiscardHandler)), &told{}
	w.history = heard
	m := func(id string) *message.Message { return &message.Message{ID: id, Address: "build.tag"} }
	accepted := message.Outcome{State: message.Accepted, Next: message.Done, Broker: "b1"}
	released := message.Outcome{State: message.Released, Next: message.Later, Broker: "b1", Reason: "no binding"}
	bad := []message.Undeliverable{{ID: "bad", Reason: "no address"}}

	w.sent(m("sent"), inspect.ViaSocket, accepted)
	w.sent(m("unroutable"), inspect.ViaSocket, message.Outcome{State: message.Released, Next: message.Done})
	w.put([]message.Unsent{{Message: *m("put"), Outcome: released}, {Message: *m("large"),
		Outcome: message.Outcome{Next: message.Dead, Reason: "too large"}}}, bad, inspect.ViaOutbox)
	w.refused([]message.Unsent{{Message: *m("refused")}}, bad, inspect.ViaSocket,
		errors.New("the store is down"))
	w.skipped([]message.Skipped{{Message: *m("skipped"), Reason: "excluded"}}, inspect.ViaSocket, time.Now())
	w.relayObserver().NotAccepted("b2", m("attempt"), released)
	w.relayObserver().Accepted("b2", m("sent"), 0) // told by sent and drained
	w.drained(queue.Entry{Message: *m("drained")}, accepted, queue.Settlement{Action: queue.Forget})
	w.drained(queue.Entry{Message: *m("buried")}, released, queue.Settlement{Action: queue.Bury})
	w.drained(queue.Entry{Message: *m("dropped")}, message.Outcome{Next: message.Done},
		queue.Settlement{Action: queue.Forget})
	// its attempt was told
	w.drained(queue.Entry{Message: *m("aside")}, released, queue.Settlement{Action: queue.SetAside})
	// nothing became of it: it waits for the next pass
	w.drained(queue.Entry{Message: *m("kept")}, message.Outcome{State: message.Unknown}, queue.Settlement{})
	w.expiredOne("expired", time.Now())

	want := []string{
		"sent by socket accepted b1: ",
		"unroutable by socket dropped : released",
		"put by outbox queued b1: released: no binding",
		"large by outbox dead : not sent: too large",
		"bad by outbox dead : no address",
		"refused by socket refused : the store is down",
		"bad by socket refused : the store is down",
		"skipped by socket skipped : excluded",
		"attempt attempt b2: released: no binding",
		"drained found accepted b1: ",
		"buried found dead b1: released: no binding",
		"dropped found dropped : not sent",
		"expired expired : older than max_age",
	}
	if !slices.Equal(heard.lines, want) {
		t.Errorf("the history hears\n%q, want\n%q", heard.lines, want)
	}
}
