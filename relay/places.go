package relay

import (
	"context"
	"errors"
	"time"

	"koji-relay/internal/amqpconn"
)

type attachRequest struct {
	link  *link
	reply chan<- attachReply // buffered: the asker may be gone
}

type attachReply struct {
	sender *sender
	err    error
}

var errConnectionOver = errors.New("connection over")

// attachFor waits for its turn and attaches l. It returns when the connection is over, whatever the driver
// does.
func (c *conn) attachFor(l *link) (*sender, error) {
	reply := make(chan attachReply, 1)
	select {
	case c.attach <- attachRequest{link: l, reply: reply}:
	case <-c.Done():
		return nil, errConnectionOver
	}
	select {
	case r := <-reply:
		return r.sender, r.err
	case <-c.Done():
		return nil, errConnectionOver
	}
}

// attachLoop serves link goroutines, one at a time.
func (c *conn) attachLoop(ctx context.Context) {
	for {
		select {
		case req := <-c.attach:
			s, err := c.OpenSender(ctx, req.link.address)
			for errors.Is(err, amqpconn.ErrNoPlace) && c.makePlace(ctx, req.link) {
				s, err = c.OpenSender(ctx, req.link.address)
			}
			req.reply <- req.link.attachedTo(s, err)
		case <-ctx.Done():
			return
		}
	}
}

// attachedTo makes s what l sends by.
func (l *link) attachedTo(s *amqpconn.Sender, err error) attachReply {
	if err != nil {
		return attachReply{err: err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sender = &sender{Sender: s, opened: l.c.now()}
	return attachReply{sender: l.sender}
}

const (
	// yieldTime is for how long a link may finish before another one is asked to give up its place as well.
	yieldTime = 100 * time.Millisecond
	// yieldAfter is how many messages it may still send.
	yieldAfter = 100
)

// makePlace has a link closed where the broker allows fewer than there are addresses, and waits for it: first
// one that has nothing to do, else the one that was opened first. What it has queued and may not send waits
// for its next turn. False is the end of the connection, or that l has nothing to send any more.
func (c *conn) makePlace(ctx context.Context, l *link) bool {
	if asked := c.eldest(); asked != nil {
		asked.yield()
	}
	timer := time.NewTimer(yieldTime)
	defer timer.Stop()
	select {
	case <-c.Freed():
	case <-timer.C:
	case <-c.Done():
		return false
	case <-ctx.Done():
		return false
	}
	return !l.idle()
}

// eldest is the open link that is to be closed next, nil without one.
func (c *conn) eldest() *link {
	var eldest *link
	var since time.Duration
	busy := true
	for _, l := range c.allLinks() {
		l.mu.Lock()
		s, idle := l.sender, !l.waiting()
		open := s != nil && !s.asked
		l.mu.Unlock()
		if open && (eldest == nil || busy && idle || busy != idle && s.opened < since) {
			eldest, since, busy = l, s.opened, !idle
		}
	}
	return eldest
}

// yield closes the link as soon as what it has to send now is settled. The next message attaches anew.
func (l *link) yield() {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sender
	if s == nil || s.asked {
		return
	}
	s.asked, s.left = true, min(l.live, yieldAfter)
	if s.left == 0 {
		l.closeWhenSettled(s)
	}
}

// closeWhenSettled takes s out of use, so that the next message attaches anew. l.mu is held.
func (l *link) closeWhenSettled(s *sender) {
	s.retired = true
	if l.sender == s {
		l.sender = nil
	}
	if s.unacked == 0 {
		l.c.wg.Go(func() { _ = s.Close() })
	}
}
