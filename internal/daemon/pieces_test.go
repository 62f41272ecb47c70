package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// slowParts are a sender and a store that take some time for each call.
type slowParts struct {
	sendTakes, putTakes time.Duration
	accepts             bool
	putErr              error // of the second put and later ones
	slowPut             int   // the number of a put that takes too long, from 1

	sent, puts []int // messages of each call
}

func (s *slowParts) Send(ctx context.Context, msgs []message.Message) []message.Outcome {
	s.sent = append(s.sent, len(msgs))
	outcomes := make([]message.Outcome, len(msgs))
	select {
	case <-time.After(s.sendTakes):
		for i := range outcomes {
			if s.accepts {
				outcomes[i] = done()
			}
		}
	case <-ctx.Done():
	}
	return outcomes
}

func (s *slowParts) Put(ctx context.Context, unsent []message.Unsent,
	_ []message.Undeliverable) (queue.Stored, error) {
	s.puts = append(s.puts, len(unsent))
	if s.putErr != nil && len(s.puts) > 1 {
		return queue.Stored{}, s.putErr
	}
	takes := s.putTakes
	if len(s.puts) == s.slowPut {
		takes = time.Minute
	}
	select {
	case <-time.After(takes):
		return queue.Stored{Queued: len(unsent)}, nil
	case <-ctx.Done():
		return queue.Stored{}, ctx.Err()
	}
}

// largeCommit has more events than fit into 4 pieces.
func largeCommit() message.Commit {
	c := message.Commit{ID: "large", Events: make([]message.Event, 4*message.PieceEvents+1)}
	for i := range c.Events {
		c.Events[i].Number = i
	}
	return c
}

// newPiecewise gives a publisher that makes a message of each event.
func newPiecewise(parts *slowParts) *publisher {
	p := newPublisher(nil, parts, callbacks.Translation{})
	p.sender, p.handoffTimeout, p.storeTimeout = parts, time.Second, 800*time.Millisecond
	p.translate = func(c message.Commit) (t callbacks.Translation) {
		for _, e := range c.Events {
			t.Messages = append(t.Messages, message.Message{Event: e.Number, Address: "a"})
		}
		return t
	}
	return p
}

func TestLargeCommitIsPutPieceByPiece(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parts := &slowParts{putTakes: 700 * time.Millisecond} // in one put it would take four times its time
		progress := 0
		receipt := newPiecewise(parts).publish(t.Context(), largeCommit(), func() { progress++ })
		want := message.Receipt{Queued: 4*message.PieceEvents + 1}
		if diff := cmp.Diff(want, receipt); diff != "" {
			t.Errorf("receipt (-want +got):\n%s", diff)
		}
		full := message.PieceEvents
		if diff := cmp.Diff([]int{full, full, full, full, 1}, parts.puts); diff != "" {
			t.Errorf("messages of each put (-want +got):\n%s", diff)
		}
		if progress != 5 {
			t.Errorf("the watchdog was told %d times, want 5", progress)
		}
	})
}

func TestPiecesShareTheTimeForBrokers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parts := &slowParts{sendTakes: 400 * time.Millisecond, accepts: true}
		began := time.Now()
		receipt := newPiecewise(parts).publish(t.Context(), largeCommit(), func() {})
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want handoff_timeout: the store took none", took)
		}
		want := message.Receipt{Sent: 2 * message.PieceEvents, Queued: 2*message.PieceEvents + 1}
		if diff := cmp.Diff(want, receipt); diff != "" {
			t.Errorf("receipt (-want +got):\n%s", diff)
		}
		if len(parts.sent) != 3 {
			t.Errorf("%d pieces were given to the brokers, want 3: later ones have no time left", len(parts.sent))
		}
	})
}

func TestStoreThatFailsTwiceIsNotAskedAgainForTheCommit(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		accepts, ordered bool
		want             message.Receipt
		puts             int
	}{
		"brokers down: the rest is named": {false, false,
			message.Receipt{Queued: message.PieceEvents, Reason: "neither sent nor stored: full"}, 3},
		"brokers up: nothing needs the store": {true, false,
			message.Receipt{Sent: 4*message.PieceEvents + 1}, 0},
		"order kept: nothing overtakes what is refused": {false, true,
			message.Receipt{Queued: message.PieceEvents, Reason: "neither sent nor stored: full"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts := &slowParts{accepts: tc.accepts, putErr: errors.New("full")}
			p := newPiecewise(parts)
			asked := 0
			if tc.ordered {
				p.order = &order{backlog: func(context.Context) (queue.Backlog, error) {
					if asked++; asked == 3 {
						parts.accepts = true // the brokers come back
					}
					return queue.Backlog{}, nil
				}}
			}
			receipt := p.publish(t.Context(), largeCommit(), func() {})
			if diff := cmp.Diff(tc.want, receipt, cmpopts.IgnoreFields(message.Receipt{}, "NotTaken")); diff != "" {
				t.Errorf("receipt (-want +got):\n%s", diff)
			}
			if len(parts.puts) != tc.puts {
				t.Errorf("%d puts, want %d", len(parts.puts), tc.puts)
			}
			for i, n := range receipt.NotTaken {
				if n != message.PieceEvents+i {
					t.Fatalf("event %d is named at place %d, want all after the first piece", n, i)
				}
			}
			if n := receipt.Sent + receipt.Queued + len(receipt.NotTaken); n != 4*message.PieceEvents+1 {
				t.Errorf("the receipt accounts for %d events", n)
			}
		})
	}
}

func TestPieceThatIsTooSlowCostsOnlyItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parts := &slowParts{slowPut: 2}
		receipt := newPiecewise(parts).publish(t.Context(), largeCommit(), func() {})
		if n := len(receipt.NotTaken); n != message.PieceEvents || receipt.NotTaken[0] != message.PieceEvents {
			t.Errorf("%d events are not taken, want the %d of the second piece", n, message.PieceEvents)
		}
		if want := 3*message.PieceEvents + 1; receipt.Queued != want {
			t.Errorf("%d events are queued, want %d", receipt.Queued, want)
		}
	})
}

func TestCommitIsNotDealtWithForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := largeCommit()
		for range 3 {
			c.Events = append(c.Events, c.Events...)
		}
		parts := &slowParts{putTakes: 700 * time.Millisecond}
		began := time.Now()
		receipt := newPiecewise(parts).publish(t.Context(), c, func() {})
		if took := time.Since(began); took > commitTime+800*time.Millisecond {
			t.Errorf("took %v, want no piece begun after %v", took, commitTime)
		}
		if receipt.Queued != 15*message.PieceEvents || receipt.Queued+len(receipt.NotTaken) != len(c.Events) {
			t.Errorf("%d queued, %d not taken, of %d", receipt.Queued, len(receipt.NotTaken), len(c.Events))
		}
		if want := "neither sent nor stored: the commit takes longer than 10s"; receipt.Reason != want {
			t.Errorf("reason %q, want %q", receipt.Reason, want)
		}
	})
}
