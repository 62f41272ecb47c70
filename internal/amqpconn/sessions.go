package amqpconn

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/Azure/go-amqp"
)

// sessions are those of one connection: all links that send live in the main one. A new address is first attached to
// in the scratch session: RabbitMQ answers an attach that it refuses by ending the session, with all links and
// unsettled deliveries in it. Except for ended they belong to one goroutine at a time: the one that dials, then the
// one that attaches.
type sessions struct {
	main, scratch *amqp.Session
	// ended is the main session that a link found dead.
	ended atomic.Pointer[amqp.Session]
}

// senderOptions are those of every link.
func (c *Conn) senderOptions() *amqp.SenderOptions {
	return &amqp.SenderOptions{TargetCapabilities: c.Dialect.Capabilities}
}

// greetSessions begins the main session and tries the sample address.
func (c *Conn) greetSessions(ctx context.Context, address string) (maxSize uint64, err error) {
	if c.sessions.main, err = c.driver.NewSession(ctx, nil); err != nil {
		return 0, fmt.Errorf("begin session: %w", err)
	}
	if maxSize, err = c.try(ctx, address); err != nil {
		return 0, fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's permissions", address, err)
	}
	return maxSize, nil
}

// try attaches to address in the scratch session, where a refusal hurts nobody. RabbitMQ 3 refuses an address by ending
// the session; one that had ended before says nothing about the address, which is tried again in a fresh one.
func (c *Conn) try(ctx context.Context, address string) (maxSize uint64, err error) {
	scratch := &c.sessions.scratch
	for fresh := *scratch == nil; ; fresh = true {
		if *scratch == nil {
			if *scratch, err = c.driver.NewSession(ctx, nil); err != nil {
				*scratch = nil
				return 0, fmt.Errorf("begin session: %w", err)
			}
		}
		s, err := (*scratch).NewSender(ctx, address, c.senderOptions())
		if err == nil {
			maxSize = s.MaxMessageSize()
			c.wg.Go(func() { _ = c.bounded(s.Close) })
			return maxSize, nil
		}
		// Whether or not the session survived, the next try gets a fresh one.
		session := *scratch
		*scratch = nil
		c.wg.Go(func() { _ = c.bounded(session.Close) })
		var ended *amqp.SessionError
		if fresh || !errors.As(err, &ended) {
			return 0, err
		}
	}
}

// bounded runs the close of a session or link, which waits for the peer.
func (c *Conn) bounded(end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.ConnectTimeout)
	defer cancel()
	return end(ctx)
}

// OpenSender opens a link to address in the main session, in a new one if that has ended. It blocks for at most
// ConnectTimeout; a broker that does not answer in it loses the connection. One goroutine at a time may call it.
func (c *Conn) OpenSender(ctx context.Context, address string) (*Sender, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ConnectTimeout)
	defer cancel()
	if _, err := c.try(ctx, address); err != nil {
		return nil, c.unanswered(ctx, err)
	}
	s, err := c.attach(ctx, address)
	if err != nil {
		return nil, c.unanswered(ctx, err)
	}
	return s, nil
}

// attach opens a link to address in the main session, in a new one if that has ended.
func (c *Conn) attach(ctx context.Context, address string) (*Sender, error) {
	main := &c.sessions.main
	for again := true; ; again = false {
		if *main == nil || c.sessions.ended.Load() == *main {
			session, err := c.driver.NewSession(ctx, nil)
			if err != nil {
				return nil, err
			}
			if *main != nil || !again {
				c.log.Info("session replaced")
			}
			*main = session
		}
		s, err := (*main).NewSender(ctx, address, c.senderOptions())
		if err == nil {
			return &Sender{c: c, driver: s, session: *main}, nil
		}
		var ended *amqp.SessionError
		if !errors.As(err, &ended) || !again {
			return nil, err
		}
		*main = nil
	}
}

// unanswered drops the connection if err means that the broker does not answer.
func (c *Conn) unanswered(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		c.Drop(fmt.Sprintf("an attach was not answered within %v (connect_timeout)", c.opts.ConnectTimeout))
	}
	return err
}
