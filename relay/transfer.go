package relay

import (
	"errors"
	"fmt"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/message"
)

// alive reports whether s can still send. A link that ended while it was idle must not make a suspect of the next
// message, which the broker never saw.
func (l *link) alive(s *sender) bool {
	l.mu.Lock()
	busy := s.unsettled > 0 // those would tell
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
	receipt, err := s.Send(d.wire, d.msg.Keys())
	d.wire = nil // sent or not, it is not sent again from here
	if err != nil {
		l.failed(s, d, err)
		return
	}
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
	a := attempt{verdict: lost, state: message.Unknown, alone: refused}
	switch {
	case errors.As(err, &connErr):
		a.reason = "connection lost before the broker answered: " + amqpconn.ErrorText(err)
		if l.c.blameless() {
			a.verdict, a.reason = silent, noAnswer
		}
		if errors.As(err, &local) && local.Condition == amqp.ErrCondConnectionForced {
			a.alone = lost // an administrator's doing
		}
	case errors.As(err, &sessionErr):
		if sessionErr.RemoteErr != nil {
			a.alone = judgeError(sessionErr.RemoteErr, l.c.Peer)
		}
		l.ended(s)
		a.reason = "session ended before the broker answered: " + amqpconn.ErrorText(err)
	case errors.As(err, &linkErr):
		a = l.linkFailed(s, linkErr)
	case errors.As(err, &local) && local.Condition == amqp.ErrCondMessageSizeExceeded:
		a = attempt{verdict: tooLarge, state: message.NotSent, reason: fmt.Sprintf(
			"larger than the %d bytes that the broker takes", s.MaxMessageSize())}
	default:
		a = attempt{verdict: unencodable, state: message.NotSent, reason: "encode message: " + err.Error()}
	}
	l.settle(s, d, a, false)
}

// linkFailed judges the end of the link while the session lives. A lone unsettled message is what it was about.
func (l *link) linkFailed(s *sender, err *amqp.LinkError) attempt {
	alone, forsaken := l.ended(s)
	if forsaken {
		return attempt{verdict: stuck, state: message.Unknown, reason: fmt.Sprintf(
			"not settled within %v (send_timeout)", l.c.opts.SendTimeout)}
	}
	a := attempt{verdict: lost, state: message.Unknown, alone: refused,
		reason: "link ended before the broker answered: " + amqpconn.ErrorText(err)}
	if err.RemoteErr != nil {
		a.alone = judgeError(err.RemoteErr, l.c.Peer)
		if alone {
			a.verdict = a.alone
		}
	}
	l.c.hooks.notice(l.topic, "link ended", "link ended: "+amqpconn.ErrorText(err))
	return a
}

// ended makes the next message attach anew.
func (l *link) ended(s *sender) (alone, forsaken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.dead {
		s.dead, s.alone = true, s.unsettled == 1
	}
	if l.sender == s {
		l.sender = nil
	}
	return s.alone, s.forsaken
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

// settle ends a delivery that was given to the driver. answered tells whether the broker did it.
func (l *link) settle(s *sender, d *delivery, a attempt, answered bool) {
	if a.verdict == unroutable && (d.msg.News() || l.c.opts.Unroutable == UnroutableDrop) {
		a.verdict = dropped
	}
	l.mu.Lock()
	delete(l.unsettled, d)
	s.unsettled--
	closing := s.retired && s.unsettled == 0
	recovered := answered && l.stalledAt != 0
	if answered {
		l.settledAt, l.stalledAt = l.c.now(), 0
		l.settledTo, l.settledOf = max(l.settledTo, d.takenAt), max(l.settledOf, d.began)
	}
	l.mu.Unlock()
	l.c.unsettled.Add(-1)
	<-l.slots
	if answered {
		l.c.progress()
	}
	switch {
	case recovered || a.verdict == accepted:
		l.c.hooks.notice(l.topic, "", "")
	case a.verdict <= unroutable && a.verdict != unsent:
		l.c.hooks.notice(l.topic, a.state.String()+a.verdict.String(), a.reason)
	}
	l.finish(d, a)
	if closing {
		_ = s.Close()
	}
}
