package admin

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"koji-relay/internal/inspect"
)

// Outlook is where the queue is heading.
type Outlook struct {
	// Shrinks is by how many messages a second the queue became shorter over the last minutes, whoever drains
	// it; negative where it grows.
	Shrinks float64 `json:"shrinks_per_second"`
	// Empty is when nothing is left at that pace; zero where it does not shrink.
	Empty time.Time `json:"empty,omitzero"`
	// Expires is when the oldest message will be older than max_age.
	Expires time.Time `json:"expires,omitzero"`
}

const (
	slotLength = 5 * time.Minute
	slotsKept  = 288 // a day of them
	// depthsKept samples of the depth cover sampleFor.
	depthsKept = int(sampleFor/sampleEvery) + 2
)

// slot is what was seen in slotLength: the most of each number.
type slot struct {
	number        int64 // of the slot since 1970; 0 for none
	queue, outbox int64
	oldest        time.Duration // in either
}

// stateSlot is the worst state of a broker in slotLength.
type stateSlot struct {
	number int64
	state  inspect.BrokerState
}

type depthSample struct {
	at    time.Time
	depth int64
}

// day remembers one day of a relay, in memory that does not grow. Its zero value is ready; it is safe for
// concurrent use.
type day struct {
	mu      sync.Mutex
	slots   [slotsKept]slot
	brokers map[string]*[slotsKept]stateSlot // those of the last status
	depths  []depthSample                    // of the last minutes, oldest first
}

func slotNumber(t time.Time) int64 { return t.Unix() / int64(slotLength/time.Second) }

// badness orders the states of a broker.
var badness = map[inspect.BrokerState]int{inspect.Up: 1, inspect.Connecting: 2, inspect.Stalled: 3,
	inspect.Down: 4}

// add takes note of a Status at a time. Times do not run backwards.
func (d *day) add(now time.Time, s *Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	number := slotNumber(now)
	at := number % slotsKept
	if s.Queue.Known || s.Outbox.Known {
		this := &d.slots[at]
		if this.number != number {
			*this = slot{number: number}
		}
		this.queue = max(this.queue, s.Queue.Depth)
		this.outbox = max(this.outbox, s.Outbox.Depth)
		for _, oldest := range []time.Time{s.Queue.Oldest, s.Outbox.Oldest} {
			if !oldest.IsZero() {
				this.oldest = max(this.oldest, now.Sub(oldest))
			}
		}
	}
	if s.Queue.Known {
		d.addDepth(now, s.Queue.Depth)
	}
	was := d.brokers
	d.brokers = make(map[string]*[slotsKept]stateSlot, len(s.Brokers))
	for i := range s.Brokers {
		name, state := s.Brokers[i].Name, s.Brokers[i].State
		slots := was[name]
		if slots == nil {
			slots = new([slotsKept]stateSlot)
		}
		d.brokers[name] = slots
		if slots[at].number != number || badness[state] > badness[slots[at].state] {
			slots[at] = stateSlot{number, state}
		}
	}
}

func (d *day) addDepth(now time.Time, depth int64) {
	if n := len(d.depths); n > 1 && now.Sub(d.depths[n-2].at) < sampleEvery {
		d.depths[n-1] = depthSample{now, depth} // the last one always is of now
		return
	}
	d.depths = append(d.depths, depthSample{now, depth})
	for len(d.depths) > depthsKept || len(d.depths) > 2 && now.Sub(d.depths[1].at) >= sampleFor {
		d.depths = slices.Delete(d.depths, 0, 1)
	}
}

// outlook judges the queue by the last minutes.
func (d *day) outlook(q *Queue) (o Outlook) {
	if !q.Known || q.Depth == 0 {
		return o
	}
	if q.MaxAge > 0 && !q.Oldest.IsZero() {
		o.Expires = q.Oldest.Add(q.MaxAge)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.depths) < 2 {
		return o
	}
	first, last := d.depths[0], d.depths[len(d.depths)-1]
	// What was measured for less than that is no pace.
	const shortest = 10 * time.Second
	took := last.at.Sub(first.at)
	if took < shortest {
		return o
	}
	o.Shrinks = float64(first.depth-last.depth) / took.Seconds()
	if o.Shrinks > 0 {
		o.Empty = last.at.Add(time.Duration(float64(last.depth) / o.Shrinks * float64(time.Second)))
	}
	return o
}

// seen gives the slots of the day until now, oldest first; a slot that nothing is known about has number 0.
func (d *day) seen(now time.Time) []slot {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]slot, slotsKept)
	for i := range all {
		number := slotNumber(now) - slotsKept + 1 + int64(i)
		if s := d.slots[number%slotsKept]; s.number == number {
			all[i] = s
		}
	}
	return all
}

// states gives the states of a broker likewise; empty where none is known.
func (d *day) states(broker string, now time.Time) []inspect.BrokerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]inspect.BrokerState, slotsKept)
	slots := d.brokers[broker]
	if slots == nil {
		return all
	}
	for i := range all {
		number := slotNumber(now) - slotsKept + 1 + int64(i)
		if s := slots[number%slotsKept]; s.number == number {
			all[i] = s.state
		}
	}
	return all
}

// Text says it for a person; empty where nothing is known.
func (o *Outlook) Text(now time.Time) string {
	var parts []string
	perMinute := func(f float64) string { return fmt.Sprintf("%.0f a minute", math.Ceil(f*60)) }
	switch {
	case o.Shrinks > 0:
		parts = append(parts, "shrinks by "+perMinute(o.Shrinks),
			"empty in "+inspect.Duration(max(time.Second, o.Empty.Sub(now).Truncate(time.Second))))
	case o.Shrinks < 0:
		parts = append(parts, "grows by "+perMinute(-o.Shrinks))
	}
	if left := o.Expires.Sub(now).Truncate(time.Second); !o.Expires.IsZero() && left > 0 {
		parts = append(parts, "the oldest is given up in "+inspect.Duration(left))
	} else if !o.Expires.IsZero() {
		parts = append(parts, "the oldest is older than max_age")
	}
	return strings.Join(parts, ", ")
}
