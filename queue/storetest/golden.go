package storetest

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// TestRealMessagesComeBackToTheByte puts what a real hub's protonmsg sent.
func realMessagesComeBackToTheByte(t *testing.T, open Opener) {
	f, err := os.Open("../../testdata/golden/messages.extra0.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []message.Unsent
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 10<<20)
	for lines.Scan() {
		var line struct{ Address, Body string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		m := Message(len(list))
		m.Address, m.Body = line.Address, line.Body
		list = append(list, message.Unsent{Message: m})
	}
	if err := lines.Err(); err != nil || len(list) == 0 {
		t.Fatalf("%d messages read: %v", len(list), err)
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
