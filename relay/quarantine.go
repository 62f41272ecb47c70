package relay

import (
	"context"
	"sync"
	"time"

	"koji-relay/internal/message"
)

// ward sends suspects one at a time, on a connection that carries nothing else, so that what ends it is known and
// nobody else is hurt.
type ward struct {
	r    *Relay
	c    *conn
	stop func() // ends c and waits
	// down: no broker let us in. The rest of the call does not try again.
	down bool
}

// quarantine treats the messages that were under way when a connection, session or link was lost. If sent alone one
// ends its connection again, it is what does so and counts an attempt. One that gets any answer is cleared.
func (s *shipment) quarantine(ctx context.Context) {
	w := &ward{r: s.r}
	defer w.close()
	for i := range s.last {
		if s.last[i].verdict != lost || ctx.Err() != nil {
			continue
		}
		a := w.send(ctx, &s.msgs[i], s.last[i])
		s.last[i] = a
		if a.verdict != lost {
			s.r.suspect.clear(s.msgs[i].ID)
		}
		if a.verdict == refused && a.state == message.Unknown {
			s.r.suspect.add(s.msgs[i].ID, a.broker, true) // found out: it stays in quarantine
		}
	}
}

// send gives m to the first broker that takes a connection.
func (w *ward) send(ctx context.Context, m *message.Message, last attempt) attempt {
	if err := checkEncodable(m); err != nil {
		return attempt{verdict: unencodable, reason: err.Error()}
	}
	if !w.open(ctx, last.broker) {
		return last
	}
	c := w.c
	round := newRound(1)
	d := &delivery{msg: m, size: int64(m.Size()), patient: true, round: round}
	if a, ok := c.submit(d); !ok {
		a.broker = c.name
		return a
	}
	timer := time.NewTimer(w.r.opts.SendTimeout)
	defer timer.Stop()
	select {
	case <-round.done:
	case <-timer.C:
		d.link.giveUp(d, attempt{verdict: stuck, reason: "not settled within send_timeout, sent alone"})
		w.close()
	case <-ctx.Done():
		d.link.giveUp(d, attempt{verdict: lost, reason: "given up by the caller"})
		w.close()
	}
	<-round.done
	a := round.attempts[0]
	switch a.verdict {
	case lost:
		if a.verdict = a.alone; a.verdict != lost {
			a.reason = "sent alone: " + a.reason
			w.r.log.Warn("message ends its connection", "broker", a.broker, "message_id", m.ID, "address", m.Address,
				"commit", m.Commit, "event", m.Event, "cause", a.reason)
		}
		w.close()
	case unsent, silent:
		a.verdict = lost
		w.close()
	}
	return a
}

// open makes sure of a connection. It does not wait for the supervisors: after the loss of a connection they are
// at it themselves. lastBroker, where that was, is tried when no other is known to be usable.
func (w *ward) open(ctx context.Context, lastBroker string) bool {
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

func (w *ward) dial(ctx context.Context, b *broker) bool {
	hooks := b.hooks()
	hooks.doubt = func(*delivery) {}
	hooks.late = func(*delivery, attempt) {}
	hooks.lost = func(*message.Message) {}
	c, err := dial(ctx, &w.r.opts, b.e, b.log, hooks)
	if err != nil {
		b.log.Debug("no connection for a message in quarantine", "cause", err.Error())
		return false
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var served sync.WaitGroup
	served.Go(func() { _ = c.serve(serving) })
	w.c = c
	w.stop = func() { cancel(); served.Wait() }
	return true
}

func (w *ward) close() {
	if w.c != nil {
		w.stop()
		w.c, w.stop = nil, nil
	}
}
