package relay

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/message"
)

// BrokerState is what a broker is good for at the moment.
//
//	         connect                    nothing settles for handoff_timeout
//	down --> connecting --> up ------------------------------------------> stalled
//	 ^           |           ^   a settlement, of a late delivery or of a     |
//	 |  refused  |           |   trial message                                |
//	 |<----------+           +------------------------------------------------+
//	 |                       |                                                |
//	 +<----- connection ends, or nothing settles for send_timeout ------------+
//
// A broker that was stalled when its connection ended is stalled again after reconnecting: that it lets us in
// does not show that it takes messages (RabbitMQ under a memory alarm does the one and not the other). When a broker
// stalls, all others that have settled nothing meanwhile are stalled as well until a trial: so silence costs the hub
// handoff_timeout once and not for each URL.
type BrokerState string

const (
	Down       BrokerState = "down"
	Connecting BrokerState = "connecting"
	Up         BrokerState = "up"      // used
	Stalled    BrokerState = "stalled" // connected, but does not settle; not used on the hub's time
)

const (
	// seasoned is how long a broker has to be connected before it is preferred to later ones of the list.
	seasoned = 5 * time.Second
	// The pauses between trials of a stalled broker on the hub's time.
	firstTrialPause, maxTrialPause = time.Second, 30 * time.Second
	// trialShare of HandoffTimeout is what such a trial may cost a hub call: 50 ms of 1 s.
	trialShare = 20
)

// BrokerStatus describes one broker for people and metrics. It holds no secret.
type BrokerStatus struct {
	Broker  string // host:port
	State   BrokerState
	Since   time.Time
	Reason  string // why it is not up
	Product string // as it announced itself, with Version
	Version string
	Dialect string
	Login   string // SASL mechanism
	Target  string // an example: where build.tag goes
	// MaxMessageSize is in bytes; 0 = no limit.
	MaxMessageSize uint64
	// CertExpires is when the broker's certificate ends, and ClientCertExpires when ours does; zero without TLS.
	CertExpires, ClientCertExpires time.Time
	Links                          int
	Unsettled                      int64 // messages that it has and has not answered
}

// broker is one amqpconn.Endpoint with its supervisor.
type broker struct {
	r   *Relay
	e   amqpconn.Endpoint
	log *slog.Logger

	// unproven and troubled keep what each settlement asks for off the mutex: whether state or doubted would
	// change by it, and whether there are notices.
	unproven, troubled atomic.Bool

	mu          sync.Mutex // guards what follows
	state       BrokerState
	since       time.Time
	cause       string
	conn        *conn // nil unless up or stalled
	connectedAt time.Time
	doubted     bool // it has to prove itself by a settlement
	trialAt     time.Time
	trialPause  time.Duration
	notices     map[string]*notice // by address
	abandoned   int                // connections that could not be ended
}

func newBroker(r *Relay, e amqpconn.Endpoint) *broker {
	return &broker{
		r: r, e: e, log: r.log.With("broker", e.Name),
		state: Down, since: time.Now(), cause: "not connected yet", notices: map[string]*notice{},
	}
}

// supervise keeps the broker connected until ctx ends. tried is called after the first attempt.
func (b *broker) supervise(ctx context.Context, tried func()) {
	defer tried()
	pause := newPause()
	logged := ""
	failures, downSince := 0, time.Now()
	for ctx.Err() == nil {
		b.set(Connecting, "")
		c, err := dial(ctx, &b.r.opts, b.e, b.log, b.hooks())
		var lasted time.Duration
		if err == nil {
			logged = ""
			b.connected(c, failures, time.Since(downSince))
			tried()
			err = c.serve(ctx)
			var refused *amqpconn.RefusedError
			if errors.As(err, &refused) {
				b.distrust()
			}
			failures, downSince = 0, time.Now()
			lasted = time.Since(c.born)
			b.disconnected()
		}
		tried()
		if ctx.Err() != nil {
			break
		}
		failures++
		cause := amqpconn.CauseText(err)
		b.set(Down, cause)
		if f := b.r.opts.Observer.Failed; f != nil {
			f(b.e.Name, amqpconn.EndedBy(err))
		}
		if cause != logged {
			b.log.Warn("broker down", "cause", cause)
			logged = cause
		}
		wait := pause.NextBackOff()
		if lasted >= seasoned {
			pause.Reset()
			wait = 0 // it worked until now: most likely a restart or a failover that is over
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	b.set(Down, "relay stopped")
}

func (b *broker) hooks() connHooks {
	return connHooks{
		progress:  b.proven,
		doubt:     func(d *delivery) { b.r.doubts.add(d) },
		late:      b.r.late,
		lost:      func(m *message.Message) { b.r.suspect.add(m.ID, b.e.Name, false) },
		notice:    b.notice,
		abandoned: b.abandon,
		settled: func(d *delivery, a attempt) {
			if f := b.r.opts.Observer.Settled; f != nil {
				f(b.e.Name, d.msg, a.outcome(false), d.link.c.now()-d.began)
			}
		},
	}
}

// abandon counts a connection that could not be ended.
func (b *broker) abandon() {
	b.mu.Lock()
	b.abandoned++
	n := b.abandoned
	b.mu.Unlock()
	if f := b.r.opts.Observer.Failed; f != nil {
		f(b.e.Name, "abandoned")
	}
	if n == 1 {
		b.log.Error("connection could not be ended: goroutines and memory of the AMQP driver are left behind until the " +
			"relay restarts; more of them are counted as failures of kind abandoned and not logged")
	}
}

// set changes the state and tells the observer.
func (b *broker) set(s BrokerState, cause string) {
	b.mu.Lock()
	changed := b.state != s
	b.setLocked(s, cause)
	b.mu.Unlock()
	if changed {
		b.observe(s)
	}
}

func (b *broker) setLocked(s BrokerState, cause string) {
	if b.state != s {
		b.state, b.since = s, time.Now()
	}
	b.unproven.Store(s == Stalled || b.doubted)
	if s != Connecting { // while it tries again, the last cause is what one wants to know
		b.cause = cause
	}
}

func (b *broker) observe(s BrokerState) {
	if f := b.r.opts.Observer.BrokerState; f != nil {
		f(b.e.Name, s)
	}
}

// connected puts a new connection to use; on trial if the last one ended silent. failures counts the end of the last
// one and the attempts since.
func (b *broker) connected(c *conn, failures int, down time.Duration) {
	b.mu.Lock()
	state, cause := Up, ""
	if b.doubted {
		state, cause = Stalled, "was silent or broke the protocol before it reconnected; not yet proven"
		b.trialAt, b.trialPause = time.Now(), firstTrialPause
	}
	b.conn, b.connectedAt = c, time.Now()
	b.setLocked(state, cause)
	b.mu.Unlock()
	log := b.log
	if failures > 0 {
		log = log.With("failures", failures, "down", down.Round(time.Millisecond).String())
	}
	log.Info("broker connected", "product", c.Peer.Product, "version", c.Peer.Version, "dialect", c.Dialect.Name,
		"login", c.Mechanism, "state", string(state))
	b.observe(state)
	b.r.endStart()
	b.r.signalUp()
}

func (b *broker) disconnected() {
	b.set(Down, "connection lost")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = nil
}

// proven is called at each settlement, so it is quick when there is nothing to prove.
func (b *broker) proven() {
	if !b.unproven.Load() {
		return
	}
	b.mu.Lock()
	was := b.state
	b.doubted = false
	b.unproven.Store(false)
	if was == Stalled {
		b.setLocked(Up, "")
	}
	b.mu.Unlock()
	if was == Stalled {
		b.log.Info("broker settles again")
		b.observe(Up)
		b.r.signalUp()
	}
}

// distrust has the broker prove itself after it connects again, for what it did to this connection.
func (b *broker) distrust() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.doubted = true
	b.unproven.Store(true)
}

// stall takes the broker out of use on the hub's time because c has settled nothing for a while.
func (b *broker) stall(c *conn, cause string) {
	b.mu.Lock()
	if b.conn != c || b.state != Up {
		b.mu.Unlock()
		return
	}
	c.stalled.Store(true)
	b.doubted = true
	b.setLocked(Stalled, cause)
	b.trialAt, b.trialPause = time.Now().Add(firstTrialPause), firstTrialPause
	b.mu.Unlock()
	b.log.Warn("broker stalled", "cause", cause, "unsettled", c.unsettled.Load())
	b.observe(Stalled)
}

// upWith reports whether the broker is up with connection c.
func (b *broker) upWith(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == Up && b.conn == c
}

// doubt puts an idle broker on trial, because another has just turned out to be silent.
func (b *broker) doubt(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != Up || b.conn.born.Add(time.Duration(b.conn.settledAt.Load())).After(since) {
		return
	}
	b.setLocked(Stalled, "not yet proven after another broker fell silent")
	b.trialAt, b.trialPause = time.Now(), firstTrialPause
}

// usable reports whether SendPatiently would use the broker.
func (b *broker) usable() bool {
	_, ok := b.offer(true)
	return ok
}

// offer is a broker that may be used now.
type offer struct {
	b     *broker
	c     *conn
	trial bool // only one message, or only for a short while
	fresh bool // not yet seasoned
}

// rank is lower for what is to be used first: what has been connected for a while, then what is fresh, then what may still
// be silent. The hub tries one that owes no answer in its turn, so that the first broker of the list is soon back in use.
func (o offer) rank(patient bool) int {
	switch {
	case o.trial && (patient || o.c.unsettled.Load() > 0):
		return 2
	case o.fresh:
		return 1
	}
	return 0
}

// offer says whether and how the broker may be used. A stalled one that has no message of ours is on trial whenever a
// patient caller likes, else only now and then, and with other addresses than those that wait: it may be but one of
// them that stands still.
func (b *broker) offer(patient bool) (o offer, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	o = offer{b: b, c: b.conn, fresh: now.Sub(b.connectedAt) < seasoned}
	switch {
	case b.state == Up:
		return o, true
	case b.state == Stalled && (!now.Before(b.trialAt) || patient && b.conn.unsettled.Load() == 0):
		o.trial = true
		return o, true
	}
	return o, false
}

// claim takes the right to a trial; false if another was quicker.
func (b *broker) claim(o offer, patient bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.state != Stalled || b.conn != o.c {
		return b.state == Up && b.conn == o.c
	}
	if now.Before(b.trialAt) && !(patient && b.conn.unsettled.Load() == 0) {
		return false
	}
	b.trialAt = now.Add(b.trialPause)
	b.trialPause = min(2*b.trialPause, maxTrialPause)
	return true
}

// notice is the log's state for one address.
type notice struct {
	kind   string // of trouble, empty = none
	cause  string
	logged time.Time
	silent bool // came back soon after it was over: not logged again, nor is its end
}

// noticePause keeps an address that is in and out of trouble, such as one bad message among good ones, from filling
// the log.
const noticePause = time.Minute

// notice logs trouble with an address once, and its end once. An empty kind is the end; kinds tell troubles apart, while
// causes may differ from message to message.
func (b *broker) notice(address, kind, cause string) {
	if kind == "" && !b.troubled.Load() {
		return
	}
	b.mu.Lock()
	n := b.notices[address]
	if n == nil {
		n = &notice{}
	}
	if n.kind == kind {
		b.mu.Unlock()
		return
	}
	last := *n
	n.kind = kind
	if kind != "" {
		n.cause, n.silent = cause, time.Since(n.logged) < noticePause
		if !n.silent {
			n.logged = time.Now()
		}
		if len(b.notices) > 4*maxLinks {
			clear(b.notices)
		}
		b.notices[address] = n
	}
	silent := n.silent
	b.troubled.Store(slices.ContainsFunc(slices.Collect(maps.Values(b.notices)), func(n *notice) bool { return n.kind != "" }))
	b.mu.Unlock()
	switch {
	case silent:
	case kind == "":
		b.log.Info("address works again", "address", address, "cause", last.cause)
	default:
		b.log.Warn("address in trouble", "address", address, "cause", cause)
	}
}

func (b *broker) status() BrokerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BrokerStatus{Broker: b.e.Name, State: b.state, Since: b.since, Reason: b.cause}
	if c := b.conn; c != nil {
		s.Product, s.Version, s.Dialect, s.Login = c.Peer.Product, c.Peer.Version, c.Dialect.Name, c.Mechanism
		s.Target, s.MaxMessageSize, s.Unsettled = c.Target, c.MaxSize, c.unsettled.Load()
		s.CertExpires, s.ClientCertExpires = c.CertExpires()
		c.mu.Lock()
		s.Links = len(c.links)
		c.mu.Unlock()
	}
	return s
}
