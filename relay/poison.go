package relay

import (
	"context"
	"sync"
	"time"

	"koji-relay/internal/message"
)

const (
	maxPoison = 8192
	// poisonTime is when one that was not alone is let off, for the case that nobody calls SendPatiently, which
	// clears it up.
	poisonTime = 10 * time.Minute
)

// poisonSet are the messages that were under way when a connection, session or link ended. One of them may be
// why.
type poisonSet struct {
	mu  sync.Mutex // guards ids
	ids map[string]finding
}

type finding struct {
	since     time.Time
	broker    string // where it was
	confirmed bool   // it was alone: it is to blame
}

func newPoisonSet() *poisonSet { return &poisonSet{ids: map[string]finding{}} }

// note keeps a message that may be to blame, confirm one that is.
func (s *poisonSet) note(id, broker string)    { s.add(id, finding{time.Now(), broker, false}) }
func (s *poisonSet) confirm(id, broker string) { s.add(id, finding{time.Now(), broker, true}) }

func (s *poisonSet) add(id string, f finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ids) >= maxPoison {
		for old := range s.ids { // any: it costs a lost connection at worst
			delete(s.ids, old)
			break
		}
	}
	s.ids[id] = f
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
	// down: no broker let us in. The rest of the call does not try again.
	down bool
}

// isolate sends the messages that were under way when a connection, session or link was lost, each alone. If
// one ends its connection again, it is what does so and counts an attempt. One that gets any answer is
// cleared.
func (b *batch) isolate(ctx context.Context) {
	w := &isolation{r: b.r}
	defer w.close()
	for i := range b.last {
		if b.last[i].verdict != lost || ctx.Err() != nil {
			continue
		}
		res := w.send(ctx, &b.msgs[i], b.last[i])
		b.last[i] = res
		if res.verdict != lost {
			b.r.poison.clear(b.msgs[i].ID)
		}
		if res.verdict == refused && res.state == message.Unknown {
			b.r.poison.confirm(b.msgs[i].ID, res.broker) // it stays in isolation
		}
	}
}

// send gives m to the first broker that takes a connection.
func (w *isolation) send(ctx context.Context, m *message.Message, last result) result {
	if err := checkEncodable(m); err != nil {
		return result{verdict: unencodable, reason: err.Error()}
	}
	if !w.open(ctx, last.broker) {
		return last
	}
	c := w.c
	results := newResults(1)
	d := &delivery{msg: m, size: int64(m.Size()), patient: true, since: c.now(), results: results}
	if res, ok := c.submit(d); !ok {
		res.broker = c.name
		return res
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
		if res.verdict = res.alone; res.verdict != lost {
			res.reason = "sent alone: " + res.reason
			w.r.log.Warn("message ends its connection", "broker", res.broker, "message_id", m.ID, "address", m.Address,
				"commit", m.Commit, "event", m.Event, "cause", res.reason)
		}
		w.close()
	case unsent, unanswered:
		res.verdict = lost
		w.close()
	}
	return res
}

// open makes sure of a connection. It does not wait for the supervisors: after the loss of a connection they
// are at it themselves. lastBroker, where that was, is tried when no other is known to be usable.
func (w *isolation) open(ctx context.Context, lastBroker string) bool {
	if w.c != nil || w.down {
		return w.c != nil
	}
	for _, mustWork := range []bool{true, false} {
		for _, b := range w.r.brokers {
			if mustWork == b.usable() && (mustWork || b.e.Name == lastBroker) && w.dial(ctx, b) {
				return true
			}
		}
	}
	w.down = true
	return false
}

func (w *isolation) dial(ctx context.Context, b *broker) bool {
	c, err := b.dial(ctx)
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
		w.c, w.stop = nil, nil
	}
}
