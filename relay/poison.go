package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"koji-relay/internal/message"
)

const (
	maxPoison = 8192
	// poisonTime is when one that was not alone is let off, for the case that nobody calls SendPatiently, which
	// clears it up.
	poisonTime = 10 * time.Minute
	// proofTime is for how long a message ends connections, proofTries or more, before it is to blame although
	// no broker has answered another one meanwhile. It doubles to maxProofTime with each message found so.
	proofTime, maxProofTime = 10 * time.Second, 10 * time.Minute
	proofTries              = 3
)

// poisonSet are the messages that were under way when a connection, session or link ended. One of them may be
// why.
type poisonSet struct {
	proofTime time.Duration // see proofTime

	mu  sync.Mutex // guards what follows
	ids map[string]finding
	// Messages that were found by time, with no answer to any since.
	inRow   int
	answers int64 // those of all brokers, at the last of them
}

type finding struct {
	since     time.Time
	broker    string    // where it was
	cuts      int       // connections that ended when it was alone on them
	first     time.Time // when the first of them did
	answers   int64     // those of all brokers, when the last of them did
	confirmed bool      // it is to blame
}

func newPoisonSet() *poisonSet { return &poisonSet{proofTime: proofTime, ids: map[string]finding{}} }

// note keeps a message that may be to blame.
func (s *poisonSet) note(id, broker string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.ids[id]
	f.since, f.broker = time.Now(), broker
	s.put(id, f)
}

// confirm keeps one that is.
func (s *poisonSet) confirm(id, broker string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(id, finding{since: time.Now(), broker: broker, confirmed: true})
}

// put keeps what is found of a message. s.mu is held.
func (s *poisonSet) put(id string, f finding) {
	if _, known := s.ids[id]; !known && len(s.ids) >= maxPoison {
		for old := range s.ids { // any: it costs a lost connection at worst
			delete(s.ids, old)
			break
		}
	}
	s.ids[id] = f
}

// cut notes that a message was alone on a connection that ended, and reports whether it is to blame. It may
// have been the network. So it is the message if others were answered and it does so again; or if it goes on
// for a while, since there may be no others. Answers is the number of those of all brokers so far.
func (s *poisonSet) cut(id, broker string, answers int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answers != s.answers {
		s.inRow = 0
	}
	f, now := s.ids[id], time.Now()
	if f.cuts == 0 {
		f.first, f.answers = now, answers
	}
	f.cuts++
	switch {
	case f.confirmed:
	case answers != f.answers:
		f.confirmed = true
	case f.cuts >= proofTries && now.Sub(f.first) >= min(s.proofTime<<min(s.inRow, 10), maxProofTime):
		f.confirmed = true
		s.inRow++
		s.answers = answers
	}
	f.since, f.broker, f.answers = now, broker, answers
	s.put(id, f)
	return f.confirmed
}

func (s *poisonSet) get(id string) (broker string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.ids[id]
	if ok && !f.confirmed && time.Since(f.since) > poisonTime {
		delete(s.ids, id)
		return "", false
	}
	return f.broker, ok
}

// cutAt is the broker whose connection ended last when the message was alone on it; "" if none has.
func (s *poisonSet) cutAt(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.ids[id]; f.cuts > 0 {
		return f.broker
	}
	return ""
}

func (s *poisonSet) clear(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// isolation sends such messages one at a time, on a connection that carries nothing else, so that what ends
// it is known and nobody else is hurt.
type isolation struct {
	r    *Relay
	c    *conn
	stop func() // ends c and waits
	// shared: c is that of all other messages.
	shared bool
	// down: no broker let us in. The rest of the call does not try again.
	down bool
}

// isolate sends the messages that were under way when a connection, session or link was lost, each alone. One
// that is to blame counts an attempt, and one that gets any answer is cleared. The others stay as they are;
// with PreserveOrder none is sent before them, nor before others that wait.
func (b *batch) isolate(ctx context.Context) {
	w := &isolation{r: b.r}
	defer w.close()
	for i := range b.last {
		if b.last[i].verdict == lost && ctx.Err() == nil {
			b.last[i] = w.clearUp(ctx, &b.msgs[i], b.last[i])
		}
		switch b.last[i].verdict {
		case unsent, unanswered, lost:
			if b.r.opts.PreserveOrder {
				return
			}
		}
	}
}

// clearUp sends m and notes what is found of it.
func (w *isolation) clearUp(ctx context.Context, m *message.Message, last result) result {
	res := w.send(ctx, m, last)
	if res.verdict != lost {
		w.r.poison.clear(m.ID)
	}
	if res.verdict == refused && res.state == message.Unknown {
		w.r.poison.confirm(m.ID, res.broker) // it stays in isolation
	}
	return res
}

// send gives m to the first broker that takes a connection.
func (w *isolation) send(ctx context.Context, m *message.Message, last result) result {
	if err := checkEncodable(m); err != nil {
		return result{verdict: unencodable, reason: err.Error()}
	}
	if !w.open(ctx, m.ID, last.broker) {
		return last
	}
	c := w.c
	if r, known, due := c.b.forbidden.get(m.Address); known && !due {
		return r
	}
	results := newResults(1)
	d := &delivery{msg: m, size: int64(m.Size()), patient: true, since: c.now(), results: results}
	if res, ok := c.submit(d); !ok {
		res.broker = c.name
		results.put(0, res)
	}
	timer := time.NewTimer(w.r.opts.SendTimeout)
	defer timer.Stop()
	select {
	case <-results.done:
	case <-timer.C:
		d.giveUp(result{verdict: blocked, reason: "not settled within send_timeout, sent alone"})
		w.close()
	case <-ctx.Done():
		d.giveUp(result{verdict: lost, reason: "given up by the caller"})
		w.close()
	}
	<-results.done
	res := results.all[0]
	switch res.verdict {
	case lost:
		if !res.cut && !w.shared || w.r.poison.cut(m.ID, res.broker, w.r.answers.Load()) {
			res.verdict = res.alone
		}
		switch {
		case res.verdict == lost:
		case res.forbids != "":
			res.state, res.failure = message.NotSent, message.FailedLink
			res.reason = message.AddressRefused + res.forbids
			c.b.forbidden.add(m.Address, res)
			c.b.notice(m.Address, "refused link", res.reason)
		default:
			res.reason = "sent alone: " + res.reason
			w.r.log.Warn("message ends its connection", "broker", res.broker, "message_id", m.ID, "address", m.Address,
				"commit", m.Commit, "event", m.Event, "cause", res.reason)
		}
		w.close()
	case blocked:
		// Where nothing may pass it, that no answer came has to be its doing, too.
		if w.r.opts.PreserveOrder && res.state == message.Unknown &&
			!w.r.poison.cut(m.ID, res.broker, w.r.answers.Load()) {
			res.verdict = lost
		}
	case unsent, unanswered:
		res.verdict = lost
		w.close()
	default:
		if res.state != message.NotSent {
			c.b.forbidden.clear(m.Address)
		}
	}
	return res
}

// open makes sure of a connection. It does not wait for the supervisors: after the loss of a connection they
// are at it themselves. lastBroker, where the message with that id was, is tried when no other is known to be
// usable. One whose connection has ended when the message was alone comes after others. Where a broker that
// works lets us have no second connection, as RabbitMQ's limits of a user can, the shared one has to do: what
// ends that may be another message.
func (w *isolation) open(ctx context.Context, id, lastBroker string) bool {
	if w.c != nil || w.down {
		return w.c != nil
	}
	cutAt := w.r.poison.cutAt(id)
	for _, fits := range []func(*broker) bool{
		func(b *broker) bool { return b.usable() && b.e.Name != cutAt },
		func(b *broker) bool { return b.usable() && b.e.Name == cutAt },
		func(b *broker) bool { return !b.usable() && b.e.Name == lastBroker },
	} {
		for _, b := range w.r.brokers {
			if fits(b) && w.dial(ctx, b) {
				return true
			}
		}
	}
	for _, b := range w.r.brokers {
		if o, ok := b.candidate(true); ok && !o.probe {
			w.c, w.shared, w.stop = o.c, true, func() {}
			return true
		}
	}
	w.down = true
	return false
}

func (w *isolation) dial(ctx context.Context, b *broker) bool {
	c, err := b.dial(ctx, slog.New(slog.DiscardHandler)) // what becomes of m says what there is to say
	if err != nil {
		b.log.Debug("no connection for a message in isolation", "cause", err.Error())
		return false
	}
	c.isolated = true
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var served sync.WaitGroup
	served.Go(func() { _ = c.serve(serving) })
	w.c = c
	w.stop = func() { cancel(); served.Wait() }
	return true
}

func (w *isolation) close() {
	if w.c != nil {
		w.stop()
		w.c, w.shared, w.stop = nil, false, nil
	}
}
