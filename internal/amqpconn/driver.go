package amqpconn

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/Azure/go-amqp"
)

// This file gathers what we do because the driver, github.com/Azure/go-amqp v1.7.0, is as it is. Each has its number in
// docs/upstream.md, with the smallest case.

// BigMessage is the size from which on a link should be opened anew afterwards: the driver's sender keeps a buffer as
// large as its largest message (upstream 1).
const BigMessage = 1 << 20

// Sender is an attached link.
type Sender struct {
	c       *Conn
	driver  *amqp.Sender
	session *amqp.Session
}

// MaxMessageSize is what the broker takes at most, in bytes; 0 = no limit.
func (s *Sender) MaxMessageSize() uint64 { return s.driver.MaxMessageSize() }

// Close detaches. It waits for the peer, ConnectTimeout at most, and then returns context.DeadlineExceeded.
func (s *Sender) Close() error { return s.c.bounded(s.driver.Close) }

// SessionEnded notes that err ended the session of s, so that the next link gets a new one.
func (s *Sender) SessionEnded(err error) {
	if s.c.sessions.ended.Swap(s.session) != s.session {
		s.c.log.Warn("session ended", "cause", ErrorText(err))
	}
}

// unsendable is refused by the driver, before anything is sent, for its delivery tag; but on a link that has ended
// for that. It is the one way to ask (upstream 2).
var unsendable = &amqp.Message{DeliveryTag: make([]byte, 33)}

// Ended gives the error that ended the link, session or connection; nil while messages can be sent. It does not block.
func (s *Sender) Ended() error {
	_, err := s.driver.SendWithReceipt(context.Background(), unsendable, nil)
	var (
		linkErr    *amqp.LinkError
		sessionErr *amqp.SessionError
		connErr    *amqp.ConnError
	)
	if errors.As(err, &sessionErr) || errors.As(err, &linkErr) || errors.As(err, &connErr) {
		return err
	}
	return nil
}

// Receipt is a message that the broker has and has not answered.
type Receipt struct{ driver amqp.SendReceipt }

// Send gives m to the broker, and blocks until there is credit for it. One goroutine at a time may call it. It has no
// context, since a send that is cancelled would leave half a message on the link (upstream 3): the end of the link
// or of the connection is what ends it.
func (s *Sender) Send(m *amqp.Message) (Receipt, error) {
	r, err := s.driver.SendWithReceipt(context.Background(), m, nil)
	return Receipt{r}, err
}

// Wait blocks until the broker answers or the link ends.
func (r *Receipt) Wait() (amqp.DeliveryState, error) {
	state, err := r.driver.Wait(context.Background())
	// When the answer and the end of the link are both there, the driver picks at random; an answer is worth asking
	// again for (upstream 4).
	for again := 0; err != nil && again < 8; again++ {
		state, err = r.driver.Wait(context.Background())
	}
	return state, err
}

// creditWithin reports whether the broker lets us send within that time. The driver does not tell a link's credit. But
// it takes a message only when there is credit, and looks at the context once more before it writes: so this sends
// nothing, and returns if the broker would take it (upstream 5). After false the link is good for nothing else.
func (s *Sender) creditWithin(ctx context.Context, limit time.Duration) (bool, error) {
	granted := make(chan struct{})
	s.c.wg.Go(func() {
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

// closeTime is what a peer gets to read our close frame.
const closeTime = 250 * time.Millisecond

// Close ends the connection and waits for all that used it. The driver's own Close waits for writes to a peer that may
// not read, so the socket goes first where the peer is known to be in trouble (upstream 6).
func (c *Conn) Close() {
	if !c.Dropped() {
		// A peer that reads gets a proper close frame.
		done := make(chan struct{})
		go func() { _ = c.driver.Close(); close(done) }()
		select {
		case <-done:
		case <-time.After(closeTime):
			_ = c.tap.Close()
			<-done
		}
	} else {
		_ = c.tap.Close()
		_ = c.driver.Close()
	}
	c.wg.Wait()
}

// tap remembers how reading ended, which the driver's error does not let one ask.
type tap struct {
	net.Conn
	mu  sync.Mutex // guards err
	err error
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if err != nil {
		t.mu.Lock()
		if t.err == nil {
			t.err = err
		}
		t.mu.Unlock()
	}
	return n, err
}

func (t *tap) readError() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
