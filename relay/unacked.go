package relay

import (
	"context"
	"sync"
	"time"

	"koji-relay/internal/message"
)

// maxRemembered bounds the ids accepted after their caller had gone; 2 MB.
const maxRemembered = 16384

// unackedSet are the messages that a broker had not answered when their caller stopped waiting. Until it
// does, they are not sent to it again, and if it accepts one after all, that is remembered for the next
// caller. It only saves duplicates: forgetting is safe.
type unackedSet struct {
	mu         sync.Mutex // guards what follows
	open       map[string]*unacked
	remembered map[string]string // id -> broker
	order      []string          // of remembered, oldest first
}

type unacked struct {
	l      *link
	over   chan struct{} // closed when result is there
	result result
}

func newUnackedSet() *unackedSet {
	return &unackedSet{open: map[string]*unacked{}, remembered: map[string]string{}}
}

// add takes d up, unless it is answered already: who answers it looks here after d has become final.
func (s *unackedSet) add(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.state().final() {
		return
	}
	s.open[d.msg.ID] = &unacked{l: d.link, over: make(chan struct{})}
}

// resolve takes a late answer, or the loss of a delivery.
func (s *unackedSet) resolve(d *delivery, r result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open := s.open[d.msg.ID]; open != nil && open.l.c == d.link.c {
		open.result = r
		close(open.over)
		delete(s.open, d.msg.ID)
	}
	if r.verdict != accepted {
		return
	}
	if _, known := s.remembered[d.msg.ID]; known {
		return
	}
	if len(s.order) >= maxRemembered {
		delete(s.remembered, s.order[0])
		s.order = s.order[1:]
	}
	s.remembered[d.msg.ID] = r.broker
	s.order = append(s.order, d.msg.ID)
}

func (s *unackedSet) accepted(id string) (broker string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	broker, ok = s.remembered[id]
	return broker, ok
}

// with gives what is known of id on c, as a result: unsent if c has it and may answer yet, accepted if any
// broker did so late. Both are looked up at once, since the answer may come at any time.
func (s *unackedSet) with(id string, c *conn) (result, bool) {
	s.mu.Lock()
	u := s.open[id]
	broker, known := s.remembered[id]
	s.mu.Unlock()
	switch {
	case known:
		return acceptedLate(broker), true
	case u == nil || u.l.c != c:
		return result{}, false
	case !c.tripped.Load() && u.l.isBlocked() && u.l.quietFor() >= c.opts.patience(true):
		return u.l.standsStill(), true
	}
	return result{verdict: unsent, state: message.Unknown, broker: c.name, reason: noAnswer}, true
}

func (s *unackedSet) get(id string) *unacked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// answeredLate is told how a delivery ended whose caller had stopped waiting.
func (r *Relay) answeredLate(d *delivery, res result) {
	r.unacked.resolve(d, res)
	r.log.Debug("late answer", "broker", res.broker, "message_id", d.msg.ID, "address", d.msg.Address,
		"commit", d.msg.Commit, "event", d.msg.Event, "state", res.state.String(), "cause", res.reason)
}

// awaitUnacked waits for answers to messages that a broker has and no other took meanwhile. Where the broker
// settles others it does not wait for long: no message holds up the rest.
func (b *batch) awaitUnacked(ctx context.Context) {
	began := time.Now()
	for _, i := range b.open {
		if v := b.last[i].verdict; v != unsent && v != unanswered {
			continue
		}
		u := b.r.unacked.get(b.msgs[i].ID)
		if u == nil { // answered meanwhile, or never without an answer
			if broker, ok := b.r.unacked.accepted(b.msgs[i].ID); ok {
				b.last[i] = acceptedLate(broker)
			}
			continue
		}
		wait, otherwise := b.r.opts.SendTimeout, b.last[i]
		if !u.l.c.tripped.Load() {
			wait, otherwise = max(b.r.opts.HandoffTimeout, b.r.opts.patience(true)), u.l.standsStill()
		}
		timer := time.NewTimer(time.Until(began.Add(wait)))
		select {
		case <-u.over:
			b.last[i] = u.result
		case <-timer.C:
			b.last[i] = otherwise
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func acceptedLate(broker string) result {
	return result{verdict: accepted, state: message.Accepted, broker: broker, reason: "accepted late"}
}
