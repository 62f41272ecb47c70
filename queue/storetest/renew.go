package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

func renewMakesDueWhatWasSetAsideForItsAddress(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	// The outcomes of a real sender: released, full, a refused address, and two that are about the message.
	outcomes := []message.Outcome{
		{State: message.Released, Next: message.Later, Reason: "released: no queue is bound to the topic"},
		{State: message.Unknown, Next: message.Later, Reason: "no credit for the address"},
		{State: message.NotSent, Next: message.Count, Reason: message.AddressRefused + "amqp:unauthorized-access"},
		{State: message.Rejected, Next: message.Count, Reason: "rejected: x: " + message.AddressRefused + "forged"},
		{State: message.Unknown, Next: message.Count, Reason: "sent alone: connection lost"},
	}
	var all []message.Unsent
	for i := range 10 {
		u := message.Unsent{Message: Message(i), Outcome: outcomes[i%5]}
		u.Outcome.Broker = "b1:5672"
		if i >= 5 {
			u.Message.Address = "task.open"
		}
		all = append(all, u)
	}
	Put(t, s, all...)
	renew := func(address string, limit, want int) {
		t.Helper()
		if n, err := s.Renew(t.Context(), address, limit); err != nil || n != want {
			t.Errorf("renew %d of %q gave %d (%v), want %d", limit, address, n, err, want)
		}
	}
	due := func(want ...int) {
		t.Helper()
		got := Numbers(Drained(t, s))
		slices.Sort(got)
		WantNumbers(t, "due", got, want...)
	}
	due()
	renew("other", 10, 0)
	due()
	renew("build.tag", 10, 3)
	due(0, 1, 2)
	renew("build.tag", 10, 0) // they are due already
	renew("", 1, 1)
	if got := len(Drained(t, s)); got != 4 {
		t.Errorf("%d messages are due, want 4: one more of task.open", got)
	}
	renew("", 10, 2)
	due(0, 1, 2, 5, 6, 7)
	for _, it := range List(t, s, inspect.QueueBox, inspect.ListOptions{}) {
		if n := it.Message.Event % 5; (n > 2) != (it.Attempts == 1) {
			t.Errorf("message %d has %d attempts: %s", it.Message.Event, it.Attempts, it.Reason)
		}
	}
	// Many at once, the next ones first.
	var many []queue.Settlement
	Put(t, s, Unsent(100, 100+2*queue.ListChunk)...)
	for i := range 2*queue.ListChunk + 1 {
		many = append(many, queue.Settlement{ID: Message(100 + i).ID, Action: queue.SetAside, Tries: 1,
			Delay: time.Hour + time.Duration(i)*time.Second, Reason: fmt.Sprintf("released %d", i)})
	}
	Settle(t, s, many...)
	renew("build.tag", queue.ListChunk+1, queue.ListChunk+1)
	got := Numbers(Drained(t, s))
	if last := slices.Max(got); len(got) != 6+queue.ListChunk+1 || last != 100+queue.ListChunk {
		t.Errorf("%d messages are due, up to number %d; want %d and %d", len(got), last, 6+queue.ListChunk+1,
			100+queue.ListChunk)
	}
}
