package relay

import (
	"errors"
	"fmt"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// sender is one attached driver link; a link goes through several of them.
type sender struct {
	*amqpconn.Sender
	opened    time.Duration // since conn.born
	asked     bool          // guarded by link.mu: to give its place to another address
	left      int           // guarded by link.mu: what it may still send then
	unacked   int           // guarded by link.mu
	retired   bool          // guarded by link.mu: close when nothing is unacked any more
	dead      bool          // guarded by link.mu
	alone     bool          // guarded by link.mu: when it died one delivery was unacked
	resetByUs bool          // guarded by link.mu: closed by us; its deliveries are not to blame
}

// alive reports whether s can still send. A link that ended while it was idle must not be blamed on the next
// message, which the broker never saw.
func (l *link) alive(s *sender) bool {
	l.mu.Lock()
	busy := s.unacked > 0 // those would tell
	l.mu.Unlock()
	if busy {
		return true
	}
	err := s.Ended()
	if err == nil {
		return true
	}
	l.ended(s)
	return false
}

// transfer gives d to the driver, and waits for the answer elsewhere.
func (l *link) transfer(s *sender, d *delivery) {
	l.offering.Store(true)
	receipt, err := s.Send(d.wire, d.msg.Keys(), d.followed)
	l.offering.Store(false)
	d.wire = nil // sent or not, it is not sent again from here
	if err != nil {
		l.failed(s, d, err)
		return
	}
	d.results.wrote(d.index)
	if d.size >= amqpconn.BigMessage {
		l.retireSender(s)
	}
	l.c.wg.Go(func() {
		state, err := receipt.Wait()
		if err != nil {
			l.failed(s, d, err)
			return
		}
		l.settle(s, d, judgeDisposition(state, l.c.Peer), true)
	})
}

// failed ends d, which was given to the driver, after an error at any level. Whether the broker has it is not
// known, unless the driver found it too large.
func (l *link) failed(s *sender, d *delivery, err error) {
	var (
		local      *amqp.Error
		linkErr    *amqp.LinkError
		sessionErr *amqp.SessionError
		connErr    *amqp.ConnError
	)
	a := result{verdict: lost, state: message.Unknown, alone: refused}
	switch {
	case errors.As(err, &connErr):
		a.cut = true
		a.reason = "connection lost before the broker answered: " + failure.Text(err)
		if l.c.blameless() {
			a.verdict, a.reason = unanswered, noAnswer
		}
		if errors.As(err, &local) && local.Condition == amqp.ErrCondConnectionForced {
			a.alone, a.cut = lost, false // an administrator's doing
		}
	case errors.As(err, &sessionErr):
		if sessionErr.RemoteErr != nil {
			a.alone, a.forbids = judgeError(sessionErr.RemoteErr, l.c.Peer), forbids(sessionErr.RemoteErr)
		}
		l.ended(s)
		a.reason = "session ended before the broker answered: " + failure.Text(err)
	case errors.As(err, &linkErr):
		a = l.linkFailed(s, linkErr)
	case errors.As(err, &local) && local.Condition == amqp.ErrCondMessageSizeExceeded:
		a = result{verdict: tooLarge, state: message.NotSent, reason: fmt.Sprintf(
			"larger than the %s that the broker takes", inspect.Size(int64(s.MaxMessageSize())))}
	default:
		a = result{verdict: unencodable, state: message.NotSent, reason: "encode message: " + err.Error()}
	}
	l.settle(s, d, a, false)
}

// linkFailed judges the end of the link while the session lives. A lone unsettled message is what it was
// about.
func (l *link) linkFailed(s *sender, err *amqp.LinkError) result {
	alone, resetByUs := l.ended(s)
	if resetByUs {
		return result{verdict: blocked, state: message.Unknown, reason: fmt.Sprintf(
			"not settled within %v (send_timeout)", l.c.opts.SendTimeout)}
	}
	a := result{verdict: lost, state: message.Unknown, alone: refused,
		reason: "link ended before the broker answered: " + failure.Text(err)}
	if err.RemoteErr != nil {
		a.alone, a.forbids = judgeError(err.RemoteErr, l.c.Peer), forbids(err.RemoteErr)
		if alone {
			a.verdict = a.alone
		}
	}
	l.c.b.notice(l.topic, "link ended", "link ended: "+failure.Text(err))
	return a
}

// ended makes the next message attach anew.
func (l *link) ended(s *sender) (alone, resetByUs bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.dead {
		s.dead, s.alone = true, s.unacked == 1
	}
	if l.sender == s {
		l.sender = nil
	}
	return s.alone, s.resetByUs
}

// retireSender makes the next message attach anew and s close when nothing on it is unsettled any more.
func (l *link) retireSender(s *sender) {
	l.mu.Lock()
	s.retired = true
	if l.sender == s {
		l.sender = nil
	}
	l.mu.Unlock()
}

// settle ends a delivery that was sent. answered tells whether the broker did it.
func (l *link) settle(s *sender, d *delivery, a result, answered bool) {
	if a.verdict == unroutable && (d.msg.News() || l.c.opts.DropUnroutable) {
		a.verdict = dropped
	}
	to := deliveryLost
	if answered {
		to = deliverySettled
	}
	l.mu.Lock()
	if !d.move(to) {
		l.mu.Unlock()
		return // the connection was left behind, and all that waited with it
	}
	closing := s.retired && s.unacked == 0
	recovered := answered && l.blockedAt != 0
	if answered {
		l.settledAt, l.blockedAt = l.c.now(), 0
		l.settledTo, l.settledOf = max(l.settledTo, d.sentAt), max(l.settledOf, d.began)
	}
	l.mu.Unlock()
	if answered {
		l.c.progress()
	}
	switch {
	case a.verdict <= unroutable && a.verdict != unsent:
		l.c.b.notice(l.topic, a.state.String()+a.verdict.String(), a.reason)
	case recovered || a.verdict == accepted:
		l.c.b.notice(l.topic, "", "")
	}
	d.ended(a)
	if closing {
		_ = s.Close()
	}
}
