package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/amqpconn/guard"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// BrokerState is what a broker is good for at the moment. Up and Stalled are a connection with its breaker
// closed and open.
//
//	         connect                     breaker opens
//	down --> connecting --> up -------------------------------> stalled
//	 ^           |           ^  |                                 |
//	 |  refused  |           |  |    breaker closes               |
//	 |<----------+           +--)---------------------------------+
//	 |                          |                                 |
//	 +<--- connection ends -----+---------------------------------+
type BrokerState = inspect.BrokerState

const (
	Down       = inspect.Down
	Connecting = inspect.Connecting
	Up         = inspect.Up
	Stalled    = inspect.Stalled
)

// seasoned is how long a broker has to be connected before it is preferred to later ones of the list.
const seasoned = 5 * time.Second

// maxDialPause is the longest time between two attempts to connect.
const maxDialPause = 10 * time.Second

// broker is one endpoint.Endpoint with its supervisor.
type broker struct {
	r   *Relay
	e   endpoint.Endpoint
	log *slog.Logger

	// guarded keeps what each settlement asks for off the mutex: whether the breaker would close by it.
	guarded   atomic.Bool
	notices   notices
	forbidden forbidden

	mu          sync.Mutex  // guards what follows
	phase       BrokerState // of the connection: Down, Connecting or Up
	breaker     breaker
	shown       BrokerState // the state when enter was last called
	since       time.Time   // of that
	cause       string
	conn        *conn // nil unless the phase is Up
	connectedAt time.Time
	abandoned   int // connections that could not be ended
}

func newBroker(r *Relay, e endpoint.Endpoint) *broker {
	return &broker{
		r: r, e: e, log: r.log.With("broker", e.Name),
		phase: Down, shown: Down, since: time.Now(), cause: "not connected yet", notices: newNotices(),
	}
}

// supervise keeps the broker connected until ctx ends. tried is called after the first attempt.
func (b *broker) supervise(ctx context.Context, tried func()) {
	defer tried()
	trouble := retry.Trouble{Limit: maxDialPause}
	failures, downSince := 0, time.Now()
	brief := false // the last connection ended soon, and so may this one: what is over is said when it lasts
	for ctx.Err() == nil {
		b.set(Connecting, "")
		c, err := b.dial(ctx, b.log)
		var lasted time.Duration
		if err == nil {
			b.connected(c)
			n, since := failures, downSince
			tell := func() { b.tellConnected(c, n, time.Since(since)) }
			wait := time.AfterFunc(seasoned, tell)
			told := !brief && wait.Stop()
			if told {
				tell()
			}
			tried()
			err = c.serve(ctx)
			if told = told || !wait.Stop(); told {
				failures, downSince = 0, time.Now()
			}
			var refused *guard.RefusedError
			if errors.As(err, &refused) {
				b.latch()
			}
			lasted = time.Since(c.born)
			brief = lasted < seasoned
			b.disconnected()
		}
		tried()
		if ctx.Err() != nil {
			break
		}
		failures++
		cause := failure.Cause(err)
		b.set(Down, cause)
		if f := b.r.opts.Observer.Failed; f != nil {
			f(b.e.Name, amqpconn.EndedBy(err))
		}
		if trouble.FailedBy(cause) {
			b.log.Warn("broker down", "cause", cause)
		}
		wait := trouble.Delay()
		if lasted >= seasoned {
			trouble.Over()
			wait = 0 // it worked until now: most likely a restart or a failover that is over
		}
		retry.Pause(ctx, wait)
	}
	b.set(Down, "relay stopped")
}

// observeSettled tells the observer how a delivery ended that was given to the broker.
func (b *broker) observeSettled(d *delivery, r result) {
	if r.state == message.Accepted {
		if f := b.r.opts.Observer.Accepted; f != nil {
			f(b.e.Name, d.msg, d.link.c.now()-d.began)
		}
		return
	}
	b.observeNotAccepted(d.msg, r)
}

// observeNotAccepted is by itself for the sake of the stack. A goroutine that waits for a receipt begins with
// 2 KiB; where an accepted message needed more, that took a twentieth of the time.
func (b *broker) observeNotAccepted(m *message.Message, r result) {
	if f := b.r.opts.Observer.NotAccepted; f != nil {
		f(b.e.Name, m, r.outcome(false))
	}
}

// abandon counts a connection that could not be ended.
func (b *broker) abandon() {
	b.mu.Lock()
	b.abandoned++
	n := b.abandoned
	b.mu.Unlock()
	if f := b.r.opts.Observer.Failed; f != nil {
		f(b.e.Name, message.FailedAbandoned)
	}
	if n == 1 {
		b.log.Error("a connection cannot be ended, and keeps its memory until the relay restarts; " +
			"further ones are counted as abandoned, not logged")
	}
}

// state is what the broker is good for. b.mu is held.
func (b *broker) state() BrokerState {
	if b.phase == Up && b.breaker.open {
		return Stalled
	}
	return b.phase
}

// set changes the phase of the connection and tells the observer.
func (b *broker) set(phase BrokerState, cause string) {
	b.mu.Lock()
	b.phase = phase
	changed := b.enter(cause)
	b.mu.Unlock()
	if changed {
		b.observe(phase)
	}
}

// enter notes the cause of a state, and reports whether it is another one than before. b.mu is held.
func (b *broker) enter(cause string) (changed bool) {
	s := b.state()
	if changed = s != b.shown; changed {
		if !away(s) || !away(b.shown) { // an attempt in between is no new outage
			b.since = time.Now()
		}
		b.shown = s
	}
	b.guarded.Store(b.breaker.open || b.breaker.latched)
	if s != Connecting { // while it tries again, the last cause is what one wants to know
		b.cause = cause
	}
	return changed
}

// away reports whether a broker in this state has no connection.
func away(s BrokerState) bool { return s == Down || s == Connecting }

func (b *broker) observe(s BrokerState) {
	if f := b.r.opts.Observer.BrokerState; f != nil {
		f(b.e.Name, s)
	}
}

// connected puts a new connection to use; with its breaker open if the last one left it so.
func (b *broker) connected(c *conn) {
	b.mu.Lock()
	b.conn, b.connectedAt, b.phase = c, time.Now(), Up
	b.breaker.open, b.breaker.shut = false, false
	cause := ""
	if c.Shut() { // a session begins so only if it is meant
		cause = shutCause
		b.breaker.open, b.breaker.shut = true, true
		c.tripped.Store(true)
	} else if b.breaker.latched {
		cause = "connected again; the next message tries it"
		b.breaker.trip(0)
	}
	state := b.state()
	b.enter(cause)
	b.mu.Unlock()
	b.observe(state)
	b.r.endStart()
	b.r.signalUp()
}

// tellConnected logs a connection. failures counts the attempts before it, and the ends of connections that
// did not last.
func (b *broker) tellConnected(c *conn, failures int, down time.Duration) {
	b.mu.Lock()
	state, cause := b.state(), b.cause
	b.mu.Unlock()
	log := b.log
	if state == Stalled {
		log = log.With("cause", cause)
	}
	if failures > 0 {
		log = log.With("failures", failures, "down", down.Round(time.Millisecond).String())
	}
	log.Info("broker connected", "product", c.Peer.Product, "version", c.Peer.Version, "dialect", c.Dialect.Name,
		"login", c.Mechanism, "state", string(state))
}

func (b *broker) disconnected() {
	b.set(Down, "connection lost")
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn, b.breaker.open, b.breaker.shut = nil, false, false
}

// upWith reports whether the broker is up with connection c.
func (b *broker) upWith(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state() == Up && b.conn == c
}

// usable reports whether SendPatiently would use the broker.
func (b *broker) usable() bool {
	_, ok := b.candidate(true)
	return ok
}

func (b *broker) status() inspect.Broker {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := inspect.Broker{Name: b.e.Name, State: b.state(), Since: b.since, Reason: b.cause, TLS: b.e.TLS}
	if c := b.conn; c != nil {
		s.Product, s.Version, s.Dialect, s.Login = c.Peer.Product, c.Peer.Version, c.Dialect.Name, c.Mechanism
		s.Untried = s.State == Stalled && !c.tripped.Load() || s.State == Up && c.settledAt.Load() == 0
		s.Target, s.MaxMessageSize, s.InFlight = c.Target, c.MaxSize, c.unacked.Load()
		s.CertExpires, s.ClientCertExpires = c.CertExpires()
		c.mu.Lock()
		s.Links = len(c.links)
		c.mu.Unlock()
	}
	return s
}
