package relay

import (
	"time"
)

const (
	// The pauses between probes on the hub's time.
	firstProbePause, maxProbePause = time.Second, 30 * time.Second
	// probeShare of HandoffTimeout is what such a probe may cost a hub call: 50 ms of 1 s.
	probeShare = 20
)

// breaker is the circuit breaker of a broker that is connected: it says who may use it.
//
//	          nothing settles for half of handoff_timeout, another one's breaker has opened, or it is shut
//	closed -----------------------------------------------------------------------------> open
//	  ^                                                                                   |  ^
//	  |  a settlement                       a pause is over; or nothing is unacked, and   v  |  no settlement:
//	  +------------------------------------ a patient caller asks ---------------- half-open |  a longer pause
//	                                                                                      +--+
//
// Closed is for everybody. Half-open is for one caller, who probes with a message or two. Open is for nobody
// on the hub's time. A connection that ended while its breaker was open, or for a breach of the protocol,
// leaves it open: that a broker lets us in does not show that it takes messages (RabbitMQ under a memory
// alarm does the one and not the other).
//
// A broker that says itself that it takes nothing is shut, until it says otherwise: nobody probes it.
// RabbitMQ 4 does so while an alarm is on.
//
// When the breaker of one broker opens, those of all others that have settled nothing meanwhile open as well,
// until a probe: so brokers that do not answer cost the hub handoff_timeout once and not for each URL.
type breaker struct {
	open    bool
	shut    bool // the broker says that it takes nothing; it is open, too
	latched bool // a new connection does not close it
	probeAt time.Time
	pause   time.Duration
}

// trip opens it. The first probe is due after the given time.
func (k *breaker) trip(probeIn time.Duration) {
	k.open = true
	k.probeAt, k.pause = time.Now().Add(probeIn), firstProbePause
}

// halfOpen reports whether a caller may probe. One who is patient may whenever no message is unacked.
func (k *breaker) halfOpen(patient bool, unacked int64) bool {
	return k.open && !k.shut && (!time.Now().Before(k.probeAt) || patient && unacked == 0)
}

// probing notes that a caller probes.
func (k *breaker) probing() {
	k.probeAt = time.Now().Add(k.pause)
	k.pause = min(2*k.pause, maxProbePause)
}

// candidate is a broker that may be used now.
type candidate struct {
	b     *broker
	c     *conn
	probe bool // only a few messages, or only for a short while
	fresh bool // not connected for long
}

// rank is lower for what is to be used first: what has been connected for a while, then what is fresh, then
// what may still not answer. The hub probes one that owes no answer in its turn, so that the first broker of
// the list is soon back in use.
func (o candidate) rank(patient bool) int {
	switch {
	case o.probe && (patient || o.c.unacked.Load() > 0):
		return 2
	case o.fresh:
		return 1
	}
	return 0
}

// candidate says whether and how the broker may be used.
func (b *broker) candidate(patient bool) (o candidate, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o = candidate{b: b, c: b.conn, fresh: time.Since(b.connectedAt) < seasoned}
	switch b.state() {
	case Up:
		return o, true
	case Stalled:
		o.probe = b.breaker.halfOpen(patient, b.conn.unacked.Load())
		return o, o.probe
	}
	return o, false
}

// claim takes the right to probe; false if another was quicker.
func (b *broker) claim(o candidate, patient bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != o.c || b.state() == Down {
		return false
	}
	if b.breaker.open {
		if !b.breaker.halfOpen(patient, b.conn.unacked.Load()) {
			return false
		}
		b.breaker.probing()
	}
	return true
}

// answered closes the breaker. It is called at each settlement, so it is quick when that would change
// nothing.
func (b *broker) answered() {
	if !b.guarded.Load() {
		return
	}
	b.mu.Lock()
	was, shut := b.state(), b.breaker.shut
	if !shut { // what it settles then it had before
		b.close()
	}
	b.mu.Unlock()
	if was == Stalled && !shut {
		b.tellClosed("broker answers again")
	}
}

// close closes the breaker. b.mu is held.
func (b *broker) close() {
	was := b.state()
	b.breaker = breaker{}
	b.guarded.Store(false)
	if was == Stalled {
		b.enter("")
	}
}

// tellClosed tells everybody of a breaker that has closed.
func (b *broker) tellClosed(text string) {
	b.log.Info(text)
	b.observe(Up)
	b.r.signalUp()
}

// shutCause is why a broker that is shut is not up.
const shutCause = "it lets nobody send: an alarm (memory, disk) blocks publishers, most likely"

// shut opens the breaker since the broker says that it takes nothing, and lets those go that wait for it.
func (b *broker) shut(c *conn) {
	b.mu.Lock()
	if b.conn != c || b.breaker.shut {
		b.mu.Unlock()
		return
	}
	was := b.state()
	b.breaker.open, b.breaker.shut = true, true
	c.tripped.Store(true)
	b.enter(shutCause)
	b.mu.Unlock()
	if was != Stalled {
		b.log.Warn("broker stalled", "cause", shutCause, "unsettled", c.unacked.Load())
		b.observe(Stalled)
	}
	for _, l := range c.allLinks() {
		if !l.idle() {
			l.block(result{verdict: unanswered, reason: noAnswer})
		}
	}
}

// reopened closes the breaker of a broker that was shut.
func (b *broker) reopened(c *conn) {
	b.mu.Lock()
	if b.conn != c || !b.breaker.shut {
		b.mu.Unlock()
		return
	}
	c.tripped.Store(false)
	for _, l := range c.allLinks() {
		l.unblock()
	}
	b.close()
	b.mu.Unlock()
	b.tellClosed("broker takes messages again")
}

// latch has the breaker open when the broker connects again, for what it did to this connection.
func (b *broker) latch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.breaker.latched = true
	b.guarded.Store(true)
}

// trip opens the breaker because c has settled nothing for a while.
func (b *broker) trip(c *conn, cause string) {
	b.mu.Lock()
	if b.conn != c || b.state() != Up {
		b.mu.Unlock()
		return
	}
	c.tripped.Store(true)
	b.breaker.latched = true
	b.breaker.trip(firstProbePause)
	b.enter(cause)
	b.mu.Unlock()
	b.log.Warn("broker stalled", "cause", cause, "unsettled", c.unacked.Load())
	b.observe(Stalled)
}

// tripIdle opens the breaker of a broker that has settled nothing since then, because another does not
// answer.
func (b *broker) tripIdle(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state() != Up || b.conn.born.Add(time.Duration(b.conn.settledAt.Load())).After(since) {
		return
	}
	b.breaker.trip(0)
	b.enter("another broker does not answer; this one has not answered since")
}

// checkAnswers finds out, when a batch has waited long enough, whether it is the broker that does not answer
// or only some of its links. Half of HandoffTimeout is enough: a call may have spent the other half on
// another broker.
//
// Where nothing but an address waits that others have overtaken, it may be either. On the hub's time it
// counts as the broker, which is soon probed; to a patient caller, who would wait for send_timeout, as the
// address.
func (r *Relay) checkAnswers(o candidate, deliveries []*delivery, patient bool) {
	if quiet := o.c.quietFor(!patient); quiet >= r.opts.HandoffTimeout/2 {
		r.trip(o, quiet)
		return
	}
	enough := r.opts.patience(patient)
	// A patient caller does not wait for such a link either: it would hold up the rest.
	looked := map[*link]bool{}
	for _, d := range deliveries {
		l := d.link
		if d.patient && l.overtaken(d, enough) {
			d.giveUp(result{verdict: blocked, reason: "not settled while later messages were"})
			continue
		}
		isBlocked, known := looked[l]
		if !known {
			isBlocked = l.quietFor() >= enough
			looked[l] = isBlocked
			if isBlocked {
				still := l.standsStill()
				o.b.notice(l.topic, "blocked", still.reason)
				l.block(still)
			}
		}
		if isBlocked {
			d.giveUp(l.standsStill())
		}
	}
}

// trip takes the broker out of use and lets those go that wait for it.
func (r *Relay) trip(o candidate, quiet time.Duration) {
	if !o.b.upWith(o.c) {
		return
	}
	// The others first, then the broker, then those who wait for it: in any other order a call that begins
	// meanwhile would wait for another broker that does not answer.
	for _, other := range r.brokers {
		if other != o.b {
			other.tripIdle(time.Now().Add(-quiet))
		}
	}
	o.b.trip(o.c, o.c.silence())
	for _, l := range o.c.allLinks() {
		l.block(result{verdict: unanswered, reason: noAnswer})
	}
}
