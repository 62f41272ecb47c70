package storetest

import (
	"testing"

	"koji-relay/internal/golden"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// TestRealMessagesComeBackToTheByte puts what a real hub's protonmsg sent.
func realMessagesComeBackToTheByte(t *testing.T, open Opener) {
	var list []message.Unsent
	for i, real := range golden.Messages(t, "extra0") {
		m := Message(i)
		m.Address, m.Body = real.Address, real.Body
		list = append(list, message.Unsent{Message: m})
	}
	s := open(t, queue.Limits{})
	Put(t, s, list...)
	got := Drained(t, s)
	if len(got) != len(list) {
		t.Fatalf("%d of %d messages came back", len(got), len(list))
	}
	for i, e := range got {
		if want := list[i].Message; e.Message.Body != want.Body || e.Message.Address != want.Address {
			t.Errorf("message %d changed", i)
		}
	}
}
