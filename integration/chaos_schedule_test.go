package integration

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// kindOfPart names what a fault happens to. Parts of one kind are numbered from 0.
type kindOfPart string

const (
	brokerPart   kindOfPart = "broker"   // in the order of urls
	wayPart      kindOfPart = "way"      // the network in front of the brokers, then of the two databases
	relayPart    kindOfPart = "relay"    // two processes of one fleet
	databasePart kindOfPart = "database" // PostgreSQL and its standby
	hubPart      kindOfPart = "hub"      // processes of hub workers
	clockPart    kindOfPart = "clock"    // of relay 0, of relay 1, of the databases
	adminPart    kindOfPart = "admin"    // an administrator at a terminal
)

// partsOf is how many there are of each kind.
var partsOf = map[kindOfPart]int{
	brokerPart: 3, wayPart: 5, relayPart: 2, databasePart: 1, hubPart: 4, clockPart: 3, adminPart: 1,
}

// fault is one thing that goes wrong, or that somebody does. While it lasts, and until the part had time to
// come back, nothing else happens to that part.
type fault struct {
	name        string
	part        kindOfPart
	weight      int
	least, most time.Duration // how long it lasts
	rest        time.Duration // what the part needs to come back
	begin       func(*chaos, step)
	end         func(*chaos, step) // nil: begin is all
}

// step is one fault of a schedule.
type step struct {
	*fault
	number int           // of the part
	at     time.Duration // from the start of the run
	lasts  time.Duration
	dice   uint64 // what begin and end draw from
}

func (s step) String() string {
	return fmt.Sprintf("%6.1f s  %s %d: %s for %.1f s", s.at.Seconds(), s.part, s.number, s.name,
		s.lasts.Seconds())
}

// draw is a random number below n that belongs to the step, whatever else happened in the run.
func (s step) draw(n int) int { return rand.New(rand.NewPCG(s.dice, uint64(n))).IntN(n) }

// schedule is what goes wrong in a run of this length, in the order of time. It depends on nothing but its
// arguments.
func schedule(seed uint64, length time.Duration, faults []fault) []step {
	dice := rand.New(rand.NewPCG(seed, 0x6b6f6a69))
	free := make(map[string]time.Duration) // part -> when it can be chosen again
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	var steps []step
	for at := time.Second; at < length; at += time.Duration(200+dice.IntN(1300)) * time.Millisecond {
		n := dice.IntN(total)
		i := 0
		for ; n >= faults[i].weight; i++ {
			n -= faults[i].weight
		}
		f := &faults[i]
		s := step{fault: f, number: dice.IntN(partsOf[f.part]), at: at, dice: dice.Uint64(), lasts: f.least}
		if f.most > f.least {
			s.lasts += time.Duration(dice.Int64N(int64(f.most - f.least)))
		}
		part := fmt.Sprint(f.part, s.number)
		if free[part] > at || at+s.lasts > length && len(steps) > 0 {
			continue
		}
		free[part] = at + s.lasts + f.rest
		steps = append(steps, s)
	}
	return steps
}

// moment is the begin or the end of a step.
type moment struct {
	at time.Duration
	step
	ends bool
}

// moments are the begins and ends of steps in the order of time.
func moments(steps []step) []moment {
	var all []moment
	for _, s := range steps {
		all = append(all, moment{s.at, s, false})
		if s.fault.end != nil {
			all = append(all, moment{s.at + s.lasts, s, true})
		}
	}
	slices.SortStableFunc(all, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	return all
}

func TestChaosScheduleBelongsToItsSeed(t *testing.T) {
	t.Parallel()
	text := func(seed uint64) (lines []string) {
		for _, s := range schedule(seed, 2*time.Minute, faults) {
			lines = append(lines, s.String())
		}
		return lines
	}
	for seed := range uint64(50) {
		steps := schedule(seed, 2*time.Minute, faults)
		if !slices.Equal(text(seed), text(seed)) {
			t.Errorf("seed %d gives two schedules", seed)
		}
		if slices.Equal(text(seed), text(seed+1)) {
			t.Errorf("seeds %d and %d give the same schedule", seed, seed+1)
		}
		if len(steps) < 30 {
			t.Errorf("seed %d: %d steps in two minutes, too few to be chaos", seed, len(steps))
		}
		until := make(map[string]time.Duration)
		for _, s := range steps {
			part := fmt.Sprint(s.part, s.number)
			if s.at < until[part] {
				t.Errorf("seed %d: %v begins before the last one of that part is over", seed, s)
			}
			until[part] = s.at + s.lasts + s.rest
		}
	}
}
