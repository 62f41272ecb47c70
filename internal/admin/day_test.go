package admin

import (
	"strings"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// seenAt is a Status of one moment.
func seenAt(depth int64, oldest time.Time, state inspect.BrokerState) *Status {
	s := &Status{Brokers: []inspect.Broker{{Name: "b", State: state}},
		Queue: Queue{Known: true, MaxAge: 24 * time.Hour}}
	s.Queue.Depth, s.Queue.Oldest = depth, oldest
	return s
}

func TestDayKeepsTheWorstOfEachFiveMinutesAndNothingOlder(t *testing.T) {
	t.Parallel()
	var d day
	start := time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)
	d.add(start, seenAt(900, start.Add(-time.Hour), inspect.Down)) // a day before the end: gone by then
	now := start.Add(24 * time.Hour)
	d.add(now.Add(-10*time.Minute), seenAt(5, now.Add(-20*time.Minute), inspect.Stalled))
	d.add(now.Add(-9*time.Minute), seenAt(70, now.Add(-15*time.Minute), inspect.Up))
	d.add(now, seenAt(3, now, inspect.Up))
	slots, states := d.seen(now), d.states("b", now)
	if len(slots) != slotsKept || len(states) != slotsKept {
		t.Fatalf("%d slots and %d states", len(slots), len(states))
	}
	known := 0
	for _, s := range slots {
		if s.number != 0 {
			known++
		}
	}
	worst, last := slots[slotsKept-3], slots[slotsKept-1]
	if known != 2 || worst.queue != 70 || worst.oldest != 10*time.Minute || last.queue != 3 {
		t.Errorf("%d slots are known, %+v and %+v among them", known, worst, last)
	}
	if states[slotsKept-3] != inspect.Stalled || states[slotsKept-2] != "" ||
		states[slotsKept-1] != inspect.Up ||
		states[0] != "" {
		t.Errorf("the states are %q", states[slotsKept-3:])
	}
	other := seenAt(0, time.Time{}, inspect.Up)
	other.Brokers[0].Name = "another"
	d.add(now, other)
	if d.states("b", now)[slotsKept-1] != "" || len(d.brokers) != 1 {
		t.Errorf("a broker that is gone is remembered: %d", len(d.brokers))
	}
}

func TestOutlookOfTheQueue(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name      string
		depth     func(second int64) int64
		text      string
		forbidden string
	}{
		{"shrinks", func(s int64) int64 { return 10_000 - 10*s }, "shrinks by 600 a minute, empty in 6 min",
			"grows"},
		{"grows", func(s int64) int64 { return 1000 + 5*s }, "grows by 300 a minute", "empty"},
		{"stands", func(int64) int64 { return 77 }, "the oldest is given up in 22 h", "empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var d day
			now := start
			for s := int64(0); s <= 600; s += 2 {
				now = start.Add(time.Duration(s) * time.Second)
				d.add(now, seenAt(c.depth(s), start.Add(-time.Hour), inspect.Up))
				d.add(now.Add(100*time.Millisecond), seenAt(c.depth(s), start.Add(-time.Hour), inspect.Up))
			}
			if len(d.depths) > depthsKept {
				t.Errorf("%d depths are kept", len(d.depths))
			}
			q := &seenAt(c.depth(600), start.Add(-time.Hour), inspect.Up).Queue
			o := d.outlook(q)
			if text := o.Text(now); !strings.Contains(text, c.text) || strings.Contains(text, c.forbidden) {
				t.Errorf("it says %q", text)
			}
			if want := start.Add(23 * time.Hour); !o.Expires.Equal(want) {
				t.Errorf("the oldest expires at %v, want %v", o.Expires, want)
			}
		})
	}
	var empty day
	if o := empty.outlook(&seenAt(3, time.Time{}, inspect.Up).Queue); o != (Outlook{}) {
		t.Errorf("of a queue that was just seen: %+v", o)
	}
}

func TestExpiryIsAReasonInTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for age, want := range map[time.Duration]bool{17 * time.Hour: false, 19 * time.Hour: true,
		25 * time.Hour: true} {
		s := runningStatus()
		s.Generated = now
		s.Queue.MaxAge, s.Queue.Depth, s.Queue.Oldest = 24*time.Hour, 1, now.Add(-age)
		s.Outlook = new(day).outlook(&s.Queue)
		s.judge(now)
		found := false
		for _, r := range s.Reasons {
			found = found || r.Code == "EXPIRES_SOON"
		}
		if found != want {
			t.Errorf("at an age of %v: %v", age, s.Reasons)
		}
	}
}
