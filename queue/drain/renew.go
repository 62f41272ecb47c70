package drain

import (
	"context"
	"maps"
	"slices"
	"time"

	"koji-relay/queue"
)

// An address that takes messages again gets those that were set aside for its sake: a few at first, and more
// each time that all of them were accepted. One that takes some and turns away others gets no more than a few
// in a while.
const (
	firstRenewal, mostRenewed = 16, 16384
	// renewPause is between two renewals of an address, flapPause after one that was turned away in part.
	renewPause, flapPause = time.Second, 10 * time.Second
	// renewShare bounds the share of the time that the store may take for it, where much is set aside.
	renewShare = 50
	// eachPause is between two renewals of one message of each address.
	eachPause = time.Minute
)

// renewal is what the drain knows of an address that takes messages again.
type renewal struct {
	wanted    bool // it accepted a message, and more may be set aside
	limit     int  // of the last renewal; 0 = begin anew
	notBefore time.Time
}

// AddressWorks says that a broker has accepted a message for an address that was in trouble. It never blocks.
func (d *Drainer) AddressWorks(address string) {
	d.mu.Lock()
	d.renewalOf(address).wanted = true
	d.mu.Unlock()
	d.Wake()
}

// BrokerUp is Wake for a broker that came up. What was turned away before may be taken now: one message of
// each address finds out.
func (d *Drainer) BrokerUp() {
	d.mu.Lock()
	d.each.wanted = true
	d.mu.Unlock()
	d.Wake()
}

// renewalOf gives what is known of an address. d.mu is held.
func (d *Drainer) renewalOf(address string) *renewal {
	r := d.renewals[address]
	if r == nil {
		r = &renewal{}
		d.renewals[address] = r
	}
	return r
}

// retaken notes what became of a message that had been set aside. d.mu is held.
func (d *Drainer) retaken(address string, s queue.Settlement) {
	switch r := d.renewals[address]; {
	case s.Action == queue.Forget:
		d.renewalOf(address).wanted = true
	case r != nil && r.limit > 0 && queue.ForAddress(s.Attempts, s.Reason):
		r.limit, r.notBefore = 0, time.Now().Add(flapPause)
	}
}

// renewalIn is the time until something is to be renewed, at most eachPause.
func (d *Drainer) renewalIn() time.Duration {
	if !d.draining() {
		return eachPause
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	in := eachPause
	for _, r := range append(slices.Collect(maps.Values(d.renewals)), &d.each) {
		if r.wanted {
			in = min(in, time.Until(r.notBefore))
		}
	}
	return in
}

// renew renews what is to be renewed by now. What fails is tried again later: each message has a time of its
// own, too.
func (d *Drainer) renew(ctx context.Context, o *Options) {
	now := time.Now()
	d.mu.Lock()
	todo := map[string]int{}
	plan := func(address string, r *renewal, limit int) {
		if r.wanted && !now.Before(r.notBefore) {
			todo[address], r.wanted = limit, false
		}
	}
	plan("", &d.each, 1)
	for address, r := range d.renewals {
		if !r.wanted && now.After(r.notBefore.Add(eachPause)) {
			delete(d.renewals, address)
			continue
		}
		plan(address, r, min(max(firstRenewal, 4*r.limit), mostRenewed))
	}
	d.mu.Unlock()
	for address, limit := range todo {
		began := time.Now()
		n, err := d.store.Renew(ctx, address, limit)
		d.renewed(address, limit, n, time.Since(began), err)
		switch {
		case err == nil:
			d.unrenewed.Recovered(o.Logger, "messages that were set aside are renewed again")
		case ctx.Err() == nil && d.unrenewed.Failed(err):
			o.Logger.Warn("messages that were set aside wait for their own time", "error", err)
		}
	}
}

// renewed notes a renewal of n messages.
func (d *Drainer) renewed(address string, limit, n int, took time.Duration, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, pause := &d.each, eachPause
	if address != "" {
		r, pause = d.renewalOf(address), renewPause
		if r.limit = limit; n == 0 {
			r.limit = 0
		}
	}
	if err != nil {
		r.wanted, r.limit, pause = true, 0, eachPause
	}
	r.notBefore = time.Now().Add(max(pause, renewShare*took))
}
