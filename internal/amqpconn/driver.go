package amqpconn

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/guard"
)

// This file gathers what we do because the driver, github.com/Azure/go-amqp v1.7.0, is as it is. Each has its
// number in docs/upstream.md, with the smallest case.

// BigMessage is the size from which on a link should be opened anew afterwards: the driver's sender keeps a
// buffer as large as its largest message (upstream 1).
const BigMessage = 1 << 20

// Sender is an attached link.
type Sender struct {
	c        *Conn
	driver   *amqp.Sender
	session  *session
	released atomic.Bool
}

// MaxMessageSize is what the broker takes at most, in bytes; 0 = no limit.
func (s *Sender) MaxMessageSize() uint64 { return s.driver.MaxMessageSize() }

// Session stands for the one that the link is in: it equals that of another link in it, and no other.
func (s *Sender) Session() any { return s.session }

// Close detaches. It waits for the peer, ConnectTimeout at most, and then returns context.DeadlineExceeded.
func (s *Sender) Close() error {
	err := s.c.bounded(s.driver.Close)
	if err == nil {
		s.session.awaitHandle()
		s.release()
	}
	return s.note(err)
}

// awaitHandle waits until the driver has freed the handle of a link that it calls closed, which it does right
// afterwards and tells nobody (upstream 13). Where a session has room for more, one place is left free
// instead.
func (s *session) awaitHandle() {
	if s.narrow {
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Sender) release() {
	if !s.released.Swap(true) {
		s.c.release(s.session)
	}
}

// note keeps the account of places when err ended the link or the session.
func (s *Sender) note(err error) error {
	if err == nil {
		return nil
	}
	var (
		linkErr    *amqp.LinkError
		sessionErr *amqp.SessionError
	)
	switch {
	case errors.As(err, &sessionErr):
		s.c.end(s.session, err)
	case errors.As(err, &linkErr):
		s.release()
	}
	return err
}

// unsendable is refused by the driver, before anything is sent, for its delivery tag; but on a link that has
// ended for that. It is the one way to ask (upstream 2).
var unsendable = &amqp.Message{DeliveryTag: make([]byte, 33)}

// Ended gives the error that ended the link, session or connection; nil while messages can be sent. It blocks
// only while a message is being sent.
func (s *Sender) Ended() error {
	_, err := s.driver.SendWithReceipt(context.Background(), unsendable, nil)
	var (
		linkErr    *amqp.LinkError
		sessionErr *amqp.SessionError
		connErr    *amqp.ConnError
	)
	if errors.As(err, &sessionErr) || errors.As(err, &linkErr) || errors.As(err, &connErr) {
		return s.note(err)
	}
	return nil
}

// Receipt is a message that the broker has and has not answered.
type Receipt struct {
	s      *Sender
	driver amqp.SendReceipt
}

// Send gives m to the broker, its application-properties in the order of keys, and blocks until there is
// credit for it. more tells that another one is sent right afterwards: they may go together. One goroutine at
// a time may call it. It has no context, since a send that is cancelled would leave half a message on the
// link (upstream 3): the end of the link or of the connection is what ends it.
func (s *Sender) Send(m *amqp.Message, keys []string, more bool) (Receipt, error) {
	tag := s.c.tags.Add(1)
	m.DeliveryTag = binary.BigEndian.AppendUint64(nil, tag)
	s.c.guard.Await(tag, guard.Delivery{Keys: keys, More: more})
	defer s.c.guard.Forget(tag)
	r, err := s.driver.SendWithReceipt(context.Background(), m, nil)
	return Receipt{s, r}, s.note(err)
}

// Wait blocks until the broker answers or the link ends.
func (r *Receipt) Wait() (amqp.DeliveryState, error) {
	state, err := r.driver.Wait(context.Background())
	// When the answer and the end of the link are both there, the driver picks at random; an answer is worth
	// asking again for (upstream 4).
	for again := 0; err != nil && again < 8; again++ {
		state, err = r.driver.Wait(context.Background())
	}
	return state, r.s.note(err)
}

// creditWithin reports whether the broker lets us send within that time. The driver does not tell a link's
// credit. But it takes a message only when there is credit, and looks at the context once more before it
// writes: so this sends nothing, and returns if the broker would take it (upstream 5). After false the link
// is good for nothing else.
func (s *Sender) creditWithin(ctx context.Context, limit time.Duration) (bool, error) {
	granted := make(chan struct{})
	s.c.spawn(func() {
		_, err := s.driver.SendWithReceipt(overAlready{}, &amqp.Message{Value: ""}, nil)
		if errors.Is(err, context.Canceled) {
			close(granted)
		}
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-granted:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// overAlready is a context that ended without telling: Done never fires, and Err is not nil.
type overAlready struct{}

func (overAlready) Deadline() (time.Time, bool) { return time.Time{}, false }
func (overAlready) Done() <-chan struct{}       { return nil }
func (overAlready) Err() error                  { return context.Canceled }
func (overAlready) Value(any) any               { return nil }

// What a peer gets to read our close frame, and the driver to end after the socket is closed.
const (
	closeTime = 250 * time.Millisecond
	endTime   = 5 * time.Second
)

// Close ends the connection and waits for all that used it. The driver's own Close waits for writes to a peer
// that may not read, so the socket goes first where the peer is known to be in trouble (upstream 6). It
// returns within endTime and reports whether all has ended: false means that goroutines of the driver are
// left behind, with what they hold.
func (c *Conn) Close() bool {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		_ = c.driver.Close()
		c.wg.Wait()
		close(done)
	}()
	if !c.Dropped() && within(closeTime, done) {
		return true
	}
	_ = c.guard.Close()
	return within(endTime, done)
}

// within reports whether done is closed before the time is over.
func within(limit time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
