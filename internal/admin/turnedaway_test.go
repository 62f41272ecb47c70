package admin

import (
	"strings"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// What is turned away says why, in a line: the most frequent reason, and of how many messages.
func TestTurnedAwaySaysWhy(t *testing.T) {
	t.Parallel()
	const unbound = "released by b1:5672: no queue is bound to the topic"
	for _, c := range []struct {
		name        string
		aside, most int64
		reason      string
		want        string
	}{
		{"one reason", 3, 3, unbound,
			"brokers turned away 3 messages; each is tried again. The reason: " + unbound},
		{"several reasons", 12, 10, unbound,
			"brokers turned away 12 messages; each is tried again. The reason of 10: " + unbound},
		{"no reason", 1, 1, "", "brokers turned away 1 message; each is tried again"},
		{"a peer's escape sequences", 1, 1, "rejected: \x1b[2J\nx",
			"brokers turned away 1 message; each is tried again. The reason: rejected: \uFFFD[2J x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := Status{Phase: Running, Generated: time.Now(), Queue: Queue{Enabled: true, Usable: true,
				Statistics: inspect.Statistics{Depth: c.aside, SetAside: c.aside, AsideReason: c.reason,
					AsideFor: c.most}}}
			s.judge(time.Now())
			for _, r := range s.Reasons {
				if r.Code == "TURNED_AWAY" {
					if r.Text != c.want {
						t.Errorf("it says %q, want %q", r.Text, c.want)
					}
					return
				}
			}
			t.Errorf("TURNED_AWAY is not among %+v", s.Reasons)
		})
	}
	s := Queue{Statistics: inspect.Statistics{SetAside: 1, AsideFor: 1, AsideReason: strings.Repeat("é", 5000)}}
	if text := s.turnedAway(); len(text) > 300 {
		t.Errorf("a reason of 10 kB gives %d bytes", len(text))
	}
}

// That a broker lets us in does not show that it takes messages.
func TestFirstLineSaysThatNothingWasTried(t *testing.T) {
	t.Parallel()
	up, untried := inspect.Broker{State: inspect.Up}, inspect.Broker{State: inspect.Up, Untried: true}
	const taken, sent = "Every commit is taken. No message has been tried since the broker was connected.",
		"Every commit is taken and sent."
	for _, c := range []struct {
		brokers []inspect.Broker
		want    string
	}{
		{[]inspect.Broker{up}, sent},
		{[]inspect.Broker{untried}, taken},
		{[]inspect.Broker{untried, untried}, taken},
		{[]inspect.Broker{untried, up}, sent},
	} {
		s := Status{Phase: Running, Generated: time.Now(), Brokers: c.brokers,
			Queue: Queue{Enabled: true, Usable: true}}
		s.judge(time.Now())
		if word, sentence := s.Summary(); s.State != OK || word != "All is well" || sentence != c.want {
			t.Errorf("of %+v it says %s. %s", c.brokers, word, sentence)
		}
	}
}
