package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/message"
)

const (
	// sampleAddress is attached to when a connection opens, so that a prefix or a permission that is wrong for
	// every message is found then and not by messages.
	sampleAddress = "build.tag"
	// maxLinks bounds the cached links of a connection; RabbitMQ allows 256 in a session. Koji has about 40
	// addresses, as many again with pre events.
	maxLinks = 128
	// refusalTime is for how long an address that the broker refused is not attached to again.
	refusalTime = 30 * time.Second
)

// conn is one open connection with its sessions and links. It is made by dial, works while serve runs, and is
// never reopened: the supervisor makes a new one.
//
// It has two sessions. All links that send live in the main one. A new address is first attached to in the
// scratch session: RabbitMQ answers an attach that it refuses by ending the session, with all links and
// unsettled deliveries in it.
type conn struct {
	opts      *Options
	name      string // host:port of the broker
	log       *slog.Logger
	hooks     connHooks
	tap       *tap
	amqp      *amqp.Conn
	peer      peer
	dialect   *dialect
	mechanism string
	stage     string               // what open and greet are at, for the probe
	offered   []string             // SASL mechanisms
	client    *tls.Certificate     // ours, nil without
	tls       *tls.ConnectionState // nil without TLS, and until it is set up
	remote    string               // the peer's IP address and port
	target    string               // of the sample address
	maxSize   uint64               // of a message, on the sample link; 0 = no limit
	born      time.Time

	attach chan attachRequest
	turns  chan struct{}  // how many links may give a message to the driver at once
	wg     sync.WaitGroup // link goroutines and those they start

	settledAt atomic.Int64 // time of the last settlement, in nanoseconds after born
	stopped   atomic.Bool  // ended because the relay stops
	stalled   atomic.Bool  // only trials and patient deliveries are taken
	unsettled atomic.Int64 // deliveries given to the driver and not settled

	mu       sync.Mutex // guards what follows
	links    map[string]*link
	refusals map[string]refusal
	closing  bool  // no new links
	cause    error // why we dropped it; nil = we did not

	// Owned by dial, then by the goroutine that attaches.
	main, scratch *amqp.Session
	// ended is the main session that a link found dead.
	ended atomic.Pointer[amqp.Session]
}

// connHooks are what a connection tells its owner.
type connHooks struct {
	progress func()                            // a delivery was settled
	doubt    func(d *delivery)                 // its caller stops waiting though it is with the broker
	late     func(d *delivery, a attempt)      // the answer to such a delivery, or its loss
	lost     func(m *message.Message)          // it was unsettled when something ended
	settled  func(d *delivery, a attempt)      // for metrics
	notice   func(address, kind, cause string) // one address is in trouble; an empty kind ends it
}

type refusal struct {
	attempt attempt
	until   time.Time
}

// errDropped is the cause of a connection that we ended ourselves.
type errDropped struct{ reason string }

func (e errDropped) Error() string { return e.reason }

// serve works until the connection ends or ctx does, closes everything, and says why it ended.
func (c *conn) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c.wg.Go(func() { c.attachLoop(ctx) })
	err := c.watch(ctx)
	c.stopped.Store(ctx.Err() != nil)
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	cancel()
	c.hangUp()
	return err
}

// hangUp ends the connection and waits for all that used it. The socket goes first: the driver's own Close
// waits for writes to a peer that may not read.
func (c *conn) hangUp() {
	if c.healthy() {
		// A peer that reads gets a proper close frame.
		done := make(chan struct{})
		go func() { _ = c.amqp.Close(); close(done) }()
		select {
		case <-done:
		case <-time.After(closeTime):
			_ = c.tap.Close()
			<-done
		}
	} else {
		_ = c.tap.Close()
		_ = c.amqp.Close()
	}
	c.wg.Wait()
}

// closeTime is what a peer gets to read our close frame.
const closeTime = 250 * time.Millisecond

func (c *conn) healthy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause == nil
}

// watch waits for the end of the connection and looks after deliveries that nobody settles.
func (c *conn) watch(ctx context.Context) error {
	timer := time.NewTimer(c.opts.SendTimeout)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.amqp.Done():
			return c.endCause()
		case <-timer.C:
			timer.Reset(c.overdue())
		}
	}
}

// overdue acts on deliveries unsettled for SendTimeout and returns when to look again. If the broker has settled
// others meanwhile, only the link is reset; else the connection is dropped.
func (c *conn) overdue() time.Duration {
	limit := c.opts.SendTimeout
	now := c.now()
	next := limit
	for _, l := range c.allLinks() {
		oldest, any := l.oldest()
		switch {
		case !any:
		case now-oldest < limit:
			next = min(next, limit-(now-oldest))
		case time.Duration(c.settledAt.Load()) > oldest:
			c.hooks.notice(l.address, "unsettled", fmt.Sprintf("not settled within %v (send_timeout); link reopened", limit))
			l.reset()
		default:
			c.drop(fmt.Sprintf("nothing settled within %v (send_timeout)", limit))
			return limit
		}
	}
	return next
}

// drop ends the connection for a reason of ours. What is unsettled is not blamed for it.
func (c *conn) drop(reason string) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = errDropped{reason}
	}
	c.mu.Unlock()
	_ = c.tap.Close() // makes the driver's reader end, and with it everything else
}

// endCause says why the connection is over.
func (c *conn) endCause() error {
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	if cause != nil {
		return cause
	}
	err := c.amqp.Err()
	var remote *amqp.Error
	if errors.As(err, &remote) {
		return fmt.Errorf("closed by the broker: %s", conditionText(remote))
	}
	if read := c.tap.readError(); errors.Is(read, os.ErrDeadlineExceeded) {
		return errDropped{fmt.Sprintf("nothing heard for %v (idle_timeout)", c.opts.IdleTimeout)}
	} else if errors.Is(read, io.EOF) {
		return errors.New("the broker hung up")
	}
	if err == nil {
		return errors.New("closed by the broker")
	}
	return err
}

// blameless reports whether the end of the connection says nothing about the messages in flight.
func (c *conn) blameless() bool {
	select {
	case <-c.amqp.Done():
	default:
		return false
	}
	var ours errDropped
	return c.stopped.Load() || errors.As(c.endCause(), &ours)
}

// now is the time since c was opened: monotonic, and cheap to keep in an atomic.
func (c *conn) now() time.Duration { return time.Since(c.born) }

// progress notes a settlement.
func (c *conn) progress() {
	c.settledAt.Store(int64(c.now()))
	c.stalled.Store(false)
	c.hooks.progress()
}

func (c *conn) allLinks() []*link {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*link, 0, len(c.links))
	for _, l := range c.links {
		all = append(all, l)
	}
	return all
}

// link gives the link for address, new if need be. The attempt is why there is none.
func (c *conn) link(address string) (*link, attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[address]; l != nil {
		l.used = c.now()
		return l, attempt{}
	}
	if c.closing {
		return nil, attempt{verdict: unsent, reason: "connection lost", failure: failedLost}
	}
	if r, ok := c.refusals[address]; ok {
		if time.Now().Before(r.until) {
			return nil, r.attempt
		}
		delete(c.refusals, address)
	}
	target, err := c.dialect.target(c.opts.TopicPrefix, address)
	if err != nil {
		return nil, attempt{verdict: refused, reason: err.Error()}
	}
	if len(c.links) >= maxLinks && !c.evict() {
		return nil, attempt{verdict: stuck, reason: fmt.Sprintf("all %d links are busy", maxLinks)}
	}
	l := newLink(c, address, target)
	l.used = c.now()
	c.links[address] = l
	c.wg.Go(l.run)
	return l, attempt{}
}

// evict closes the idle link that was used longest ago. c.mu is held.
func (c *conn) evict() bool {
	var oldest *link
	for _, l := range c.links {
		if (oldest == nil || l.used < oldest.used) && l.idle() {
			oldest = l
		}
	}
	if oldest == nil || !oldest.retire() {
		return false
	}
	delete(c.links, oldest.address)
	return true
}

// refuse keeps an address from being attached to for a while.
func (c *conn) refuse(address string, a attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.links, address)
	if len(c.refusals) >= maxLinks { // as many as links: addresses are few, and forgetting one costs an attach
		clear(c.refusals)
	}
	c.refusals[address] = refusal{attempt: a, until: time.Now().Add(refusalTime)}
}

// submit queues d on the link of its address. If it cannot, the attempt says why.
func (c *conn) submit(d *delivery) (attempt, bool) {
	for again := true; ; again = false {
		l, a := c.link(d.msg.Address)
		if l == nil {
			return a, false
		}
		a, ok := l.submit(d)
		if !ok && a.verdict == unsent && again && l.isRetired() {
			continue // evicted between the two
		}
		return a, ok
	}
}

// silentFor is for how long the broker has settled nothing though something waits; 0 if nothing does. Without overtaken,
// links do not count on which all that waits was submitted before something that another has settled.
func (c *conn) silentFor(overtaken bool) time.Duration {
	links := c.allLinks()
	var after, oldest time.Duration
	if !overtaken {
		for _, l := range links {
			after = max(after, l.lastSettled())
		}
	}
	waiting := false
	for _, l := range links {
		if since, any := l.waitingSince(); any && since >= after && (!waiting || since < oldest) {
			oldest, waiting = since, true
		}
	}
	if !waiting {
		return 0
	}
	return c.now() - max(oldest, time.Duration(c.settledAt.Load()))
}
