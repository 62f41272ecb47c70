package demo

import (
	"context"
	"slices"
	"sync"
	"time"
)

// account compares what the hub handed over with what the subscriber received, by message-id. Its methods may
// be called concurrently.
type account struct {
	mu       sync.Mutex
	expected map[string]bool // ids of messages whose commit was answered 200
	received map[string]int  // how often each id came
	copies   int             // all messages that came
	commits  int
	again    int             // hand-overs that were not answered 200
	took     []time.Duration // of each hand-over, in order
	changed  chan struct{}   // closed at the next arrival
}

func newAccount() *account {
	return &account{expected: map[string]bool{}, received: map[string]int{}, changed: make(chan struct{})}
}

func (a *account) handedOver(ids []string, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		a.expected[id] = true
	}
	a.commits++
	a.took = append(a.took, took)
}

func (a *account) notTaken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.again++
}

func (a *account) arrived(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.received[id]++
	a.copies++
	close(a.changed)
	a.changed = make(chan struct{})
}

// balance is the account at one moment.
type balance struct {
	commits    int
	again      int
	handedOver int // messages
	received   int // of those, different ones
	duplicates int // copies beyond the first
	lost       []string
	strangers  int // different messages that nobody handed over
	took       []time.Duration
}

func (a *account) balance() balance {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := balance{commits: a.commits, again: a.again, handedOver: len(a.expected), took: slices.Clone(a.took)}
	for id := range a.expected {
		if a.received[id] == 0 {
			b.lost = append(b.lost, id)
		}
	}
	slices.Sort(b.lost)
	b.received = b.handedOver - len(b.lost)
	b.strangers = len(a.received) - b.received
	b.duplicates = a.copies - len(a.received)
	return b
}

// waitFor blocks until at most so many messages are missing, or none has come for the time of quiet, or ctx
// ends; only the last is an error. It calls tick every now and then.
func (a *account) waitFor(ctx context.Context, missing func() int, quiet time.Duration, tick func()) error {
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		if len(a.balance().lost) <= missing() {
			return nil
		}
		select {
		case <-changed:
			silence.Reset(quiet)
		case <-beat.C:
			tick()
		case <-silence.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func none() int { return 0 }

// percentile gives the value that so many percent of the durations do not exceed; 0 without any.
func percentile(durations []time.Duration, percent int) time.Duration {
	if len(durations) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(durations))
	return sorted[(len(sorted)*percent+99)/100-1]
}
