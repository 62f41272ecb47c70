package amqpconn

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/retry"
)

// ErrNoPlace says that the broker allows no more links, and that one has to be closed first.
var ErrNoPlace = errors.New("the broker allows no more links")

// AddressTooLongError says that an address does not fit into the frames that the broker takes.
type AddressTooLongError struct{ Size, Limit int }

func (e *AddressTooLongError) Error() string {
	return fmt.Sprintf("address of %d bytes: the broker takes frames of %d bytes (max-frame-size)", e.Size,
		e.Limit)
}

// sessions are those of one connection. Links that send live in main ones: one where the broker allows enough
// links in it, else several. An address is first attached to in the scratch session, where the broker allows
// more than one: RabbitMQ answers an attach that it refuses by ending the session, with all links and
// unsettled deliveries in it.
//
// Those that open belong to one goroutine at a time: the one that dials, then the one that attaches.
type sessions struct {
	scratch *session
	tried   map[string]time.Time // addresses that the broker took in the scratch session
	maxSize uint64               // of a message, on the link opened last
	greeted bool                 // the sample address was taken

	mu     sync.Mutex // guards main
	main   []*session
	freed  chan struct{} // 1: a place has become free
	losses int           // main sessions that ended, for the log
}

// session is one session. places is guarded by sessions.mu.
type session struct {
	driver *amqp.Session
	places int  // for links
	narrow bool // it has room for one link
	ended  bool
}

// triedTime is for how long an address that the broker took is not tried again before a link to it is opened.
const triedTime = 30 * time.Second

// numberRest is how long the number of a session that ended is left alone. The driver gives it to the next
// session at once. RabbitMQ before 4.1.3 may then still take it for the one that ended, and never answers
// (rabbitmq-server 14317); and the driver's answer to the end may come after the new begin (upstream 18).
const numberRest = 50 * time.Millisecond

// begin opens a session, whose limits the peer's answer has.
func (c *Conn) begin(ctx context.Context) (*session, error) {
	retry.Pause(ctx, time.Until(c.guard.SessionEnded().Add(numberRest)))
	s, err := c.driver.NewSession(ctx, nil)
	if err != nil {
		err = fmt.Errorf("begin session: %w", err)
		if !c.sessions.greeted {
			err = c.hostRefused(err, err)
		}
		return nil, err
	}
	// One handle is spared where there is more than one: see awaitHandle.
	links := int(min(c.guard.Links(), math.MaxInt32))
	return &session{driver: s, places: max(links-1, 1), narrow: links == 1}, nil
}

// place takes a place for a link in a main session, beginning one if need be and allowed.
func (c *Conn) place(ctx context.Context) (*session, error) {
	c.sessions.mu.Lock()
	open, losses := 0, c.sessions.losses
	for _, s := range c.sessions.main {
		if s.ended {
			continue
		}
		if s.places > 0 {
			s.places--
			c.sessions.mu.Unlock()
			return s, nil
		}
		open++
	}
	c.sessions.losses = 0
	c.sessions.mu.Unlock()
	if open >= c.mainSessions() {
		return nil, ErrNoPlace
	}
	s, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if losses > 0 {
		c.log.Info("session replaced")
	}
	s.places--
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	c.sessions.main = append(c.sessions.main, s)
	return s, nil
}

// mainSessions is how many the broker allows beside the scratch session.
func (c *Conn) mainSessions() int {
	allowed := int(c.guard.Allowed().Sessions)
	if allowed > 1 {
		allowed--
	}
	return allowed
}

// release gives a place back.
func (c *Conn) release(s *session) {
	c.sessions.mu.Lock()
	s.places++
	c.sessions.mu.Unlock()
	select {
	case c.sessions.freed <- struct{}{}:
	default:
	}
}

// end notes that a main session is over, and with it all places in it.
func (c *Conn) end(s *session, err error) {
	c.sessions.mu.Lock()
	first := !s.ended
	s.ended = true
	for i, m := range c.sessions.main {
		if m == s {
			c.sessions.main = append(c.sessions.main[:i:i], c.sessions.main[i+1:]...)
			c.sessions.losses++
			break
		}
	}
	c.sessions.mu.Unlock()
	if first {
		c.log.Warn("session ended", "cause", failure.Text(err))
	}
	select {
	case c.sessions.freed <- struct{}{}:
	default:
	}
}

// Freed receives when a link more may be opened. Signals that nobody reads are merged.
func (c *Conn) Freed() <-chan struct{} { return c.sessions.freed }

// senderOptions are those of every link.
func (c *Conn) senderOptions() *amqp.SenderOptions {
	return &amqp.SenderOptions{TargetCapabilities: c.Dialect.Capabilities}
}

// attachOverhead is the most that the driver's attach frame has beside the address and the capabilities.
const attachOverhead = 110

// fits says of an address whether it can be attached to. The driver would end the connection (upstream 12).
func (c *Conn) fits(address string) error {
	size := attachOverhead + len(address)
	for _, capability := range c.Dialect.Capabilities {
		size += len(capability) + 10
	}
	if limit := c.guard.Allowed().MaxFrame; uint64(size) > uint64(limit) {
		return &AddressTooLongError{len(address), int(limit)}
	}
	return nil
}

// try attaches to address in the scratch session, where a refusal hurts nobody. RabbitMQ 3 refuses an address
// by ending the session; one that had ended before says nothing about the address, which is tried again in a
// fresh one.
func (c *Conn) try(ctx context.Context, address string) (err error) {
	if c.guard.Allowed().Sessions == 1 || time.Since(c.sessions.tried[address]) < triedTime {
		return nil
	}
	scratch := &c.sessions.scratch
	for fresh := *scratch == nil; ; fresh = true {
		if *scratch == nil {
			if *scratch, err = c.begin(ctx); err != nil {
				*scratch = nil
				return err
			}
		}
		s, err := (*scratch).driver.NewSender(ctx, address, c.senderOptions())
		if err == nil {
			return c.triedWell(ctx, address, s)
		}
		// Whether or not the session survived, the next try gets a fresh one.
		session := *scratch
		*scratch = nil
		closeScratch := func() { _ = c.bounded(session.driver.Close) }
		if c.guard.Allowed().Sessions > 2 {
			c.spawn(closeScratch)
		} else {
			closeScratch() // its place is needed
		}
		var ended *amqp.SessionError
		if fresh || !errors.As(err, &ended) {
			return err
		}
	}
}

// triedWell notes that the broker took the address, and closes the link again.
func (c *Conn) triedWell(ctx context.Context, address string, s *amqp.Sender) error {
	if c.sessions.tried == nil || len(c.sessions.tried) > 1000 {
		c.sessions.tried = map[string]time.Time{}
	}
	c.sessions.tried[address] = time.Now()
	c.sessions.maxSize = s.MaxMessageSize()
	const few = 16
	if c.sessions.scratch.places > few {
		c.spawn(func() { _ = c.bounded(s.Close) })
		return nil
	}
	if err := s.Close(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	c.sessions.scratch.awaitHandle()
	return nil
}

// bounded runs the close of a session or link, which waits for the peer.
func (c *Conn) bounded(end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.ConnectTimeout)
	defer cancel()
	return end(ctx)
}

// OpenSender opens a link to address. It blocks for at most ConnectTimeout; a broker that does not answer in
// it loses the connection. The error is ErrNoPlace where a link has to be closed before, which Freed then
// tells, and an *AddressTooLongError where the address can have no link. One goroutine at a time may call it.
func (c *Conn) OpenSender(ctx context.Context, address string) (*Sender, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.ConnectTimeout)
	defer cancel()
	// The driver heeds a context only where it waits for the peer, not where it waits to write.
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.Drop(fmt.Sprintf("an attach was not answered within %v (connect_timeout)", c.opts.ConnectTimeout))
		}
	})
	defer stop()
	if err := c.fits(address); err != nil {
		return nil, err
	}
	if err := c.try(ctx, address); err != nil {
		return nil, err
	}
	return c.attach(ctx, address)
}

// attach opens a link to address in a main session, in a new one if that has ended.
func (c *Conn) attach(ctx context.Context, address string) (*Sender, error) {
	for again := true; ; again = false {
		session, err := c.place(ctx)
		if err != nil {
			return nil, err
		}
		s, err := session.driver.NewSender(ctx, address, c.senderOptions())
		if err == nil {
			c.sessions.maxSize = s.MaxMessageSize()
			return &Sender{c: c, driver: s, session: session}, nil
		}
		var ended *amqp.SessionError
		if !errors.As(err, &ended) {
			c.release(session)
			return nil, err
		}
		c.end(session, err)
		if !again {
			return nil, err
		}
	}
}

// greetSessions begins a main session and tries the sample address, without leaving a link.
func (c *Conn) greetSessions(ctx context.Context, address string) (maxSize uint64, err error) {
	if err = c.fits(address); err == nil {
		err = c.try(ctx, address)
	}
	if err == nil && c.sessions.scratch == nil {
		var s *Sender
		if s, err = c.attach(ctx, address); err == nil {
			err = s.Close()
		}
	}
	var host hostError
	switch {
	case errors.As(err, &host): // has its remedy
		return 0, err
	case err != nil:
		return 0, fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's permissions", address,
			err)
	}
	c.sessions.greeted = true
	return c.sessions.maxSize, nil
}
