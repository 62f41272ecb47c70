package integration

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	// readyAllowance is how long a relay that hands commits back may say that it is ready.
	readyAllowance = 5 * time.Second
	// refusalsFollow is the longest time between two refusals that count as one time: in a longer one the relay
	// may have been well.
	refusalsFollow = 3 * time.Second
	// cutOffBuild is a build that no worker has.
	cutOffBuild = 99
)

// cutOff takes all brokers and both databases from the relays, behind the schedule, until each has handed
// back commits for longer than readyAllowance. So each run has a time in which a relay that lies about being
// ready is found, whatever the seed has drawn. hub posts to both relays.
func (c *chaos) cutOff(hub *ledger) {
	for _, w := range c.ways {
		w.Stop()
	}
	began := time.Now()
	var posting sync.WaitGroup
	for i := range c.relays {
		posting.Go(func() { c.askInVain(hub, i) })
	}
	posting.Wait()
	for i := range c.ways {
		joinWay(c, step{number: i})
	}
	c.Logf("the relays were cut off from everything for %.1f s", time.Since(began).Seconds())
}

// askInVain posts to relay i until it has handed commits back for longer than readyAllowance and took none.
func (c *chaos) askInVain(hub *ledger, i int) {
	const enough = readyAllowance + 2*time.Second // so that the witness has asked before the last refusal
	var first time.Time                           // refusal without a commit taken since
	err := poll(time.Minute, func() error {
		status := hub.handOver(c.relays[i], cutOffBuild, 1)
		now := time.Now()
		switch status {
		case http.StatusServiceUnavailable:
			c.account.heard(c.account.back, i, now)
			if first.IsZero() {
				first = now
			}
			if now.Sub(first) > enough {
				return nil
			}
		case http.StatusOK:
			c.account.heard(c.account.took, i, now)
			first = time.Time{}
		}
		return fmt.Errorf("the last answer was %d", status)
	})
	if err != nil {
		c.Errorf("relay %d did not hand commits back for %v although it was cut off from everything: %v", i,
			enough, err)
	}
}

// heard notes that relay i has answered at a time: in a.took or a.back.
func (a *account) heard(answers map[int][]time.Time, i int, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answers[i] = append(answers[i], at)
}

// readyMeansTaken: a relay that hands commits back, and takes none meanwhile, must say within readyAllowance
// that it is not ready.
func (c *chaos) readyMeansTaken() {
	for i, w := range c.witnesses {
		var first, last time.Time // since when the relay has been ready and yet refusing; the refusal before
		for _, at := range c.account.back[i] {
			took := func(t time.Time) bool { return t.After(first) && t.Before(at) }
			if at.Sub(last) > refusalsFollow || !w.readyThrough(first, at) ||
				slices.ContainsFunc(c.account.took[i], took) {
				first = at
			}
			last = at
			if at.Sub(first) > readyAllowance {
				c.Errorf("relay %d handed back commits from %s to %s and said that it was ready", i,
					first.Format(time.TimeOnly), at.Format(time.TimeOnly))
				break
			}
		}
	}
}

func TestChaosFindsARelayThatIsNotReady(t *testing.T) {
	t.Parallel()
	const ready, notReady = true, false
	for _, row := range []struct {
		name  string
		back  []int // seconds at which a commit is handed back
		took  []int
		said  map[int]bool // by second: ready
		wrong bool
	}{
		{"ready, and refuses for long", []int{1, 3, 5, 7}, nil, map[int]bool{2: ready, 4: ready, 6: ready}, true},
		{"not ready", []int{1, 3, 5, 7}, nil, map[int]bool{2: ready, 4: notReady, 6: notReady}, false},
		{"not ready for a moment only", []int{1, 3, 5, 7, 9, 11}, nil,
			map[int]bool{2: notReady, 4: ready, 10: ready}, true},
		{"refuses for a short time", []int{1, 3, 5}, nil, map[int]bool{2: ready, 4: ready}, false},
		{"takes some", []int{1, 3, 5, 7}, []int{4}, map[int]bool{2: ready, 4: ready, 6: ready}, false},
		{"has refused long before", []int{1, 7}, nil, map[int]bool{2: ready, 4: ready, 6: ready}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			quiet := &recorder{TB: t}
			c := &chaos{TB: quiet}
			c.account = newAccount(c)
			began := time.Now()
			at := func(second int) time.Time { return began.Add(time.Duration(second) * time.Second) }
			for i := range c.witnesses {
				c.witnesses[i] = &witness{counted: newCounted()}
			}
			for second, ready := range row.said {
				c.witnesses[1].said = append(c.witnesses[1].said, readiness{at: at(second), ready: ready})
			}
			for _, second := range row.back {
				c.account.heard(c.account.back, 1, at(second))
			}
			for _, second := range row.took {
				c.account.heard(c.account.took, 1, at(second))
			}
			c.readyMeansTaken()
			if quiet.failed != row.wrong {
				t.Errorf("the run failed: %v, want %v", quiet.failed, row.wrong)
			}
		})
	}
}
