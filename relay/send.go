package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"koji-relay/internal/message"
)

// Send tries each message on the usable brokers and reports one outcome for each, in the same order. It returns at
// the latest after HandoffTimeout, at once when no broker is usable, and when ctx ends. Neither cancels what is
// under way: a message reported as unknown may still arrive.
func (r *Relay) Send(ctx context.Context, msgs []message.Message) []message.Outcome {
	return r.send(ctx, msgs, false)
}

// SendPatiently is Send for a caller that has time: it waits up to SendTimeout for each broker that it tries,
// proves brokers that are stalled, and sends messages that were under way when a connection was lost again, each
// alone on a connection of its own, so that one that ends connections is found and does not take others with it.
func (r *Relay) SendPatiently(ctx context.Context, msgs []message.Message) []message.Outcome {
	return r.send(ctx, msgs, true)
}

// shipment is one call of send.
type shipment struct {
	r       *Relay
	msgs    []message.Message
	last    []attempt // what decides so far
	asked   []int     // brokers asked, for each message
	patient bool
	open    []int // messages that have no final attempt yet
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
	s := &shipment{
		r: r, msgs: msgs, patient: patient,
		last:  make([]attempt, len(msgs)),
		asked: make([]int, len(msgs)),
		open:  make([]int, 0, len(msgs)),
	}
	release, ok := r.reserve(msgs)
	if !ok {
		for i := range s.last {
			s.last[i] = attempt{reason: fmt.Sprintf("more than %d bytes in flight (max_inflight_bytes)", r.opts.MaxInflightBytes)}
		}
		return s.outcomes()
	}
	s.prepare()
	s.tour(ctx)
	s.leave()
	release()
	if patient {
		s.quarantine(ctx)
		s.awaitDoubts(ctx)
	}
	return s.outcomes()
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
func (s *shipment) prepare() {
	halted := false
	for i := range s.msgs {
		m := &s.msgs[i]
		if broker, ok := s.r.doubts.accepted(m.ID); ok {
			s.last[i] = acceptedLate(broker)
			continue
		}
		if err := checkEncodable(m); err != nil {
			s.last[i] = attempt{verdict: unencodable, state: message.NotSent, reason: err.Error()}
			continue
		}
		if broker, ok := s.r.suspect.get(m.ID); ok {
			s.last[i] = attempt{
				verdict: lost, state: message.Unknown, broker: broker, reason: "was under way when a connection was lost",
			}
			halted = s.r.opts.PreserveOrder
			continue
		}
		s.last[i] = attempt{reason: "no broker is usable"}
		if halted {
			s.last[i].reason = behindDoubt
			continue
		}
		s.open = append(s.open, i)
	}
}

// tour visits brokers in order of preference until nothing is open or none is left.
func (s *shipment) tour(ctx context.Context) {
	deadline := time.Now().Add(s.r.opts.HandoffTimeout)
	var tried []*broker
	hadTrial := false
	for waited := false; len(s.open) > 0 && !s.halted && ctx.Err() == nil; {
		o, ok := s.r.pick(tried, s.patient, hadTrial)
		if !ok {
			if waited || len(tried) > 0 {
				return
			}
			s.r.waitStart(ctx, deadline)
			waited = true
			continue
		}
		tried = append(tried, o.b)
		wait := time.Until(deadline)
		switch {
		case o.trial && !s.patient:
			hadTrial = true
			wait = min(wait, s.r.opts.HandoffTimeout/trialShare)
		case s.patient:
			wait = s.r.opts.SendTimeout
		}
		if wait <= 0 {
			return
		}
		switch {
		case s.r.opts.PreserveOrder:
			s.visitInOrder(ctx, o, wait)
		case s.patient:
			if o.trial {
				s.prove(ctx, o, wait)
				o.trial = false // it is over, one way or the other
			}
			s.visitInParts(ctx, o, wait)
		default:
			s.visit(ctx, o, wait, s.open)
		}
	}
}

// patientWindow is how many messages of one patient call are with a broker at a time. What the hub hands over
// meanwhile waits behind no more than these.
const patientWindow = 200

// visitInParts visits with all open messages as long as the broker is up.
func (s *shipment) visitInParts(ctx context.Context, o offer, wait time.Duration) {
	for part := range slices.Chunk(slices.Clone(s.open), patientWindow) {
		if ctx.Err() != nil || !o.b.upWith(o.c) {
			return
		}
		s.visit(ctx, o, wait, part)
	}
}

// proveWith is how many messages a broker is proven with at a time: the address of one may stand still by itself.
const proveWith = 2

// prove sends a few messages at a time, the first of each address first, until the broker settles one or has some that it
// does not settle.
func (s *shipment) prove(ctx context.Context, o offer, wait time.Duration) {
	had := o.c.unsettled.Load()
	turn, seen := map[int]int{}, map[string]int{}
	for _, i := range s.open {
		address := s.msgs[i].Address
		turn[i] = seen[address]
		seen[address]++
	}
	open := slices.SortedStableFunc(slices.Values(s.open), func(a, b int) int { return turn[a] - turn[b] })
	for some := range slices.Chunk(open, proveWith) {
		if s.visit(ctx, o, wait, some); o.b.upWith(o.c) || o.c.unsettled.Load() > had || ctx.Err() != nil {
			return
		}
	}
}

// waitStart blocks while the first connection attempts of a relay that has just started are under way.
func (r *Relay) waitStart(ctx context.Context, deadline time.Time) {
	select {
	case <-r.settled:
		return
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-r.settled:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// pick chooses the broker to use next: the first of the best rank.
func (r *Relay) pick(tried []*broker, patient, hadTrial bool) (offer, bool) {
	for {
		var best offer
		found := false
	next:
		for _, b := range r.brokers {
			for _, t := range tried {
				if t == b {
					continue next
				}
			}
			o, ok := b.offer(patient)
			if !ok || o.trial && hadTrial {
				continue
			}
			if !found || o.rank(patient) < best.rank(patient) {
				best, found = o, true
			}
		}
		if !found {
			return best, false
		}
		if !best.trial || best.b.claim(best, patient) {
			return best, true
		}
		tried = append(tried[:len(tried):len(tried)], best.b)
	}
}

// visit tries the open messages named by which on one broker, and takes those with a final attempt off s.open.
func (s *shipment) visit(ctx context.Context, o offer, wait time.Duration, which []int) {
	which = slices.Clone(which) // it may be s.open, which changes below
	round := newRound(len(which))
	deliveries := make([]*delivery, 0, len(which))
	for n, i := range which {
		m := &s.msgs[i]
		if s.patient {
			if a, there := s.r.doubts.with(m.ID, o.c); there {
				round.finish(n, a)
				continue
			}
		}
		s.asked[i]++
		d := &delivery{
			msg: m, size: int64(m.Size()), patient: s.patient, trial: o.trial, round: round, index: n,
		}
		if a, ok := o.c.submit(d); !ok {
			a.broker = o.c.name
			round.finish(n, a)
			continue
		}
		deliveries = append(deliveries, d)
	}
	s.sent = append(s.sent, deliveries...)
	s.wait(ctx, o, wait, round, deliveries)
	for n, i := range which {
		s.last[i] = worse(s.last[i], round.attempts[n])
	}
	still := s.open[:0]
	for _, i := range s.open {
		if !s.final(s.last[i]) {
			still = append(still, i)
		}
	}
	s.open = still
}

// final reports whether the next broker is not to be asked. Where the broker may have the message the hub's call is
// over, since its time is; a patient caller goes on.
func (s *shipment) final(a attempt) bool {
	return a.verdict > silent || a.verdict == silent && !s.patient
}

// leave hands what is still with brokers over to them, for the account of bytes in flight.
func (s *shipment) leave() {
	for _, d := range s.sent {
		s.r.inflight.Add(d.size)
		size := d.size
		d.link.disown(d, func() { s.r.inflight.Add(-size) })
	}
	s.sent = nil
}

func (s *shipment) outcomes() []message.Outcome {
	all := make([]message.Outcome, len(s.last))
	for i, a := range s.last {
		all[i] = a.outcome(s.asked[i] >= len(s.r.brokers))
	}
	return all
}

// pretend is test mode: what would be sent is logged.
func (r *Relay) pretend(msgs []message.Message) []message.Outcome {
	all := make([]message.Outcome, len(msgs))
	for i := range msgs {
		m := &msgs[i]
		if rand.IntN(100) < r.opts.TestModeFail {
			r.log.Info("test mode: pretend to fail", "address", m.Address, "message_id", m.ID, "commit", m.Commit, "event", m.Event)
			all[i] = message.Outcome{State: message.NotSent, Next: message.Later, Reason: "test_mode_fail"}
			continue
		}
		r.log.Info("test mode: not sent", "address", m.Address, "message_id", m.ID, "commit", m.Commit, "event", m.Event)
		all[i] = message.Outcome{State: message.Accepted, Next: message.Done, Reason: "test_mode"}
	}
	return all
}

// round collects the attempts of one visit. The first one for each index counts.
type round struct {
	done chan struct{} // closed when all are in; then attempts may be read

	mu       sync.Mutex // guards what follows
	attempts []attempt
	over     []bool
	left     int
}

func newRound(n int) *round {
	return &round{done: make(chan struct{}), attempts: make([]attempt, n), over: make([]bool, n), left: n}
}

// finish reports whether this was the first attempt for index i.
func (r *round) finish(i int, a attempt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over[i] {
		return false
	}
	r.attempts[i], r.over[i] = a, true
	if r.left--; r.left == 0 {
		close(r.done)
	}
	return true
}
