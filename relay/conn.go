package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/guard"
)

const (
	// maxLinks bounds the cached links of a connection; RabbitMQ allows 256 in a session. Koji has about 40
	// addresses, as many again with pre events.
	maxLinks = 128
	// refusalTime is for how long an address that the broker refused is not attached to again.
	refusalTime = 30 * time.Second
)

// shutTime is for how long a broker says that it takes no messages before that counts. One that has much to
// do says it for a moment.
const shutTime = time.Second

// conn is one open connection with its links. It is made by dial, works while serve runs, and is never
// reopened: the supervisor makes a new one.
type conn struct {
	*amqpconn.Conn
	b    *broker
	opts *Options
	name string // host:port of the broker
	born time.Time
	// isolated: it carries one message at a time, and what becomes of it is nobody's business but its
	// caller's.
	isolated bool

	attach chan attachRequest
	turns  chan struct{}  // how many links may give a message to the driver at once
	wg     sync.WaitGroup // link goroutines and those they start

	settledAt atomic.Int64 // time of the last settlement, in nanoseconds after born
	stopped   atomic.Bool  // ended because the relay stops
	tripped   atomic.Bool  // the breaker is open: only probes and patient deliveries are taken
	unacked   atomic.Int64 // deliveries that are sent and not answered
	hubAt     atomic.Int64 // when something was last submitted on the hub's time, in nanoseconds after born

	mu       sync.Mutex         // guards what follows
	links    map[string]*link   // by address
	refusals map[string]refusal // by address
	closing  bool               // no new links
}

type refusal struct {
	result result
	until  time.Time
}

// dial connects to the broker and makes sure that it takes messages for topics.
func (b *broker) dial(ctx context.Context, log *slog.Logger) (*conn, error) {
	open, err := amqpconn.Dial(ctx, &b.r.opts.Options, b.e, log)
	if err != nil {
		return nil, err
	}
	c := &conn{
		Conn: open, b: b, opts: &b.r.opts, name: b.e.Name, born: time.Now(),
		attach:   make(chan attachRequest),
		links:    map[string]*link{},
		refusals: map[string]refusal{},
	}
	// One at a time only where it must be: a link that waits for credit keeps its turn.
	c.turns = make(chan struct{}, maxLinks)
	if c.Peer.SettlesRanges() {
		c.turns = make(chan struct{}, 1)
	}
	return c, nil
}

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
	c.end()
	return err
}

// end closes the connection and waits for all that used it, within bounds: what of the driver cannot be ended
// is left behind, and those who wait for it are told that there is no answer.
func (c *conn) end() {
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	closed := c.Close()
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	select {
	case <-done:
		if closed {
			return
		}
	case <-timer.C:
	}
	c.b.abandon()
	for _, l := range c.allLinks() {
		l.leaveBehind()
	}
}

// endTime is what the goroutines of a closed connection get to end.
const endTime = 2 * time.Second

// watch waits for the end of the connection and looks after deliveries that nobody settles.
func (c *conn) watch(ctx context.Context) error {
	timer := time.NewTimer(c.opts.SendTimeout)
	defer timer.Stop()
	shut := time.NewTimer(shutTime)
	defer shut.Stop()
	for {
		select {
		case <-c.Windows():
			if !c.Shut() {
				shut.Stop()
				c.b.reopened(c)
			} else {
				shut.Reset(shutTime)
			}
		case <-shut.C:
			if c.Shut() {
				c.b.shut(c)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-c.Done():
			return c.Cause()
		case <-timer.C:
			timer.Reset(c.overdue())
		}
	}
}

// overdue acts on deliveries unsettled for SendTimeout and returns when to look again. If the broker has
// settled others meanwhile, only the link is reset; else the connection is dropped.
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
			c.b.notice(l.topic, "unsettled", fmt.Sprintf("no answer within %v (send_timeout); link reopened", limit))
			l.reset()
		default:
			c.Drop(fmt.Sprintf("no answer within %v (send_timeout)", limit))
			return limit
		}
	}
	return next
}

// blameless reports whether the end of the connection says nothing about the messages in flight.
func (c *conn) blameless() bool {
	select {
	case <-c.Done():
	default:
		return false
	}
	var ours amqpconn.DropError
	var theirs *guard.RefusedError
	cause := c.Cause()
	return c.stopped.Load() || errors.As(cause, &ours) || errors.As(cause, &theirs)
}

// now is the time since c was opened: monotonic, and cheap to keep in an atomic.
func (c *conn) now() time.Duration { return time.Since(c.born) }

// progress notes a settlement.
func (c *conn) progress() {
	c.settledAt.Store(int64(c.now()))
	c.tripped.Store(false)
	c.b.r.answers.Add(1)
	c.b.answered()
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

// link gives the link that carries topic, new if need be. The result is why there is none.
func (c *conn) link(topic string) (*link, dialect.Destination, result) {
	to, err := c.Destination(topic)
	if err != nil {
		return nil, to, result{verdict: refused, reason: err.Error()}
	}
	if r, known, _ := c.b.forbidden.get(topic); known && !c.isolated {
		return nil, to, r
	}
	l, a := c.linkTo(to.Address, topic)
	return l, to, a
}

// linkTo gives the link to an address, new if need be. The result is why there is none.
func (c *conn) linkTo(address, topic string) (*link, result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[address]; l != nil {
		l.used = c.now()
		return l, result{}
	}
	if c.closing {
		return nil, connectionLost
	}
	if r, ok := c.refusals[address]; ok {
		if time.Now().Before(r.until) {
			return nil, r.result
		}
		delete(c.refusals, address)
	}
	if len(c.links) >= maxLinks && !c.evict() {
		return nil, result{verdict: blocked, reason: fmt.Sprintf("all %d links are busy", maxLinks)}
	}
	l := newLink(c, topic, address)
	l.used = c.now()
	c.links[address] = l
	c.wg.Go(l.run)
	return l, result{}
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
func (c *conn) refuse(address string, r result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.links, address)
	if len(c.refusals) >= maxLinks { // as many as links: addresses are few, and forgetting one costs an attach
		clear(c.refusals)
	}
	c.refusals[address] = refusal{result: r, until: time.Now().Add(refusalTime)}
}

// patientWindow is how many messages a patient call may have under way now.
func (c *conn) patientWindow() int {
	if at := time.Duration(c.hubAt.Load()); at > 0 && c.now()-at < hubTime {
		return besideHub
	}
	return patientWindow
}

// sessionOf is the session of the link to topic, nil where there is none.
func (c *conn) sessionOf(topic string) any {
	to, err := c.Destination(topic)
	if err != nil {
		return nil
	}
	c.mu.Lock()
	l := c.links[to.Address]
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sender == nil {
		return nil
	}
	return l.sender.Session()
}

// submit queues d on the link of its address. If it cannot, the result says why.
func (c *conn) submit(d *delivery) (result, bool) {
	if !d.patient {
		c.hubAt.Store(int64(c.now()))
	}
	for again := true; ; again = false {
		l, to, a := c.link(d.msg.Address)
		if l == nil {
			return d.inTurn(c.opts, a), false
		}
		d.wire = c.opts.encode(d.msg, to)
		a, ok := l.submit(d)
		if !ok && a.verdict == unsent && again && l.isRetired() {
			continue // evicted between the two
		}
		return d.inTurn(c.opts, a), ok
	}
}

// silence says what a broker does that has settled nothing for a while.
func (c *conn) silence() string {
	starved, unanswered := "", false
	for _, l := range c.allLinks() {
		l.mu.Lock()
		if l.starved() {
			starved = l.topic
		} else if l.waiting() {
			unanswered = true
		}
		l.mu.Unlock()
	}
	if starved == "" || unanswered {
		return "it answers nothing: it hangs, or an alarm (memory, disk) blocks publishers"
	}
	return "it gives no credit for " + starved + ": the address is full or not served, or an alarm (memory, " +
		"disk) blocks publishers"
}

// quietFor is for how long the broker has settled nothing though something waits; 0 if nothing does. Without
// overtaken, links do not count on which all that waits was submitted before something that another has
// settled.
func (c *conn) quietFor(overtaken bool) time.Duration {
	links := c.allLinks()
	var after, oldest time.Duration
	if !overtaken {
		for _, l := range links {
			after = max(after, l.lastSettled())
		}
	}
	waiting := false
	for _, l := range links {
		l.mu.Lock()
		since, any := l.waitingSince()
		l.mu.Unlock()
		if any && since >= after && (!waiting || since < oldest) {
			oldest, waiting = since, true
		}
	}
	if !waiting {
		return 0
	}
	return c.now() - max(oldest, time.Duration(c.settledAt.Load()))
}
