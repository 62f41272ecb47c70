package relay

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/devbroker/wire"
	"koji-relay/internal/message"
)

// disposition is one of the broker's for a range of our deliveries.
func disposition(first, last any, settled bool, code uint64, fields ...any) devbroker.Performative {
	list := []any{true, first, last, settled}
	if code > 0 {
		list = append(list, wire.Described{Descriptor: code, Value: fields})
	}
	return devbroker.Performative{Code: wire.CodeDisposition, List: list}
}

// A peer that answers with nonsense loses its connection, and nobody else anything.
func TestHostileAnswersCostTheirBrokerAlone(t *testing.T) {
	t.Parallel()
	for name, say := range map[string]devbroker.Performative{
		"disposition without end":       disposition(uint32(0), uint32(math.MaxUint32), true, wire.CodeAccepted),
		"disposition far beyond":        disposition(uint32(0), uint32(1<<31), true, wire.CodeAccepted),
		"disposition of the last alone": disposition(uint32(math.MaxUint32), nil, true, wire.CodeAccepted),
		"disposition reversed":          disposition(uint32(9), uint32(3), true, wire.CodeAccepted),
		"flow without credit": {Code: wire.CodeFlow, List: []any{
			uint32(0), uint32(9), uint32(0), uint32(9), uint32(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
			w := startRelay(t, nil, a, b)
			w.await(0, Up)
			w.await(1, Up)
			a.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{
				When: devbroker.Never, Say: func(uint32) []devbroker.Performative {
					return []devbroker.Performative{say}
				},
			}})
			first := w.Send(t.Context(), sample(10))
			for i, o := range first {
				if o.Next != message.Done && o.Next != message.Wait {
					t.Errorf("message %d: %+v", i, o)
				}
			}
			poll(t, "the broker is named", func() bool {
				return strings.Contains(w.Status()[0].Reason, "broke the protocol") || w.Status()[0].State == Stalled
			})
			// It is connected again, but the hub does not wait for it; nobody's message becomes a suspect.
			wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
			wantAll(t, w.SendPatiently(t.Context(), sample(10)), message.Accepted, message.Done)
			a.Script("#", devbroker.Behaviour{})
			poll(t, "it is used again", func() bool {
				w.SendPatiently(t.Context(), fresh("build.tag"))
				w.Send(t.Context(), fresh("task.open"))
				return w.Status()[0].State == Up && a.Stats().Messages > 0
			})
			began := time.Now()
			w.stop()
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("the end took %v", took)
			}
		})
	}
}

// A peer may tell how far it has come before it tells the outcome.
func TestReceivedIsNoOutcome(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Say: func(id uint32) []devbroker.Performative {
		return []devbroker.Performative{
			disposition(id, nil, false, wire.CodeReceived, uint32(0), uint64(0)),
			disposition(id, nil, false, 0),
		}
	}}})
	wantAll(t, w.Send(t.Context(), sample(50)), message.Accepted, message.Done)
	wantAll(t, w.SendPatiently(t.Context(), sample(50, "task.open")), message.Accepted, message.Done)
	for id, n := range count(b) {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

func TestSettledWithoutAnOutcomeIsNamed(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	for name, code := range map[string]uint64{"settled as received": wire.CodeReceived,
		"settled without an outcome": 0} {
		b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{
			When: devbroker.Never, Say: func(id uint32) []devbroker.Performative {
				return []devbroker.Performative{disposition(id, nil, true, code, uint32(0), uint64(0))}
			}}})
		if o := w.Send(t.Context(), fresh("build.tag"))[0]; o.Next != message.Later || o.Reason != name {
			t.Errorf("outcome %+v, not %q", o, name)
		}
	}
}

// topics are n different ones.
func topics(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("topic.n%d", i)
	}
	return all
}

func TestRelayLivesWithinWhatThePeerAllows(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ links, sessions uint32 }{
		{4, 256}, {4, 1}, {4, 2}, {1, 1}, {1, 2}, {1, 256}, {2, 3}, {1024, 1}, {256, 64},
	} {
		t.Run(fmt.Sprintf("%d links, %d sessions", row.links, row.sessions), func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{MaxLinks: row.links, MaxSessions: row.sessions})
			w := startRelay(t, nil, b)
			w.await(0, Up)
			wantAll(t, w.Send(t.Context(), sample(80, topics(40)...)), message.Accepted, message.Done)
			wantAll(t, w.SendPatiently(t.Context(), sample(400, topics(50)...)), message.Accepted, message.Done)
			if s := b.Stats(); s.Connections != 1 || s.Messages != 480 {
				t.Errorf("%d connections, %d messages", s.Connections, s.Messages)
			}
			for id, n := range count(b) {
				if n > 2 { // both calls have some ids
					t.Errorf("%s was sent %d times", id, n)
				}
			}
		})
	}
}

// Where links are few, those that are open give way to others, even if the broker leaves some without an
// answer.
func TestFewLinksAreShared(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{MaxLinks: 3, MaxSessions: 1})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 10 * time.Second }, b)
	w.await(0, Up)
	b.Script("koji.topic.n0", never)
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.Send(t.Context(), sample(1, "topic.n0")) }()
	waitReceived(t, b, 1)
	wantAll(t, w.Send(t.Context(), sample(60, topics(21)[1:]...)), message.Accepted, message.Done)
	b.Script("koji.topic.n0", devbroker.Behaviour{})
	if o := (<-result)[0]; o.State != message.Unknown {
		t.Errorf("outcome %+v", o)
	}
}

func TestTopicThatFitsNoFrameHurtsNobody(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{MaxFrameSize: 512})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	for length := 200; length < 700; length += 7 {
		long := "x." + strings.Repeat("y", length)
		outs := w.Send(t.Context(), sample(2, "build.tag", long))
		if outs[0].Next != message.Done {
			t.Fatalf("the neighbour of a topic of %d bytes: %+v", length, outs[0])
		}
		if o := outs[1]; o.Next != message.Done &&
			(o.Next != message.Dead || !strings.Contains(o.Reason, "max-frame-size")) {
			t.Fatalf("topic of %d bytes: %+v", length, o)
		} else if length < 300 && o.Next != message.Done || length > 500 && o.Next != message.Dead {
			t.Fatalf("topic of %d bytes: %+v", length, o)
		}
	}
	if n := b.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

// A driver that does not end is left behind, and nobody waits for it.
func TestConnectionThatCannotBeEndedIsLeftBehind(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	failed := make(chan message.Failure, 100)
	w := startRelay(t, func(o *Options) {
		o.Observer.Failed = func(_ string, failure message.Failure) { failed <- failure }
	}, b)
	w.await(0, Up)
	b.Script("#", never)
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.SendPatiently(context.Background(), sample(3)) }()
	waitReceived(t, b, 3)
	release := make(chan struct{})
	defer close(release)
	w.brokers[0].conn.wg.Go(func() { <-release })
	b.Script("#", devbroker.Behaviour{})
	b.Inflict("", devbroker.DropConnection, devbroker.Cause{})
	poll(t, "the broker is used again", func() bool {
		return w.Send(t.Context(), fresh("task.open"))[0].Next == message.Done
	})
	<-result
	for _, want := range []message.Failure{"abandoned", "lost"} {
		if got := <-failed; got != want {
			t.Errorf("failure %q, want %q", got, want)
		}
	}
	w.stop()
}
