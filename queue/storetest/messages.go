package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// TestCommit is the commit of all test messages.
var TestCommit = uuid.MustParse("7f3c1f60-58e5-4c7b-8a0e-0d3a2e3f9b10")

// Message is the nth test message.
func Message(n int) message.Message {
	return message.Message{
		ID: uuid.NewSHA1(TestCommit, fmt.Append(nil, n)).String(), Commit: TestCommit.String(), Event: n,
		Callback: "postTag", Address: "build.tag",
		Props:   []message.Prop{{Key: "type", Value: "Tag"}, {Key: "n", Value: int64(n)}},
		Body:    fmt.Sprintf(`{"n": %d,  "build": {"name": "caf\u00e9"}}`, n),
		Created: time.Now().UTC().Truncate(time.Microsecond),
	}
}

// aging gives m as if it were older.
func aging(m message.Message, by time.Duration) message.Message {
	m.Created = m.Created.Add(-by)
	return m
}

// Unsent gives the messages first to last as after a failed publish.
func Unsent(first, last int) []message.Unsent {
	var list []message.Unsent
	for n := first; n <= last; n++ {
		list = append(list, message.Unsent{Message: Message(n)})
	}
	return list
}

// after gives m with the outcome of a publish that did not succeed.
func after(m message.Message, next message.Next, reason string) message.Unsent {
	return message.Unsent{Message: m, Outcome: message.Outcome{State: message.Rejected, Next: next,
		Broker: "b1:5672", Reason: reason}}
}

// Put puts list and fails the test unless it is stored.
func Put(tb testing.TB, s queue.Store, list ...message.Unsent) {
	tb.Helper()
	if _, err := s.Put(tb.Context(), list, nil); err != nil {
		tb.Fatal(err)
	}
}

// TestLimits are those of a batch in tests.
var TestLimits = queue.BatchLimits{Messages: 100, Bytes: 8 << 20}

// Drained reads the whole queue in one pass, and changes nothing.
func Drained(tb testing.TB, s queue.Store) []queue.Entry {
	tb.Helper()
	pass, err := s.BeginDrain(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	defer pass.End(false)
	var all []queue.Entry
	for {
		batch, err := pass.Next(tb.Context(), TestLimits)
		if err != nil {
			tb.Fatal(err)
		}
		if len(batch) == 0 {
			return all
		}
		all = append(all, batch...)
	}
}

// Numbers gives the number of each entry.
func Numbers(entries []queue.Entry) []int {
	list := []int{}
	for _, e := range entries {
		list = append(list, e.Message.Event)
	}
	return list
}

// Settle settles list and fails the test unless that is stored.
func Settle(tb testing.TB, s queue.Store, list ...queue.Settlement) {
	tb.Helper()
	if err := s.Settle(tb.Context(), list); err != nil {
		tb.Fatal(err)
	}
}

func expire(tb testing.TB, s queue.Store, e queue.Expiry) queue.Expired {
	tb.Helper()
	pass, err := s.BeginDrain(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	defer pass.End(true)
	done, err := pass.Expire(tb.Context(), e)
	if err != nil {
		tb.Fatal(err)
	}
	return done
}

// Raw is the value of a property that has no AMQP form.
func Raw(s string) json.RawMessage { return json.RawMessage(s) }

// canceled is a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Eventually polls until ok, for two minutes: the machine may be busy.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("waited in vain until %s", what)
		}
	}
}

// WantNumbers fails the test when got, described by what, differs from want.
func WantNumbers(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// Backlog asks s for its backlog.
func Backlog(tb testing.TB, s queue.Store) queue.Backlog {
	tb.Helper()
	b, err := s.Backlog(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
