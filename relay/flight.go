package relay

import (
	"context"
	"slices"
	"time"
)

// How many messages of one patient call are with a broker at a time: what the hub hands over meanwhile waits
// behind them. While it does so they are fewer.
const (
	patientWindow = 64
	besideHub     = 8
	// hubTime is for how long after a message of the hub its next one is expected.
	hubTime = time.Second
)

// flight is the attempt to send some messages of a batch on one broker. They go all at once; those of a
// patient call as a window that slides over them; with PreserveOrder each when it cannot overtake those
// before it.
type flight struct {
	*batch
	o       candidate
	which   []int         // of batch.msgs
	began   time.Duration // since conn.born
	next    int           // index in which: the first that is not submitted
	results *results
	sent    []*delivery
	over    int // of sent: those before it are final
}

// try tries the open messages named by which on one broker, and takes those with a final result off b.open.
// It may end early, without a result for the last ones, when the broker is not up any more or, with
// PreserveOrder, when they would overtake another.
func (b *batch) try(ctx context.Context, o candidate, wait time.Duration, which []int) {
	if len(which) == 0 {
		return // a probe was all
	}
	// which may be b.open, which changes below.
	f := &flight{batch: b, o: o, which: slices.Clone(which), began: o.c.now()}
	f.results = newResults(len(which))
	f.await(ctx, wait)
	b.sent = append(b.sent, f.sent...)
	for n, i := range f.which {
		b.last[i] = worse(b.last[i], f.results.all[n])
		if v := f.results.all[n].verdict; b.r.opts.PreserveOrder && (v == unanswered || v == lost) {
			b.halted = true
		}
	}
	still := b.open[:0]
	for _, i := range b.open {
		if !b.final(b.last[i]) {
			still = append(still, i)
		}
	}
	b.open = still
}

// stepwise reports whether not all messages are submitted at once.
func (f *flight) stepwise() bool {
	return (f.patient || f.r.opts.PreserveOrder) && !f.o.probe
}

// fill submits what may be with the broker now.
func (f *flight) fill(ctx context.Context) {
	if f.next == len(f.which) {
		return
	}
	if f.stepwise() && (ctx.Err() != nil || !f.o.b.upWith(f.o.c)) {
		f.stop()
		return
	}
	ordered, most := f.r.opts.PreserveOrder, len(f.which)
	if f.patient && f.stepwise() {
		most = f.o.c.patientWindow()
	}
	for p := f.results.now(); f.next < len(f.which) && f.next-p.in < most; p = f.results.now() {
		if ordered && p.uncertain {
			for _, i := range f.which[f.next:] {
				f.last[i] = worse(f.last[i], result{reason: behindUnknown})
			}
			f.stop()
			return
		}
		within, ok := f.mayFollow(p)
		if !ok {
			return
		}
		f.submit(within)
	}
}

// stop submits no more.
func (f *flight) stop() {
	f.results.forgo(len(f.which) - f.next)
	f.which = f.which[:f.next]
}

// mayFollow reports whether the next message may be submitted while those before it have come as far as p.
// With PreserveOrder messages to one address follow each other, since a link keeps their order. Another
// address waits until those before it are settled: one link may overtake another. With a broker that deals
// with a session in order it is enough that they are written to it, if all are in one session; within is that
// session then.
func (f *flight) mayFollow(p progress) (within any, ok bool) {
	if !f.r.opts.PreserveOrder || p.in == f.next {
		return nil, true
	}
	address := f.msgs[f.which[f.next]].Address
	if last := f.sent[len(f.sent)-1]; last.msg.Address == address {
		return last.within, true
	}
	if !f.patient || !f.o.c.Peer.KeepsSessionOrder() || p.gone < f.next {
		return nil, false
	}
	for f.over < len(f.sent) && f.sent[f.over].state().final() {
		f.over++
	}
	within = f.o.c.sessionOf(address)
	for _, d := range f.sent[f.over:] {
		if d.session() != within {
			return nil, false
		}
	}
	return within, within != nil
}

// submit gives the next message to the link of its address.
func (f *flight) submit(within any) {
	n, i := f.next, f.which[f.next]
	f.next++
	m := &f.msgs[i]
	if f.patient {
		if r, there := f.r.unacked.with(m.ID, f.o.c); there {
			f.results.put(n, r)
			return
		}
	}
	f.asked[i]++
	d := &delivery{
		msg: m, size: int64(m.Size()), patient: f.patient, probe: f.o.probe, results: f.results, index: n,
		since: f.began, within: within,
	}
	if r, ok := f.o.c.submit(d); !ok {
		r.broker = f.o.c.name
		f.results.put(n, r)
		return
	}
	f.sent = append(f.sent, d)
}

// await submits, and returns when all results are in. It sees to that when the time is over: each message of
// a patient call has wait for itself, others have it together.
func (f *flight) await(ctx context.Context, wait time.Duration) {
	end := time.NewTimer(wait)
	defer end.Stop()
	// Patient callers look as early as others for what is not answered: that spares the hub from finding out.
	look := time.NewTicker(max(min(wait, f.r.opts.HandoffTimeout), 1))
	defer look.Stop()
	var moved <-chan struct{}
	if f.stepwise() {
		moved = f.results.moved
	}
	for {
		f.fill(ctx)
		waiting, reason := true, noAnswer
		select {
		case <-f.results.done:
			return
		case <-moved:
		case <-look.C:
			f.r.checkAnswers(f.o, f.sent, f.patient)
			waiting = f.patient && !(f.o.c.tripped.Load() && f.r.hasOther(f.o.b))
		case <-end.C:
			f.r.checkAnswers(f.o, f.sent, f.patient)
			if waiting = f.patient; waiting {
				end.Reset(f.giveUp(wait, reason))
			}
		case <-ctx.Done():
			waiting, reason = false, "given up by the caller"
		}
		if !waiting {
			f.stop()
			f.giveUp(0, reason)
			<-f.results.done
			return
		}
	}
}

// giveUp ends the wait for messages that were submitted that long ago. It gives the time until the next of
// them is that old.
func (f *flight) giveUp(after time.Duration, reason string) (next time.Duration) {
	now := f.o.c.now()
	next = after
	for _, d := range f.sent {
		switch left := after - (now - d.began); {
		case d.state().final():
		case left <= 0:
			d.giveUp(result{verdict: unanswered, reason: reason})
		default:
			next = min(next, left)
		}
	}
	return next
}
