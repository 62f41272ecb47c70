package relay

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/message"
)

// window is how many deliveries of a link may be unsettled. Brokers grant less by their credit (RabbitMQ 4:
// 170) or much more; each costs a goroutine that waits for its receipt.
const window = 500

// link sends to one address over one connection. Its goroutine alone calls the driver's send, which cannot be
// cancelled safely and holds a lock while it waits for credit; callers only put deliveries into its queue and
// may leave at any time.
//
//	submit --> queue --> run: attach, SendWithReceipt --> await: one goroutine for each receipt
//	             |                                          |
//	             +--- withdraw: unsent                      +--- settle, or lose
type link struct {
	c       *conn
	address string        // of its target
	topic   string        // without prefix, for people
	used    time.Duration // guarded by conn.mu

	wake  chan struct{} // 1: the queue is no longer empty, or the link is retired
	slots chan struct{} // window

	mu          sync.Mutex             // guards what follows
	queue       []*delivery            // withdrawn ones stay in it until their turn
	live        int                    // of the queue, not withdrawn
	queuedBytes int64                  // of those
	unacked     map[*delivery]struct{} // sent and not answered
	settledAt   time.Duration          // since conn.born; of this link
	settledTo   time.Duration          // the latest sentAt of a settled delivery
	settledOf   time.Duration          // the latest began of one
	blockedAt   time.Duration          // since when it settles nothing while others do; 0 = it does not
	sender      *sender                // nil = attach first
	offering    atomic.Bool            // the driver has a message that it may not send yet
	retired     bool
}

func newLink(c *conn, topic, address string) *link {
	return &link{
		c: c, topic: topic, address: address,
		wake:    make(chan struct{}, 1),
		slots:   make(chan struct{}, window),
		unacked: map[*delivery]struct{}{},
	}
}

// submit queues d. If it cannot, the result says why.
func (l *link) submit(d *delivery) (result, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.link, d.began = l, l.c.now()
	switch {
	case l.retired:
		return result{verdict: unsent, reason: "link closed"}, false
	case l.c.tripped.Load() && !d.patient && !d.probe, d.probe && l.waitingFor(d.results):
		return result{verdict: unsent, reason: noAnswer}, false
	case l.blockedAt != 0 && !d.patient && !d.probe &&
		(l.waiting() || d.began-l.blockedAt < l.c.opts.SendTimeout):
		return result{verdict: blocked, reason: l.standstill().reason}, false
	case l.blockedAt != 0 && d.patient && d.since <= l.blockedAt && l.quiet() >= l.c.opts.patience(true):
		// Others of its kind have waited already: they would fill the window.
		return result{verdict: blocked, reason: l.standstill().reason}, false
	case l.queuedBytes > 0 && l.queuedBytes+d.size > l.c.opts.MaxInflightBytes/2:
		// One address must not take up what all others need.
		return result{verdict: unsent, reason: "too many bytes wait for this address"}, false
	}
	l.queue = append(l.queue, d)
	l.live++
	l.queuedBytes += d.size
	l.nudge()
	return result{}, true
}

// waiting reports whether anything is queued or unacked. l.mu is held.
func (l *link) waiting() bool { return l.live > 0 || len(l.unacked) > 0 }

// waitingFor reports whether anything but r's own is queued or unacked. l.mu is held.
func (l *link) waitingFor(r *results) bool {
	for d := range l.unacked {
		if d.results != r {
			return true
		}
	}
	return slices.ContainsFunc(l.queue, func(d *delivery) bool {
		return d.state() == deliveryQueued && d.results != r
	})
}

func (l *link) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run sends what is queued until the connection ends or the link is retired. What is queued then is unsent.
func (l *link) run() {
	defer l.abandon()
	for l.await() {
		s, a := l.attached()
		if s == nil && a == (result{}) {
			l.forget()
			continue
		}
		if s == nil {
			if a.verdict != unsent {
				l.refuse(a)
			}
			return
		}
		select {
		case l.slots <- struct{}{}:
		case <-l.c.Done():
			return
		}
		if !l.alive(s) {
			<-l.slots
			continue
		}
		select {
		case l.c.turns <- struct{}{}:
		case <-l.c.Done():
			return
		}
		d, stray := l.take(s)
		if d == nil {
			<-l.slots
		} else {
			l.transfer(s, d)
		}
		<-l.c.turns
		if stray != nil {
			stray.ended(result{verdict: unsent, state: message.NotSent, reason: behindUnknown})
		}
	}
}

// await blocks until something is queued; false = the end.
func (l *link) await() bool {
	for {
		l.mu.Lock()
		ready, retired := len(l.queue) > 0, l.retired
		l.mu.Unlock()
		switch {
		case retired:
			return false
		case ready:
			select {
			case <-l.c.Done():
				return false
			default:
				return true
			}
		}
		select {
		case <-l.wake:
		case <-l.c.Done():
			return false
		}
	}
}

// attached gives the sender, attaching if need be. Without one the result says why.
func (l *link) attached() (*sender, result) {
	l.mu.Lock()
	s := l.sender
	l.mu.Unlock()
	if s != nil {
		return s, result{}
	}
	s, err := l.c.attachFor(l)
	var gone *amqp.ConnError
	switch {
	case err == nil:
		return s, result{}
	case errors.Is(err, amqpconn.ErrNoPlace):
		return nil, result{}
	case errors.Is(err, errConnectionOver), errors.As(err, &gone), l.c.Dropped(), l.c.stopped.Load():
		return nil, connectionLost
	}
	return nil, judgeRefusal(err, l.c.Peer)
}

// refuse gives all that is queued the reason for which the broker did not let us attach.
func (l *link) refuse(a result) {
	l.c.refuse(l.address, a)
	l.c.b.notice(l.topic, "refused link", a.reason)
	l.mu.Lock()
	l.retired = true
	l.mu.Unlock()
	l.flush(a)
}

// abandon runs when the goroutine ends.
func (l *link) abandon() {
	l.mu.Lock()
	l.retired = true
	s := l.sender
	l.sender = nil
	closing := s != nil && s.unacked == 0
	if s != nil {
		s.retired = true
	}
	l.mu.Unlock()
	l.flush(connectionLost)
	if closing {
		_ = s.Close()
	}
}

// flush withdraws all that is queued, with a.
func (l *link) flush(a result) {
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	leaving := queue[:0]
	for _, d := range queue {
		if d.move(deliveryWithdrawn) {
			leaving = append(leaving, d)
		}
	}
	l.mu.Unlock()
	for _, d := range leaving {
		d.ended(a)
	}
}

// forget empties the queue if all that is in it was withdrawn.
func (l *link) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live == 0 {
		l.queue = nil
	}
}

// take gives the head of the queue, which is sent by s then; nil if all were withdrawn meanwhile, or s was. A
// stray is one that is withdrawn since s is not in the session that it has to be sent in.
func (l *link) take(s *sender) (d, stray *delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.retired {
		return nil, nil
	}
	defer func() {
		if s.asked && s.left == 0 {
			l.closeWhenSettled(s)
		}
	}()
	for len(l.queue) > 0 {
		d := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if d.within != nil && d.within != s.Session() {
			if d.move(deliveryWithdrawn) {
				return nil, d
			}
			continue
		}
		d.sender = s
		if !d.move(deliverySent) {
			continue // withdrawn
		}
		s.left = max(s.left-1, 0)
		d.followed = len(l.queue) > 0
		return d, nil
	}
	l.queue, s.left = nil, 0 // lets go of the array
	return nil, nil
}

// leaveBehind ends all that waits here without an answer, because the connection has ended and the driver has
// not.
func (l *link) leaveBehind() {
	l.flush(connectionLost)
	l.mu.Lock()
	l.retired = true
	var left []*delivery
	for d := range l.unacked {
		if d.move(deliveryLost) {
			left = append(left, d)
		}
	}
	l.mu.Unlock()
	for _, d := range left {
		d.ended(result{verdict: unanswered, state: message.Unknown, reason: noAnswer})
	}
}

// oldest is since when the oldest unacked delivery has been with the broker.
func (l *link) oldest() (since time.Duration, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := range l.unacked {
		if !any || d.sentAt < since {
			since, any = d.sentAt, true
		}
	}
	return since, any
}

// idle reports whether the link has nothing to do. It may change right after.
func (l *link) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.waiting()
}

// retire ends an idle link; false if it is no longer idle.
func (l *link) retire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting() {
		return false
	}
	l.retired = true
	l.nudge()
	return true
}

// block gives up on what waits here, except for patient callers: what is queued is withdrawn, what is sent
// gets a as its result. Until the link settles something, impatient messages are turned away.
func (l *link) block(a result) {
	l.mu.Lock()
	if l.blockedAt == 0 {
		l.blockedAt = max(l.c.now(), 1)
	}
	var leaving []*delivery
	for _, d := range l.queue {
		if !d.patient {
			leaving = append(leaving, d)
		}
	}
	for d := range l.unacked {
		if !d.patient {
			leaving = append(leaving, d)
		}
	}
	l.mu.Unlock()
	for _, d := range leaving {
		d.giveUp(a)
	}
}

// starved reports whether the link waits for nothing but credit. l.mu is held.
func (l *link) starved() bool { return l.offering.Load() && len(l.unacked) == 1 }

// standstill is what to say of a message for an address that stands still. l.mu is held.
func (l *link) standstill() result {
	if l.starved() {
		return addressStarved
	}
	return addressBlocked
}

// standsStill is standstill, and takes l.mu.
func (l *link) standsStill() result {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.standstill()
}

// unblock lets impatient messages in again.
func (l *link) unblock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blockedAt = 0
}

// waitingSince is when the oldest that waits here was submitted. What has been overtaken by later settlements
// does not count: it says something about that message, not about the link. l.mu is held.
func (l *link) waitingSince() (since time.Duration, any bool) {
	note := func(d *delivery) {
		if !any || d.began < since {
			since, any = d.began, true
		}
	}
	for _, d := range l.queue {
		if d.state() == deliveryQueued {
			note(d) // and the rest is younger
			break
		}
	}
	for d := range l.unacked {
		if d.sentAt >= l.settledTo {
			note(d)
		}
	}
	return since, any
}

// lastSettled is when the youngest that is settled was submitted.
func (l *link) lastSettled() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settledOf
}

// quiet is for how long the link has settled nothing though something waits; 0 if nothing does. l.mu is held.
func (l *link) quiet() time.Duration {
	since, any := l.waitingSince()
	if !any {
		return 0
	}
	return l.c.now() - max(since, l.settledAt)
}

// quietFor is quiet, and takes l.mu.
func (l *link) quietFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quiet()
}

// overtaken reports whether d is unsettled for so long although the broker has settled later ones.
func (l *link) overtaken(d *delivery, wait time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d.state() == deliverySent && d.sentAt < l.settledTo && l.c.now()-d.sentAt >= wait
}

// reset ends the sender, whose deliveries the broker does not settle. They are not to blame.
func (l *link) reset() {
	l.mu.Lock()
	s := l.sender
	l.sender = nil
	l.blockedAt = max(l.c.now(), 1)
	if s != nil {
		s.resetByUs = true
	}
	l.mu.Unlock()
	if s != nil {
		l.c.wg.Go(func() {
			if err := s.Close(); errors.Is(err, context.DeadlineExceeded) {
				l.c.Drop("a detach was not answered")
			}
		})
	}
}

func (l *link) isBlocked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blockedAt != 0
}

func (l *link) isRetired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retired
}
