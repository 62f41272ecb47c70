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

	mu        sync.Mutex  // guards what follows
	queue     []*delivery // withdrawn ones stay in it until their turn
	live      int         // of the queue, not withdrawn
	queued    int64       // bytes of those
	unsettled map[*delivery]struct{}
	settledAt time.Duration // since conn.born; of this link
	settledTo time.Duration // the latest takenAt of a settled delivery
	settledOf time.Duration // the latest began of one
	stalledAt time.Duration // 0 = not stalled
	sender    *sender       // nil = attach first
	retired   bool
}

// sender is one attached driver link; a link goes through several of them.
type sender struct {
	*amqpconn.Sender
	opened    time.Duration // since conn.born
	asked     bool          // guarded by link.mu: to give its place to another address
	left      int           // guarded by link.mu: what it may still send then
	unsettled int           // guarded by link.mu
	retired   bool          // guarded by link.mu: close when nothing is unsettled any more
	dead      bool          // guarded by link.mu
	alone     bool          // guarded by link.mu: when it died one delivery was unsettled
	forsaken  bool          // guarded by link.mu: closed by us for silence; its deliveries are not to blame
}

// delivery is one attempt to send one message on one broker.
type delivery struct {
	msg     *message.Message
	wire    *amqp.Message // as this broker gets it; nil once transferred
	size    int64
	patient bool
	trial   bool // it is to find out whether a stalled broker settles
	round   *round
	index   int
	link    *link
	began   time.Duration // when it was submitted, since conn.born

	finished atomic.Bool

	// Guarded by link.mu.
	taken   bool          // given to the driver
	takenAt time.Duration // since conn.born
	over    bool          // nothing here refers to it any more, but for a withdrawn one's place in the queue
	doubted bool          // its caller stopped waiting while the driver had it
	release func()        // called when it is over, if the caller has left by then
}

func newLink(c *conn, topic, address string) *link {
	return &link{
		c: c, topic: topic, address: address,
		wake:      make(chan struct{}, 1),
		slots:     make(chan struct{}, window),
		unsettled: map[*delivery]struct{}{},
	}
}

// submit queues d. If it cannot, the attempt says why and d is over.
func (l *link) submit(d *delivery) (attempt, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.link, d.began = l, l.c.now()
	switch {
	case l.retired:
		return attempt{verdict: unsent, reason: "link closed"}, false
	case l.c.stalled.Load() && !d.patient && !d.trial, d.trial && l.waitingFor(d.round):
		return attempt{verdict: unsent, reason: noAnswer}, false
	case l.stalledAt != 0 && !d.patient && !d.trial && (l.waiting() || d.began-l.stalledAt < l.c.opts.SendTimeout):
		return attempt{verdict: stuck, reason: standsStill.reason}, false
	case l.queued > 0 && l.queued+d.size > l.c.opts.MaxInflightBytes/2:
		// One address must not take up what all others need.
		return attempt{verdict: unsent, reason: "too many bytes wait for this address"}, false
	}
	l.queue = append(l.queue, d)
	l.live++
	l.queued += d.size
	l.nudge()
	return attempt{}, true
}

// waiting reports whether anything is queued or unsettled. l.mu is held.
func (l *link) waiting() bool { return l.live > 0 || len(l.unsettled) > 0 }

// waitingFor reports whether anything but r's own is queued or unsettled. l.mu is held.
func (l *link) waitingFor(r *round) bool {
	for d := range l.unsettled {
		if d.round != r {
			return true
		}
	}
	return slices.ContainsFunc(l.queue, func(d *delivery) bool { return !d.over && d.round != r })
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
		if s == nil && a == (attempt{}) {
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
		d := l.take(s)
		if d == nil {
			<-l.slots
		} else {
			l.transfer(s, d)
		}
		<-l.c.turns
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

// attached gives the sender, attaching if need be. Without one the attempt says why.
func (l *link) attached() (*sender, attempt) {
	l.mu.Lock()
	s := l.sender
	l.mu.Unlock()
	if s != nil {
		return s, attempt{}
	}
	reply := make(chan attachReply, 1)
	select {
	case l.c.attach <- attachRequest{link: l, reply: reply}:
	case <-l.c.Done():
		return nil, attempt{verdict: unsent, reason: "connection lost", failure: amqpconn.FailedLost}
	}
	var r attachReply
	select {
	case r = <-reply:
	case <-l.c.Done():
		return nil, attempt{verdict: unsent, reason: "connection lost", failure: amqpconn.FailedLost}
	}
	if r.err != nil {
		if errors.Is(r.err, amqpconn.ErrNoPlace) {
			return nil, attempt{}
		}
		var gone *amqp.ConnError
		if errors.As(r.err, &gone) || l.c.Dropped() || l.c.stopped.Load() {
			return nil, attempt{verdict: unsent, reason: "connection lost", failure: amqpconn.FailedLost}
		}
		return nil, judgeRefusal(r.err, l.c.Peer)
	}
	return r.sender, attempt{}
}

// refuse gives all that is queued the reason for which the broker did not let us attach.
func (l *link) refuse(a attempt) {
	l.c.refuse(l.address, a)
	l.c.hooks.notice(l.topic, "refused link", a.reason)
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
	closing := s != nil && s.unsettled == 0
	if s != nil {
		s.retired = true
	}
	l.mu.Unlock()
	l.flush(attempt{verdict: unsent, reason: "connection lost", failure: amqpconn.FailedLost})
	if closing {
		_ = s.Close()
	}
}

// flush ends all that is queued with a.
func (l *link) flush(a attempt) {
	l.mu.Lock()
	queue := l.queue
	l.queue, l.live, l.queued = nil, 0, 0
	var ending []*delivery
	for _, d := range queue {
		if !d.over {
			ending = append(ending, d)
		}
	}
	l.mu.Unlock()
	for _, d := range ending {
		l.finish(d, a)
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

// take moves the head of the queue to the unsettled ones; nil if all were withdrawn meanwhile, or s was.
func (l *link) take(s *sender) *delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.retired {
		return nil
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
		if d.over {
			continue
		}
		l.live--
		l.queued -= d.size
		d.taken, d.takenAt = true, l.c.now()
		l.unsettled[d] = struct{}{}
		s.unsettled++
		s.left = max(s.left-1, 0)
		l.c.unsettled.Add(1)
		return d
	}
	l.queue, s.left = nil, 0 // lets go of the array
	return nil
}

// forsake ends all that waits here without an answer, because the connection has ended and the driver has not.
func (l *link) forsake() {
	l.mu.Lock()
	l.retired = true
	unsettled := make([]*delivery, 0, len(l.unsettled))
	for d := range l.unsettled {
		unsettled = append(unsettled, d)
	}
	l.mu.Unlock()
	l.flush(attempt{verdict: unsent, reason: "connection lost", failure: amqpconn.FailedLost})
	for _, d := range unsettled {
		l.finish(d, attempt{verdict: silent, state: message.Unknown, reason: noAnswer})
	}
}

// finish reports d's end, once, to its round, or to whom it concerns when the round has been left.
func (l *link) finish(d *delivery, a attempt) {
	a.broker = l.c.name
	if d.finished.Swap(true) {
		return
	}
	if d.taken {
		l.c.hooks.settled(d, a)
	}
	if a.verdict == lost {
		l.c.hooks.lost(d.msg) // before the caller can send it again
	}
	d.round.finish(d.index, a)
	l.mu.Lock()
	d.over = true
	doubted, release := d.doubted, d.release
	l.mu.Unlock()
	if doubted {
		l.c.hooks.late(d, a)
	}
	if release != nil {
		release()
	}
}

// giveUp ends the wait for d: it is withdrawn and unsent if the driver does not have it yet, else unknown. In both
// cases its round learns a's verdict and reason.
func (l *link) giveUp(d *delivery, a attempt) {
	a.broker, a.state = l.c.name, message.NotSent
	l.mu.Lock()
	switch {
	case d.over:
		l.mu.Unlock()
		return
	case d.taken:
		a.state = message.Unknown
		if !d.doubted {
			d.doubted = true
			l.c.hooks.doubt(d)
		}
	default:
		d.over = true
		l.live--
		l.queued -= d.size
		if a.verdict == silent {
			a.verdict = unsent
		}
	}
	l.mu.Unlock()
	d.round.finish(d.index, a)
}

// disown is called when the caller leaves: release runs when nothing here refers to d any more, maybe at once.
func (l *link) disown(d *delivery, release func()) {
	l.mu.Lock()
	over := d.over
	if !over {
		d.release = release
	}
	l.mu.Unlock()
	if over {
		release()
	}
}

// oldest is since when the oldest unsettled delivery has been with the driver.
func (l *link) oldest() (since time.Duration, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := range l.unsettled {
		if !any || d.takenAt < since {
			since, any = d.takenAt, true
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

// stall gives up on what waits here, except for patient callers: the queued are withdrawn, the unsettled reported
// as a says. Until the link settles something, impatient messages are turned away.
func (l *link) stall(a attempt) {
	l.mu.Lock()
	if l.stalledAt == 0 {
		l.stalledAt = max(l.c.now(), 1)
	}
	var leaving []*delivery
	for _, d := range l.queue {
		if !d.patient && !d.over {
			leaving = append(leaving, d)
		}
	}
	for d := range l.unsettled {
		if !d.patient {
			leaving = append(leaving, d)
		}
	}
	l.mu.Unlock()
	for _, d := range leaving {
		l.giveUp(d, a)
	}
}

// waitingSince is when the oldest that waits here was submitted. What has been overtaken by later settlements does not
// count: it says something about that message, not about the link.
func (l *link) waitingSince() (since time.Duration, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	note := func(d *delivery) {
		if !any || d.began < since {
			since, any = d.began, true
		}
	}
	for _, d := range l.queue {
		if !d.over {
			note(d) // and the rest is younger
			break
		}
	}
	for d := range l.unsettled {
		if d.takenAt >= l.settledTo {
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

// silentFor is for how long the link has settled nothing though something waits; 0 if nothing does.
func (l *link) silentFor() time.Duration {
	since, any := l.waitingSince()
	if !any {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.c.now() - max(since, l.settledAt)
}

// overtaken reports whether d is unsettled for so long although the broker has settled later ones.
func (l *link) overtaken(d *delivery, wait time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return d.taken && !d.over && d.takenAt < l.settledTo && l.c.now()-d.takenAt >= wait/2
}

// reset ends the sender, whose deliveries the broker does not settle. They are not to blame.
func (l *link) reset() {
	l.mu.Lock()
	s := l.sender
	l.sender = nil
	l.stalledAt = max(l.c.now(), 1)
	if s != nil {
		s.forsaken = true
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

func (l *link) stalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stalledAt != 0
}

func (l *link) isRetired() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retired
}
