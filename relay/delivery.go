package relay

import (
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/message"
)

// deliveryState is how far one attempt to send one message on one broker has come.
//
//	queued ----> sent ----> settled    the broker has answered
//	   |           +------> lost       its link, session or connection ended, or the driver refused it
//	   +-------> withdrawn             nobody waits for it any more, or the link ended; the broker never had it
type deliveryState int32

const (
	deliveryQueued deliveryState = iota
	deliverySent
	deliverySettled
	deliveryLost
	deliveryWithdrawn
)

func (s deliveryState) final() bool { return s >= deliverySettled }

// delivery is one attempt to send one message on one broker.
type delivery struct {
	msg     *message.Message
	wire    *amqp.Message // as this broker gets it; nil once sent
	size    int64
	patient bool
	probe   bool // it is to find out whether a broker settles whose breaker is open
	results *results
	index   int // in results
	link    *link
	began   time.Duration // when it was queued, since conn.born
	since   time.Duration // when its flight began
	within  any           // the session that it has to be sent in; nil = any

	followed bool // another one was behind it when it left the queue

	at   atomic.Int32 // deliveryState; move changes it
	left atomic.Bool  // its caller stopped waiting while it was sent

	// Guarded by link.mu.
	sender  *sender       // of a sent one
	sentAt  time.Duration // since conn.born
	release func()        // called when it is final, if the caller has left by then
}

func (d *delivery) state() deliveryState { return deliveryState(d.at.Load()) }

// session is the one that a sent delivery was sent in.
func (d *delivery) session() any {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	if d.sender == nil {
		return nil
	}
	return d.sender.Session()
}

// move is the one place where a delivery changes its state, with all accounts that depend on it. It reports
// whether the state may follow the present one; if not, nothing changes. link.mu is held. A final state is to
// be told with ended.
func (d *delivery) move(to deliveryState) bool {
	l, from := d.link, d.state()
	switch {
	case from == deliveryQueued && (to == deliverySent || to == deliveryWithdrawn):
		l.live--
		l.queuedBytes -= d.size
	case from == deliverySent && (to == deliverySettled || to == deliveryLost):
		delete(l.unacked, d)
		d.sender.unacked--
		l.c.unacked.Add(-1)
		<-l.slots
	default:
		return false
	}
	if to == deliverySent {
		d.sentAt = l.c.now()
		l.unacked[d] = struct{}{}
		d.sender.unacked++
		l.c.unacked.Add(1)
	}
	d.at.Store(int32(to))
	return true
}

// ended tells those whom it concerns that d has come to its end. No lock is held.
func (d *delivery) ended(r result) {
	c := d.link.c
	r.broker = c.name
	if d.state() != deliveryWithdrawn {
		c.b.observeSettled(d, r)
	}
	if r.verdict == lost && !c.isolated {
		c.b.r.poison.note(d.msg.ID, c.name) // before the caller can send it again
	}
	d.results.put(d.index, r)
	if d.left.Load() && !c.isolated {
		c.b.r.answeredLate(d, r)
	}
	d.link.mu.Lock()
	release := d.release
	d.link.mu.Unlock()
	if release != nil {
		release()
	}
}

// inTurn is r, or with PreserveOrder another verdict for what the hub hands over to an address that stands
// still: set aside at once, it could be overtaken. So it waits at its place in the queue. The drain, which
// has waited for the address, sets it aside.
func (d *delivery) inTurn(o *Options, r result) result {
	if !o.PreserveOrder || d.patient || r.verdict != blocked {
		return r
	}
	r.verdict = unanswered
	if r.state == message.NotSent {
		r.verdict = unsent
	}
	return r
}

// giveUp ends the wait for d: it is withdrawn and unsent if the driver does not have it yet, else unknown,
// and its answer is waited for elsewhere. In both cases its caller gets r's verdict and reason.
func (d *delivery) giveUp(r result) {
	l := d.link
	l.mu.Lock()
	withdrawn := d.move(deliveryWithdrawn)
	l.mu.Unlock()
	if withdrawn {
		r.state = message.NotSent
		if r.verdict == unanswered {
			r.verdict = unsent
		}
		d.ended(d.inTurn(l.c.opts, r))
		return
	}
	if d.state().final() {
		return // its end is being told
	}
	if !d.left.Swap(true) && !l.c.isolated {
		l.c.b.r.unacked.add(d)
	}
	r.broker, r.state = l.c.name, message.Unknown
	d.results.put(d.index, d.inTurn(l.c.opts, r))
}

// onFinal is called when the caller leaves: release runs when d is final, maybe at once.
func (d *delivery) onFinal(release func()) {
	d.link.mu.Lock()
	over := d.state().final()
	if !over {
		d.release = release
	}
	d.link.mu.Unlock()
	if over {
		release()
	}
}
