package relay

import (
	"context"
	"sync"
	"time"

	"koji-relay/internal/message"
)

const (
	maxSuspects = 8192
	// suspicionTime is when a mere suspicion lapses, for the case that nobody calls SendPatiently, which clears
	// it up.
	suspicionTime = 10 * time.Minute
	// maxRemembered bounds the ids accepted after their caller had gone; 2 MB.
	maxRemembered = 16384
)

// suspects are the messages that were under way when a connection, session or link ended. One of them may be why.
type suspects struct {
	mu  sync.Mutex // guards ids
	ids map[string]suspicion
}

type suspicion struct {
	since  time.Time
	broker string // where it was
	proven bool   // it was alone: it is to blame
}

func newSuspects() *suspects { return &suspects{ids: map[string]suspicion{}} }

func (s *suspects) add(id, broker string, proven bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ids) >= maxSuspects {
		for old := range s.ids { // any: it costs a lost connection at worst
			delete(s.ids, old)
			break
		}
	}
	s.ids[id] = suspicion{time.Now(), broker, proven}
}

func (s *suspects) get(id string) (broker string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	about, ok := s.ids[id]
	if ok && !about.proven && time.Since(about.since) > suspicionTime {
		delete(s.ids, id)
		return "", false
	}
	return about.broker, ok
}

func (s *suspects) clear(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// doubts are the messages that a broker had not answered when their caller stopped waiting. Until it does, they
// are not sent to it again, and if it accepts one after all, that is remembered for the next caller. It only saves
// duplicates: forgetting is safe.
type doubts struct {
	mu         sync.Mutex // guards what follows
	open       map[string]*doubt
	remembered map[string]string // id -> broker
	order      []string          // of remembered, oldest first
}

type doubt struct {
	l       *link
	over    chan struct{} // closed when attempt is there
	attempt attempt
}

func newDoubts() *doubts {
	return &doubts{open: map[string]*doubt{}, remembered: map[string]string{}}
}

func (s *doubts) add(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[d.msg.ID] = &doubt{l: d.link, over: make(chan struct{})}
}

// resolve takes a late answer, or the loss of a delivery.
func (s *doubts) resolve(d *delivery, a attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open := s.open[d.msg.ID]; open != nil && open.l.c == d.link.c {
		open.attempt = a
		close(open.over)
		delete(s.open, d.msg.ID)
	}
	if a.verdict != accepted {
		return
	}
	if _, known := s.remembered[d.msg.ID]; known {
		return
	}
	if len(s.order) >= maxRemembered {
		delete(s.remembered, s.order[0])
		s.order = s.order[1:]
	}
	s.remembered[d.msg.ID] = a.broker
	s.order = append(s.order, d.msg.ID)
}

func (s *doubts) accepted(id string) (broker string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	broker, ok = s.remembered[id]
	return broker, ok
}

// with gives what is known of id on c, as an attempt: unsent if c has it and may answer yet, accepted if any broker
// did so late. Both are looked up at once, since the answer may come at any time.
func (s *doubts) with(id string, c *conn) (attempt, bool) {
	s.mu.Lock()
	d := s.open[id]
	broker, known := s.remembered[id]
	s.mu.Unlock()
	switch {
	case known:
		return acceptedLate(broker), true
	case d == nil || d.l.c != c:
		return attempt{}, false
	case !c.stalled.Load() && d.l.stalled():
		return standsStill, true
	}
	return attempt{verdict: unsent, state: message.Unknown, broker: c.name, reason: noAnswer}, true
}

func (s *doubts) get(id string) *doubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[id]
}

// late is told how a delivery ended whose caller had stopped waiting.
func (r *Relay) late(d *delivery, a attempt) {
	r.doubts.resolve(d, a)
	r.log.Debug("late answer", "broker", a.broker, "message_id", d.msg.ID, "address", d.msg.Address,
		"commit", d.msg.Commit, "event", d.msg.Event, "state", a.state.String(), "cause", a.reason)
}

// awaitDoubts waits for answers to messages that a broker has and no other took meanwhile. Where the broker settles
// others it does not wait for long: no message holds up the rest.
func (s *shipment) awaitDoubts(ctx context.Context) {
	began := time.Now()
	for _, i := range s.open {
		if v := s.last[i].verdict; v != unsent && v != silent {
			continue
		}
		d := s.r.doubts.get(s.msgs[i].ID)
		if d == nil { // answered meanwhile, or never in doubt
			if broker, ok := s.r.doubts.accepted(s.msgs[i].ID); ok {
				s.last[i] = acceptedLate(broker)
			}
			continue
		}
		wait, otherwise := s.r.opts.SendTimeout, s.last[i]
		if !d.l.c.stalled.Load() {
			wait, otherwise = s.r.opts.HandoffTimeout, standsStill
		}
		timer := time.NewTimer(time.Until(began.Add(wait)))
		select {
		case <-d.over:
			s.last[i] = d.attempt
		case <-timer.C:
			s.last[i] = otherwise
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func acceptedLate(broker string) attempt {
	return attempt{verdict: accepted, state: message.Accepted, broker: broker, reason: "accepted late"}
}
