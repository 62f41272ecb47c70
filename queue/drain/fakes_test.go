package drain_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// fakeSender takes everything, unless told otherwise.
type fakeSender struct {
	// mu guards the fields below.
	mu       sync.Mutex
	down     bool
	outcome  func(message.Message) message.Outcome // nil: accepted
	delay    time.Duration
	got      []string // message-ids, in the order of sending
	batches  [][]int
	canceled bool
	silent   bool
}

func (f *fakeSender) SendPatiently(ctx context.Context, list []message.Message) []message.Outcome {
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			f.mu.Lock()
			f.canceled = true
			f.mu.Unlock()
			return make([]message.Outcome, len(list))
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	outcomes := make([]message.Outcome, len(list))
	var batch []int
	for i, m := range list {
		batch = append(batch, m.Event)
		outcomes[i] = message.Outcome{State: message.Accepted, Next: message.Done}
		if f.down {
			outcomes[i] = message.Outcome{}
		} else if f.outcome != nil {
			outcomes[i] = f.outcome(m)
		}
		f.got = append(f.got, m.ID)
	}
	f.batches = append(f.batches, batch)
	return outcomes
}

// Answers grow with time, unless the sender is silent.
func (f *fakeSender) Answers() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent {
		return 0
	}
	return time.Now().UnixNano()
}

func (f *fakeSender) Usable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.down
}

func (f *fakeSender) set(change func(*fakeSender)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeSender) numbers() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Concat(f.batches...)
}

// fakeStore keeps the contract in memory; the time is that of the test's bubble.
type fakeStore struct {
	queue.Store // panics when a method is called that the drain has no business with

	// mu guards the fields below.
	mu        sync.Mutex
	entries   []fakeEntry
	held      bool
	lost      bool
	settleErr error
	nextErr   error
	nextCalls int
	passes    int
	complete  []bool
	expiries  int
	renewals  []int // their limits
	renewErr  error
}

type fakeEntry struct {
	queue.Entry
	next time.Time
}

func (f *fakeStore) add(list ...message.Unsent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range list {
		f.entries = append(f.entries, fakeEntry{Entry: queue.Entry{Message: u.Message}})
	}
}

func (f *fakeStore) set(change func(*fakeStore)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeStore) left() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []int{}
	for _, e := range f.entries {
		list = append(list, e.Message.Event)
	}
	return list
}

func (f *fakeStore) Settle(_ context.Context, list []queue.Settlement) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.settleErr != nil {
		return f.settleErr
	}
	for _, s := range list {
		i := slices.IndexFunc(f.entries, func(e fakeEntry) bool { return e.Message.ID == s.ID })
		switch {
		case i < 0:
		case s.Action == queue.SetAside:
			f.entries[i].next, f.entries[i].Attempts, f.entries[i].Tries = time.Now().Add(s.Delay), s.Attempts, s.Tries
		default:
			f.entries = slices.Delete(f.entries, i, i+1)
		}
	}
	return nil
}

func (f *fakeStore) Renew(_ context.Context, address string, limit int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renewals = append(f.renewals, limit)
	of := map[string]int{}
	n := 0
	for i := range f.entries {
		e := &f.entries[i]
		at := e.Message.Address
		if e.next.After(time.Now()) && (address == "" || address == at) && of[at] < limit {
			e.next = time.Now()
			of[at]++
			n++
		}
	}
	return n, f.renewErr
}

// asked gives the limits of all renewals.
func (f *fakeStore) asked() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.renewals)
}

func (f *fakeStore) BeginDrain(context.Context) (queue.Pass, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held {
		return nil, queue.ErrBusy
	}
	f.held = true
	f.passes++
	return &fakePass{store: f, given: map[string]bool{}}, nil
}

type fakePass struct {
	store *fakeStore
	given map[string]bool
}

func (p *fakePass) Next(_ context.Context, l queue.BatchLimits) ([]queue.Entry, error) {
	f := p.store
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextCalls++
	if f.nextErr != nil {
		return nil, f.nextErr
	}
	var batch []queue.Entry
	for _, e := range f.entries {
		if len(batch) < l.Messages && !p.given[e.Message.ID] && !e.next.After(time.Now()) {
			p.given[e.Message.ID] = true
			batch = append(batch, e.Entry)
		}
	}
	return batch, nil
}

func (p *fakePass) Held() bool {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	return !p.store.lost
}

func (p *fakePass) Expire(context.Context, queue.Expiry) (queue.Expired, error) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.expiries++
	return queue.Expired{}, nil
}

func (p *fakePass) End(complete bool) {
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.held = false
	p.store.complete = append(p.store.complete, complete)
}
