package relay

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	tls       *tls.ConnectionState // nil without TLS
	maxSize   uint64               // of a message, on the sample link; 0 = no limit
	born      time.Time

	attach chan attachRequest
	wg     sync.WaitGroup // link goroutines and those they start

	settledAt atomic.Int64 // time of the last settlement, in nanoseconds after born
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
	progress func()                       // a delivery was settled
	doubt    func(d *delivery)            // its caller stops waiting though it is with the broker
	late     func(d *delivery, a attempt) // the answer to such a delivery, or its loss
	lost     func(m *message.Message)     // it was unsettled when something ended
	settled  func(d *delivery, a attempt) // for metrics
	notice   func(address, cause string)  // one address is in trouble; an empty cause ends it
}

type refusal struct {
	attempt attempt
	until   time.Time
}

type attachRequest struct {
	target string
	reply  chan<- attachReply // buffered: the asker may be gone
}

type attachReply struct {
	sender  *amqp.Sender
	session *amqp.Session
	err     error
}

// errDropped is the cause of a connection that we ended ourselves.
type errDropped struct{ reason string }

func (e errDropped) Error() string { return e.reason }

// dial connects to e, logs in and makes sure that the broker takes messages for topics. ctx bounds all of it;
// after it the connection does not depend on ctx.
func dial(ctx context.Context, o *Options, e endpoint, log *slog.Logger, hooks connHooks) (c *conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c = &conn{
		opts: o, name: e.name, log: log, hooks: hooks, born: time.Now(),
		attach:   make(chan attachRequest),
		links:    map[string]*link{},
		refusals: map[string]refusal{},
	}
	if err = c.open(ctx, e); err == nil {
		if err = c.greet(ctx); err != nil {
			c.hangUp()
		}
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && !isAuth(err) {
		err = fmt.Errorf("no answer within %v (connect_timeout): %w", o.ConnectTimeout, err)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// open does TCP, TLS, SASL and the AMQP open frame.
func (c *conn) open(ctx context.Context, e endpoint) error {
	user, password, err := c.opts.credentials(e)
	if err != nil {
		return err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.name)
	if err != nil {
		return fmt.Errorf("connect: %w", withoutAddress(err))
	}
	var nc = raw
	who := login{policy: c.opts.SASL, user: user, password: password}
	fail := func(err error) error {
		_ = nc.Close()
		return err
	}
	if e.tls {
		cfg, err := c.opts.tlsConfig(e.host)
		if err != nil {
			return fail(err)
		}
		client := tls.Client(raw, cfg)
		nc = client
		if err := client.HandshakeContext(ctx); err != nil {
			return fail(fmt.Errorf("set up TLS: %w", err))
		}
		state := client.ConnectionState()
		c.tls = &state
		who.certificate = c.opts.Cert != ""
	}
	// The deadline bounds reads and writes; ending ctx early moves it into the past.
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	c.mechanism, err = who.negotiate(nc)
	if err != nil || !stop() {
		if err == nil {
			err = context.Cause(ctx)
		}
		return fail(err)
	}
	_ = nc.SetDeadline(time.Time{})

	c.tap = &tap{Conn: nc}
	c.amqp, err = amqp.NewConn(ctx, c.tap, &amqp.ConnOptions{
		// Random, since ActiveMQ refuses a second connection under one name.
		ContainerID:  "koji-relay-" + rand.Text()[:16],
		HostName:     e.host,
		IdleTimeout:  c.opts.IdleTimeout,
		WriteTimeout: c.opts.SendTimeout,
		Properties:   map[string]any{"product": "koji-relay"},
	})
	if err != nil {
		return fail(fmt.Errorf("open AMQP connection: %w", err))
	}
	c.peer = newPeer(c.amqp.Properties())
	return nil
}

func isAuth(err error) bool {
	var auth *AuthError
	return errors.As(err, &auth)
}

// withoutAddress strips "dial tcp 10.0.0.1:5672:", which the log line has already said, off a dial error.
func withoutAddress(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// greet chooses the dialect and begins the sessions.
func (c *conn) greet(ctx context.Context) (err error) {
	if c.dialect, err = chooseDialect(c.opts.Dialect, c.opts.TopicPrefix, c.peer); err != nil {
		return err
	}
	if c.main, err = c.amqp.NewSession(ctx, nil); err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	target, err := c.dialect.target(c.opts.TopicPrefix, sampleAddress)
	if err != nil {
		return err
	}
	c.maxSize, err = c.try(ctx, target)
	if err != nil {
		return fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's permissions", target, err)
	}
	return nil
}

// senderOptions are those of every link.
func (c *conn) senderOptions() *amqp.SenderOptions {
	return &amqp.SenderOptions{TargetCapabilities: c.dialect.capabilities}
}

// try attaches to target in the scratch session, where a refusal hurts nobody.
func (c *conn) try(ctx context.Context, target string) (maxSize uint64, err error) {
	if c.scratch == nil {
		if c.scratch, err = c.amqp.NewSession(ctx, nil); err != nil {
			c.scratch = nil
			return 0, fmt.Errorf("begin session: %w", err)
		}
	}
	s, err := c.scratch.NewSender(ctx, target, c.senderOptions())
	if err != nil {
		// Whether or not the session survived, the next try gets a fresh one.
		session := c.scratch
		c.scratch = nil
		c.wg.Go(func() { c.bounded(session.Close) })
		return 0, err
	}
	maxSize = s.MaxMessageSize()
	c.wg.Go(func() { c.bounded(s.Close) })
	return maxSize, nil
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

// unanswered drops the connection if err means that the broker does not answer.
func (c *conn) unanswered(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		c.drop(fmt.Sprintf("an attach was not answered within %v (connect_timeout)", c.opts.ConnectTimeout))
	}
	return err
}

// serve works until the connection ends or ctx does, closes everything, and says why it ended.
func (c *conn) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	c.wg.Go(func() { c.attachLoop(ctx) })
	err := c.watch(ctx)
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
			c.hooks.notice(l.address, fmt.Sprintf("not settled within %v (send_timeout); link reopened", limit))
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
	return errors.As(c.endCause(), &ours)
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
		return nil, attempt{verdict: unsent, reason: "connection lost"}
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

// standing reports whether nothing has been settled since the given time though something waits.
func (c *conn) standing(since time.Duration) bool {
	if time.Duration(c.settledAt.Load()) >= since && c.settledAt.Load() != 0 {
		return false
	}
	for _, l := range c.allLinks() {
		if l.standing(since) {
			return true
		}
	}
	return false
}
