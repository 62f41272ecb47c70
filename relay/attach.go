package relay

import (
	"context"
	"errors"
	"fmt"

	"github.com/Azure/go-amqp"
)

type attachRequest struct {
	target string
	reply  chan<- attachReply // buffered: the asker may be gone
}

type attachReply struct {
	sender  *amqp.Sender
	session *amqp.Session
	err     error
}

// attachLoop serves link goroutines, one at a time.
func (c *conn) attachLoop(ctx context.Context) {
	for {
		select {
		case req := <-c.attach:
			req.reply <- c.attachSender(ctx, req.target)
		case <-ctx.Done():
			return
		}
	}
}

// senderOptions are those of every link.
func (c *conn) senderOptions() *amqp.SenderOptions {
	return &amqp.SenderOptions{TargetCapabilities: c.dialect.capabilities}
}

// try attaches to target in the scratch session, where a refusal hurts nobody. RabbitMQ 3 refuses an address by ending the
// session; one that had ended before says nothing about the address, which is tried again in a fresh one.
func (c *conn) try(ctx context.Context, target string) (maxSize uint64, err error) {
	for fresh := c.scratch == nil; ; fresh = true {
		if c.scratch == nil {
			if c.scratch, err = c.amqp.NewSession(ctx, nil); err != nil {
				c.scratch = nil
				return 0, fmt.Errorf("begin session: %w", err)
			}
		}
		s, err := c.scratch.NewSender(ctx, target, c.senderOptions())
		if err == nil {
			maxSize = s.MaxMessageSize()
			c.wg.Go(func() { c.bounded(s.Close) })
			return maxSize, nil
		}
		// Whether or not the session survived, the next try gets a fresh one.
		session := c.scratch
		c.scratch = nil
		c.wg.Go(func() { c.bounded(session.Close) })
		var ended *amqp.SessionError
		if fresh || !errors.As(err, &ended) {
			return 0, err
		}
	}
}

// bounded runs the close of a session or link, which waits for the peer. Its error says nothing new: where the
// peer does not answer, the watch over the connection finds out.
func (c *conn) bounded(end func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.ConnectTimeout)
	defer cancel()
	_ = end(ctx)
}

// attachSender opens a link to target in the main session, in a new one if that has ended.
func (c *conn) attachSender(ctx context.Context, target string) attachReply {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ConnectTimeout)
	defer cancel()
	if _, err := c.try(ctx, target); err != nil {
		return attachReply{err: c.unanswered(ctx, err)}
	}
	for again := true; ; again = false {
		if c.main == nil || c.ended.Load() == c.main {
			session, err := c.amqp.NewSession(ctx, nil)
			if err != nil {
				return attachReply{err: c.unanswered(ctx, err)}
			}
			if c.main != nil || !again {
				c.log.Info("session replaced")
			}
			c.main = session
		}
		s, err := c.main.NewSender(ctx, target, c.senderOptions())
		if err == nil {
			return attachReply{sender: s, session: c.main}
		}
		var ended *amqp.SessionError
		if !errors.As(err, &ended) || !again {
			return attachReply{err: c.unanswered(ctx, err)}
		}
		c.main = nil
	}
}

// sessionEnded notes that links found the main session dead.
func (c *conn) sessionEnded(session *amqp.Session, err error) {
	if c.ended.Swap(session) != session {
		c.log.Warn("session ended", "cause", failureText(err))
	}
}

// unanswered drops the connection if err means that the broker does not answer.
func (c *conn) unanswered(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		c.drop(fmt.Sprintf("an attach was not answered within %v (connect_timeout)", c.opts.ConnectTimeout))
	}
	return err
}
