package queue

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"

	"koji-relay/internal/message"
)

// TestRealMessagesComeBackToTheByte puts what a real hub's protonmsg sent.
func TestRealMessagesComeBackToTheByte(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../testdata/golden/messages.extra0.jsonl")
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
		m := aMessage(len(list))
		m.Address, m.Body = line.Address, line.Body
		list = append(list, message.Unsent{Message: m})
	}
	if err := lines.Err(); err != nil || len(list) == 0 {
		t.Fatalf("%d messages read: %v", len(list), err)
	}
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := open(Limits{})
		put(t, s, list...)
		got := drained(t, s)
		if len(got) != len(list) {
			t.Fatalf("%d of %d messages came back", len(got), len(list))
		}
		for i, e := range got {
			if want := list[i].Message; e.Message.Body != want.Body || e.Message.Address != want.Address {
				t.Errorf("message %d changed", i)
			}
		}
	})
}
