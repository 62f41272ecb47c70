package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"koji-relay/callbacks"
	"koji-relay/internal/admin"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// fakeSender answers with one scripted outcome per address and records what it was given.
type fakeSender struct {
	outcomes map[string]message.Outcome
	got      []string
}

func (f *fakeSender) Send(_ context.Context, msgs []message.Message) []message.Outcome {
	out := make([]message.Outcome, len(msgs))
	for i, m := range msgs {
		f.got = append(f.got, m.Address)
		out[i] = f.outcomes[m.Address]
	}
	return out
}

// fakeQueue records what was put, or fails.
type fakeQueue struct {
	err    error
	unsent []message.Unsent
	bad    []message.Undeliverable
	dead   map[string]string // what it makes dead letters of, by message-id
}

func (f *fakeQueue) Put(_ context.Context, unsent []message.Unsent,
	bad []message.Undeliverable) (queue.Stored, error) {
	if f.err != nil {
		return queue.Stored{}, f.err
	}
	f.unsent = append(f.unsent, unsent...)
	f.bad = append(f.bad, bad...)
	return queue.Stored{Queued: len(unsent) - len(f.dead), Dead: f.dead}, nil
}

// fivePart is a commit of five events that become: three messages (a, b, c), one skip and one undeliverable.
var fivePart = callbacks.Translation{
	Messages: []message.Message{
		{ID: "id-a", Event: 4, Address: "a"}, {ID: "id-b", Event: 1, Address: "b"},
		{ID: "id-c", Event: 2, Address: "c"},
	},
	Undeliverable: []message.Undeliverable{{ID: "id-x", Event: 0, Reason: "no action"}},
	Skipped:       make([]message.Skipped, 1),
}

// oneCommit is of one piece. What its events are is up to the translation of the test.
var oneCommit = message.Commit{ID: "c1", Events: make([]message.Event, 1)}

func newPublisher(s *fakeSender, q putter, t callbacks.Translation) *publisher {
	return &publisher{
		translate: func(message.Commit) callbacks.Translation {
			own := t
			own.Messages = slices.Clone(t.Messages) // the publisher stamps them
			return own
		},
		sender:         s,
		queue:          q,
		handoffTimeout: time.Minute,
		storeTimeout:   time.Minute,
		stored:         func() {},
		paused:         &atomic.Bool{},
		watch:          newWatch("test", "", slog.New(slog.DiscardHandler)),
		log:            slog.New(slog.DiscardHandler),
	}
}

func done() message.Outcome { return message.Outcome{State: message.Accepted, Next: message.Done} }

func TestOnlyWhatIsDoneIsForgotten(t *testing.T) {
	t.Parallel()
	s := &fakeSender{outcomes: map[string]message.Outcome{
		"a": done(),
		"b": {State: message.Released, Next: message.Later, Reason: "no binding"},
		"c": {State: message.Rejected, Next: message.Dead, Reason: "too large"},
	}}
	q := &fakeQueue{}
	p := newPublisher(s, q, fivePart)
	woken := 0
	p.stored = func() { woken++ }

	receipt := p.publish(context.Background(), oneCommit, func() {})

	want := message.Receipt{Sent: 1, Queued: 1, Skipped: 1, Dead: 2}
	if diff := cmp.Diff(want, receipt); diff != "" {
		t.Errorf("receipt (-want +got):\n%s", diff)
	}
	wantPut := []message.Unsent{
		{Message: message.Message{ID: "id-b", Event: 1, Address: "b"}, Outcome: s.outcomes["b"]},
		{Message: message.Message{ID: "id-c", Event: 2, Address: "c"}, Outcome: s.outcomes["c"]},
	}
	if diff := cmp.Diff(wantPut, q.unsent, cmpopts.IgnoreFields(message.Message{}, "Created")); diff != "" {
		t.Errorf("put (-want +got):\n%s", diff)
	}
	if len(q.bad) != 1 || q.bad[0].ID != "id-x" {
		t.Errorf("dead letters put: %v, want id-x", q.bad)
	}
	if woken != 1 {
		t.Errorf("the drain was woken %d times, want once", woken)
	}
	for _, u := range q.unsent {
		if u.Message.Created.IsZero() {
			t.Errorf("%s has no creation time", u.Message.ID)
		}
	}
}

// With max_attempts = 1, or a message that the store cannot hold, the put makes a dead letter of what was to
// be queued.
func TestDeadLetterMadeByThePutIsAnsweredAndCountedAsDead(t *testing.T) {
	t.Parallel()
	s := &fakeSender{outcomes: map[string]message.Outcome{
		"a": done(),
		"b": {State: message.Rejected, Next: message.Count, Reason: "not allowed"},
		"c": {State: message.Released, Next: message.Later, Reason: "no binding"},
	}}
	p := newPublisher(s, &fakeQueue{dead: map[string]string{"id-b": "rejected: not allowed"}}, fivePart)
	receipt := p.publish(context.Background(), oneCommit, func() {})
	if diff := cmp.Diff(message.Receipt{Sent: 1, Queued: 1, Skipped: 1, Dead: 2}, receipt); diff != "" {
		t.Errorf("receipt (-want +got):\n%s", diff)
	}
	fates := map[string]admin.FateKind{}
	for _, f := range p.watch.recent.Last() {
		fates[f.MessageID] = f.Fate
	}
	if fates["id-b"] != admin.Dead || fates["id-c"] != admin.Queued {
		t.Errorf("the page has the fates %v, want b dead and c queued", fates)
	}
}

func TestNotTakenNamesExactlyTheEventsNeitherSentNorStored(t *testing.T) {
	t.Parallel()
	storeDown := errors.New("store is down")
	for name, tc := range map[string]struct {
		outcomes map[string]message.Outcome
		queue    putter
		want     message.Receipt
	}{
		"one accepted, the store down": {
			map[string]message.Outcome{"b": done()}, &fakeQueue{err: storeDown},
			message.Receipt{Sent: 1, Skipped: 1, NotTaken: []int{0, 2, 4},
				Reason: "neither sent nor stored: store is down"},
		},
		"none accepted, the store down": {
			nil, &fakeQueue{err: storeDown},
			message.Receipt{Skipped: 1, NotTaken: []int{0, 1, 2, 4}, Reason: "neither sent nor stored: store is down"},
		},
		"all accepted, the dead letter cannot be stored": {
			map[string]message.Outcome{"a": done(), "b": done(), "c": done()}, &fakeQueue{err: storeDown},
			message.Receipt{Sent: 3, Skipped: 1, NotTaken: []int{0}, Reason: "neither sent nor stored: store is down"},
		},
		"the queue switched off": {
			map[string]message.Outcome{"a": done()}, nil,
			message.Receipt{Sent: 1, Skipped: 1, NotTaken: []int{0, 1, 2},
				Reason: "neither sent nor stored: no broker took it and [queue] enabled = off"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPublisher(&fakeSender{outcomes: tc.outcomes}, tc.queue, fivePart)
			if diff := cmp.Diff(tc.want, p.publish(context.Background(), oneCommit, func() {})); diff != "" {
				t.Errorf("receipt (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAllAcceptedTouchesNoStore(t *testing.T) {
	t.Parallel()
	tr := fivePart
	tr.Undeliverable = nil
	s := &fakeSender{outcomes: map[string]message.Outcome{"a": done(), "b": done(), "c": done()}}
	p := newPublisher(s, &fakeQueue{err: errors.New("touched")}, tr)
	want := message.Receipt{Sent: 3, Skipped: 1}
	if diff := cmp.Diff(want, p.publish(context.Background(), oneCommit, func() {})); diff != "" {
		t.Errorf("receipt (-want +got):\n%s", diff)
	}
}

func TestPreservedOrderPutsNewMessagesBehindOlderOnes(t *testing.T) {
	t.Parallel()
	tr := callbacks.Translation{Messages: []message.Message{{ID: "id-a", Address: "a"}},
		Skipped: make([]message.Skipped, 1)}
	down := errors.New("down")
	for name, tc := range map[string]struct {
		backlog    queue.Backlog
		backlogErr error
		appendErr  error
		paused     bool
		want       message.Receipt
		sent       int
		appended   int
	}{
		"nothing waits: sent at once": {
			want: message.Receipt{Sent: 1, Skipped: 1}, sent: 1},
		"messages wait in the queue: queued without an attempt": {
			backlog: queue.Backlog{Queue: true}, want: message.Receipt{Queued: 1, Skipped: 1}},
		"commits wait in the outbox: appended there": {
			backlog: queue.Backlog{Queue: true, Outbox: true}, want: message.Receipt{Queued: 1, Skipped: 1},
			appended: 1},
		"the outbox cannot be appended to: refused": {
			backlog: queue.Backlog{Outbox: true}, appendErr: down,
			want: message.Receipt{NotTaken: []int{0}, Skipped: 1}, appended: 1},
		"paused: queued without an attempt": {
			paused: true, want: message.Receipt{Queued: 1, Skipped: 1}},
		"what waits is unknown: refused, nothing is overtaken": {
			backlogErr: down, want: message.Receipt{NotTaken: []int{0}, Skipped: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &fakeSender{outcomes: map[string]message.Outcome{"a": done()}}
			p := newPublisher(s, &fakeQueue{}, tr)
			appended := 0
			p.order = &order{
				backlog: func(context.Context) (queue.Backlog, error) { return tc.backlog, tc.backlogErr },
				append:  func(context.Context, message.Commit) error { appended++; return tc.appendErr },
			}
			p.paused.Store(tc.paused)
			got := p.publish(context.Background(), oneCommit, func() {})
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreFields(message.Receipt{}, "Reason")); diff != "" {
				t.Errorf("receipt (-want +got):\n%s", diff)
			}
			if len(s.got) != tc.sent || appended != tc.appended {
				t.Errorf("%d messages sent, %d commits appended; want %d and %d", len(s.got), appended, tc.sent,
					tc.appended)
			}
		})
	}
}

func TestCommitsFromTheOutboxStandBehindTheQueueOnly(t *testing.T) {
	t.Parallel()
	tr := callbacks.Translation{Messages: []message.Message{{ID: "id-a", Address: "a"}}}
	s := &fakeSender{outcomes: map[string]message.Outcome{"a": done()}}
	p := newPublisher(s, &fakeQueue{}, tr)
	p.order = &order{backlog: func(context.Context) (queue.Backlog, error) {
		return queue.Backlog{Outbox: true}, nil
	}}
	if got := p.publish(context.Background(), oneCommit, func() {}); got.Sent != 1 {
		t.Errorf("receipt %+v, want the message sent", got)
	}
}

// A commit of the socket goes into the outbox while that has other readers. Where it cannot, this bus has it
// at the least.
func TestCommitOfTheSocketIsSharedWithTheOtherReaders(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		s := &fakeSender{outcomes: map[string]message.Outcome{"a": done(), "b": done(), "c": done()}}
		q := &fakeQueue{}
		p := newPublisher(s, q, fivePart)
		var got []message.Commit
		p.share = func(_ context.Context, c message.Commit) bool {
			got = append(got, c)
			return shared
		}
		events := make([]message.Event, 5)
		r := p.publish(t.Context(), message.Commit{ID: "id", Events: events}, func() {})
		if len(got) != 1 || len(got[0].Events) != 5 || len(r.NotTaken) > 0 {
			t.Fatalf("shared were %v, the receipt is %+v", got, r)
		}
		if sent := len(s.got) > 0 || len(q.bad) > 0; sent == shared || shared && r.Queued != 5 {
			t.Errorf("shared %v: sent %v, the receipt is %+v", shared, s.got, r)
		}
	}
}
