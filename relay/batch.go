package relay

import (
	"context"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// Send tries each message on the usable brokers and reports one outcome for each, in the same order. It
// returns at the latest after HandoffTimeout, at once when no broker is usable, and when ctx ends. Neither
// cancels what is under way: a message reported as unknown may still arrive.
func (r *Relay) Send(ctx context.Context, msgs []message.Message) []message.Outcome {
	return r.send(ctx, msgs, false)
}

// SendPatiently is Send for a caller that has time: it waits up to SendTimeout for each broker that it tries,
// probes brokers whose breaker is open, and sends messages that were under way when a connection was lost
// again, each alone on a connection of its own, so that one that ends connections is found and does not take
// others with it.
func (r *Relay) SendPatiently(ctx context.Context, msgs []message.Message) []message.Outcome {
	return r.send(ctx, msgs, true)
}

// batch is one call: messages that are tried on one broker after the other, and what became of each so far.
type batch struct {
	r       *Relay
	msgs    []message.Message
	last    []result // what decides so far
	asked   []int    // brokers asked, for each message
	patient bool
	open    []int // messages that have no final result yet
	halted  bool  // with PreserveOrder: the rest has to wait
	sent    []*delivery
}

func (r *Relay) send(ctx context.Context, msgs []message.Message, patient bool) []message.Outcome {
	if len(msgs) == 0 {
		return nil
	}
	if r.opts.TestMode {
		return r.pretend(msgs)
	}
	b := &batch{
		r: r, msgs: msgs, patient: patient,
		last:  make([]result, len(msgs)),
		asked: make([]int, len(msgs)),
		open:  make([]int, 0, len(msgs)),
	}
	release, ok := r.reserve(msgs)
	if !ok {
		reason := fmt.Sprintf("more than %s in flight (max_inflight_bytes)", inspect.Size(r.opts.MaxInflightBytes))
		for i := range b.last {
			b.last[i] = result{reason: reason}
		}
		return b.outcomes()
	}
	b.prepare()
	b.run(ctx)
	b.leave()
	release()
	if patient {
		b.isolate(ctx)
		b.awaitUnacked(ctx)
	}
	return b.outcomes()
}

// reserve counts msgs as in flight, unless that would be too much. A call on its own always may.
func (r *Relay) reserve(msgs []message.Message) (release func(), ok bool) {
	var total int64
	for i := range msgs {
		total += int64(msgs[i].Size())
	}
	now := r.inflight.Add(total)
	if now > r.opts.MaxInflightBytes && now != total {
		r.inflight.Add(-total)
		return nil, false
	}
	return func() { r.inflight.Add(-total) }, true
}

// prepare sorts out what needs no broker now.
func (b *batch) prepare() {
	halted := false
	for i := range b.msgs {
		m := &b.msgs[i]
		if broker, ok := b.r.unacked.accepted(m.ID); ok {
			b.last[i] = acceptedLate(broker)
			continue
		}
		if err := checkEncodable(m); err != nil {
			b.last[i] = result{verdict: unencodable, state: message.NotSent, reason: err.Error()}
			continue
		}
		if broker, ok := b.r.poison.get(m.ID); ok {
			b.last[i] = result{
				verdict: lost, state: message.Unknown, broker: broker, reason: "was under way when a connection was lost",
			}
			halted = b.r.opts.PreserveOrder
			continue
		}
		if b.patient && b.r.askAgain(m.Address) {
			b.last[i] = result{verdict: lost, state: message.NotSent, reason: "the broker refused its topic"}
			continue
		}
		b.last[i] = result{reason: "no broker is usable"}
		if halted {
			b.last[i].reason = behindUnknown
			continue
		}
		b.open = append(b.open, i)
	}
}

// run tries brokers in order of preference until nothing is open or none is left.
func (b *batch) run(ctx context.Context) {
	deadline := time.Now().Add(b.r.opts.HandoffTimeout)
	var tried []*broker
	probed := false
	for waited := false; len(b.open) > 0 && !b.halted && ctx.Err() == nil; {
		o, ok := b.r.pick(tried, b.patient, probed)
		if !ok {
			if waited || len(tried) > 0 {
				return
			}
			b.r.waitStart(ctx, deadline)
			waited = true
			continue
		}
		tried = append(tried, o.b)
		wait := time.Until(deadline)
		switch {
		case b.patient:
			wait = b.r.opts.SendTimeout
		case o.probe:
			probed = true
			wait = min(wait, b.r.opts.HandoffTimeout/probeShare)
		}
		if wait <= 0 {
			return
		}
		switch {
		case b.r.opts.PreserveOrder:
			b.tryInOrder(ctx, o, wait)
		case b.patient:
			if o.probe {
				b.probe(ctx, o, wait)
				o.probe = false // it is over, one way or the other
			}
			b.try(ctx, o, wait, b.open)
		default:
			b.try(ctx, o, wait, b.open)
		}
	}
}

// probeWith is how many messages a broker is probed with at a time: the address of one may stand still by
// itself.
const probeWith = 2

// probe sends a few messages at a time, the first of each address first, until the broker settles one or has
// some that it does not settle.
func (b *batch) probe(ctx context.Context, o candidate, wait time.Duration) {
	had := o.c.unacked.Load()
	turn, seen := map[int]int{}, map[string]int{}
	for _, i := range b.open {
		address := b.msgs[i].Address
		turn[i] = seen[address]
		seen[address]++
	}
	open := slices.SortedStableFunc(slices.Values(b.open), func(x, y int) int { return turn[x] - turn[y] })
	for some := range slices.Chunk(open, probeWith) {
		if b.try(ctx, o, wait, some); o.b.upWith(o.c) || o.c.unacked.Load() > had || ctx.Err() != nil {
			return
		}
	}
}

// waitStart blocks while the first connection results of a relay that has just started are under way.
func (r *Relay) waitStart(ctx context.Context, deadline time.Time) {
	select {
	case <-r.started:
		return
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-r.started:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// pick chooses the broker to use next: the first of the best rank.
func (r *Relay) pick(tried []*broker, patient, probed bool) (candidate, bool) {
	for {
		var best candidate
		found := false
		for _, b := range r.brokers {
			if slices.Contains(tried, b) {
				continue
			}
			o, ok := b.candidate(patient)
			if !ok || o.probe && probed {
				continue
			}
			if !found || o.rank(patient) < best.rank(patient) {
				best, found = o, true
			}
		}
		if !found {
			return best, false
		}
		if !best.probe || best.b.claim(best, patient) {
			return best, true
		}
		tried = append(tried[:len(tried):len(tried)], best.b)
	}
}

// hasOther reports whether a broker other than b could be used instead.
func (r *Relay) hasOther(b *broker) bool {
	return slices.ContainsFunc(r.brokers, func(other *broker) bool { return other != b && other.usable() })
}

// final reports whether the next broker is not to be asked. Where the broker may have the message the hub's
// call is over, since its time is; a patient caller goes on.
func (b *batch) final(r result) bool {
	return r.verdict > unanswered || r.verdict == unanswered && !b.patient
}

// leave hands what is still with brokers over to them, for the account of bytes in flight.
func (b *batch) leave() {
	for _, d := range b.sent {
		b.r.inflight.Add(d.size)
		size := d.size
		d.onFinal(func() { b.r.inflight.Add(-size) })
	}
	b.sent = nil
}

func (b *batch) outcomes() []message.Outcome {
	all := make([]message.Outcome, len(b.last))
	for i, r := range b.last {
		all[i] = r.outcome(b.asked[i] >= len(b.r.brokers))
	}
	return all
}
