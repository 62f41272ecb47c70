// Package relay publishes messages on AMQP 1.0 brokers.
//
//	Send --> batch --> pick a broker --> conn --> link --> delivery --> amqpconn.Sender --> broker
//	           ^        (breaker)                             |
//	           +---------------- results ---------------------+--> unacked, poison: what outlives the call
//
// Locks are taken in this order: broker.mu, conn.mu, link.mu. All others (of results, unackedSet, poisonSet,
// notices) are held for a few lines that take no lock, except that link.mu may be held when a delivery moves,
// which takes none. No function of another part is called under any of them, and none is held across I/O.
//
// It promises that a caller never waits longer than it asked for, that only an accepted message is reported
// as accepted, that a message keeps its message-id through every resend, and that one broker, address or
// message that misbehaves does not hold up the others. It never touches the queue: what becomes of a message
// that no broker took is the caller's business, told by its message.Outcome. It never logs a body or a
// credential.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// Broker is one AMQP 1.0 endpoint.
type Broker struct {
	URL string // amqp:// or amqps://; may carry user and password, which no output shows
}

// Options says where and how to publish. Except for Brokers, TopicPrefix and Priority the zero value of a
// field is a working default.
type Options struct {
	Brokers          []Broker // in order of preference
	amqpconn.Options          // SendTimeout is also how long a connection may settle nothing

	HandoffTimeout time.Duration // the most that Send waits

	Shuffle        bool // the brokers, once
	DropUnroutable bool // messages that a broker has no binding for count as dealt with
	// PreserveOrder keeps the order of the messages of one call also where they go to different addresses.
	// Each change of address costs a round trip then, but for a patient call on RabbitMQ. A message that a
	// broker may or may not have stops those behind it: they are reported as not sent.
	PreserveOrder bool
	TTL           time.Duration // 0 = messages do not expire
	Durable       bool
	Priority      uint8 // AMQP's own default is 4
	BodyAsData    bool  // the body is a data section, not an AMQP value

	TestMode     bool // log instead of sending; counts as accepted
	TestModeFail int  // percentage of messages that test mode pretends to fail

	// MaxInflightBytes bounds what all calls together have in memory here. Above it messages are
	// not sent. One message above it goes out when nothing else is in flight.
	MaxInflightBytes int64

	Logger   *slog.Logger // nil = none
	Observer Observer
}

// Observer is told what happens, for metrics. Any field may be nil. The functions are called synchronously
// from sending goroutines: they must not block.
type Observer struct {
	// Accepted is called for each message that a broker has accepted, with the time since Send put it into the
	// queue for its address.
	Accepted func(broker string, m *message.Message, took time.Duration)
	// NotAccepted is called for each other message that was given to a broker, when it has answered or its
	// answer will not come. The outcome is that broker's; what becomes of the message may be decided by another.
	NotAccepted func(broker string, m *message.Message, o message.Outcome)
	// AddressWorks is called when a broker has accepted a message for an address that was in trouble with it.
	AddressWorks func(address string)
	// BrokerState is called on each change.
	BrokerState func(broker string, s BrokerState)
	// Failed is called for each attempt to connect that failed, for each connection that ended by itself, and
	// for each that could not be ended.
	Failed func(broker string, failure message.Failure)
}

// Relay sends messages. All methods may be called concurrently.
type Relay struct {
	opts    Options
	log     *slog.Logger
	brokers []*broker // in order of preference
	up      chan struct{}
	poison  *poisonSet
	unacked *unackedSet

	inflight   atomic.Int64  // bytes
	answers    atomic.Int64  // of all brokers so far
	startGrace time.Duration // see startGrace

	startOnce sync.Once
	started   chan struct{} // closed when the first connect attempts have ended, one way or the other
	running   atomic.Bool
}

// New checks opts and prepares a Relay. Nothing is started or opened, except that no file named in opts has
// to exist yet: files are read at each connect.
func New(opts Options) (*Relay, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	r := &Relay{
		opts:    opts,
		log:     opts.Logger,
		up:      make(chan struct{}, 1),
		started: make(chan struct{}),
		poison:  newPoisonSet(),
		unacked: newUnackedSet(),

		startGrace: startGrace,
	}
	var errs []error
	for _, b := range opts.Brokers {
		e, err := endpoint.Parse(b.URL)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.brokers = append(r.brokers, newBroker(r, e))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if opts.Shuffle {
		rand.Shuffle(len(r.brokers), func(i, j int) { r.brokers[i], r.brokers[j] = r.brokers[j], r.brokers[i] })
	}
	return r, nil
}

// check refuses values that nothing could be done with, all at once.
func (o *Options) check() error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	errs := []error{o.Options.Check()}
	if len(o.Brokers) == 0 && !o.TestMode {
		errs = append(errs, errors.New("no broker URL: set urls to one or more amqp:// or amqps:// URLs"))
	}
	if o.HandoffTimeout <= 0 || o.MaxInflightBytes <= 0 {
		errs = append(errs, errors.New("handoff_timeout and max_inflight_bytes must be above 0"))
	}
	return errors.Join(errs...)
}

// startGrace is for how long after the start Send waits for the first connection. A broker that does not
// answer costs the hub no more.
const startGrace = 100 * time.Millisecond

// Run connects to the brokers and keeps them connected until ctx ends. It blocks, leaves nothing behind, and
// may be called once. Deliveries that are unsettled when ctx ends are reported as unknown to whoever waits.
func (r *Relay) Run(ctx context.Context) error {
	if !r.running.CompareAndSwap(false, true) {
		return errors.New("run relay: already run")
	}
	defer r.endStart()
	if r.opts.TestMode {
		r.endStart()
		r.signalUp()
		<-ctx.Done()
		return nil
	}
	var wg sync.WaitGroup
	var first sync.WaitGroup
	for _, b := range r.brokers {
		first.Add(1)
		wg.Go(func() { b.supervise(ctx, sync.OnceFunc(first.Done)) })
	}
	wg.Go(func() { first.Wait(); r.endStart() })
	start := time.AfterFunc(min(r.startGrace, r.opts.HandoffTimeout), r.endStart)
	defer start.Stop()
	wg.Wait()
	return nil
}

// endStart ends the grace in which Send waits for the first connection.
func (r *Relay) endStart() { r.startOnce.Do(func() { close(r.started) }) }

func (r *Relay) signalUp() {
	select {
	case r.up <- struct{}{}:
	default:
	}
}

// Up receives whenever a broker becomes usable. Signals that nobody reads are merged.
func (r *Relay) Up() <-chan struct{} { return r.up }

// Usable reports whether SendPatiently has a broker to try.
func (r *Relay) Usable() bool {
	if r.opts.TestMode {
		return true
	}
	for _, b := range r.brokers {
		if b.usable() {
			return true
		}
	}
	return false
}

// Answers is how often brokers have answered since the start.
func (r *Relay) Answers() int64 { return r.answers.Load() }

// Inflight is how many bytes of messages are in memory here, at most about Options.MaxInflightBytes.
func (r *Relay) Inflight() int64 { return r.inflight.Load() }

// Status describes each broker, in order of preference.
func (r *Relay) Status() []inspect.Broker {
	all := make([]inspect.Broker, 0, len(r.brokers))
	for _, b := range r.brokers {
		all = append(all, b.status())
	}
	return all
}
