// Package drain sends what a store holds, deletes what a broker accepted, and applies expiry.
//
// It promises: nothing is deleted before its outcome is known; what a broker accepted is not sent again while
// the process lives; no message holds up another. It never decides where a message goes: a sender is given to
// it.
package drain

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"koji-relay/internal/message"
	"koji-relay/internal/retry"
	"koji-relay/queue"
)

// Sender sends a batch and waits for the outcomes; the drain needs no more of a relay.
type Sender interface {
	// SendPatiently returns one outcome for each message, in their order. It blocks until all are known or
	// the configured send_timeout passed.
	SendPatiently(ctx context.Context, messages []message.Message) []message.Outcome
	// Usable reports whether a broker is up.
	Usable() bool
	// Answers is how often brokers have answered since the start.
	Answers() int64
}

// Listener is a store that can tell of puts made by other processes.
type Listener interface {
	// ListenQueue calls put, from one goroutine, after puts by any process. It blocks until ctx ends and
	// reconnects by itself; put is also called after each reconnection, since notifications may be lost
	// before it.
	ListenQueue(ctx context.Context, put func())
}

// Options is what the administrator can set; the configuration has the defaults. The functions may be nil.
type Options struct {
	BatchSize   int           // messages
	BatchBytes  int           // of message.Message.Size
	Interval    time.Duration // between looks at the queue that nothing else caused
	RateLimit   float64       // messages per second; 0 = no limit
	MaxAttempts int           // as Limits.MaxAttempts
	Expiry      queue.Expiry
	Logger      *slog.Logger
	// Observe is called for each message dealt with, from one goroutine at a time; it must not block.
	Observe func(queue.Entry, message.Outcome, queue.Settlement)
	// ObserveExpired is called with what aged out, from one goroutine at a time; it must not block.
	ObserveExpired func(queue.Expired, queue.Expiry)
}

// Drainer moves queued messages to a sender, and applies expiry. Run does the work; the other methods may be
// called at any time by anyone.
type Drainer struct {
	store   queue.Store
	sender  Sender
	options atomic.Pointer[Options]
	wake    chan struct{} // buffered 1: a wake-up during a pass is kept, further ones add nothing
	paused  atomic.Bool

	// mu guards the fields below.
	mu      sync.Mutex
	unsaved map[string]queue.Settlement // outcomes that the store does not know yet
	status  Status
	told    int64     // of status.Accepted, in the log
	toldAt  time.Time // when that was, or when the drain began to work
	endedAt time.Time // when the log was last told at the end of a drain
	// renewals are by address; each is for one message of each.
	renewals map[string]*renewal
	each     renewal

	// Only Run uses these.
	nextExpiry time.Time
	notBefore  time.Time // no pass before: the last one failed
	trouble    retry.Trouble
	unrenewed  retry.Trouble // with renewals
}

// Status is what the drain has done since the start.
type Status struct {
	Paused   bool
	Draining bool // a pass is running in this process
	Accepted int64
	SetAside int64
	Dead     int64
	Expired  int64
	Unsaved  int       // outcomes known here and not yet in the store
	LastPass time.Time // when the last pass ended
	Error    string    // why the last pass failed; empty after one that did not
}

const (
	// A pass ends after passTime, so that expiry, late rows and others that wait for the lock get a turn.
	passTime = 30 * time.Second
	// finishTime is what a batch being sent gets when Run is told to stop, as long as brokers answer: after
	// silentTime without an answer it waits for one that does not come, such as for credit.
	finishTime, silentTime = 5 * time.Second, 500 * time.Millisecond
	// saveTime is what storing its outcomes gets then.
	saveTime = 3 * time.Second
	// tellEvery is how often the log is told of a drain that goes on, and at most of drains that end.
	tellEvery = 30 * time.Second
	// expiryEvery bounds how much later than max_age a message is discarded.
	expiryEvery = time.Minute
)

// New prepares a drain; it starts nothing.
func New(store queue.Store, sender Sender, o Options) *Drainer {
	d := &Drainer{store: store, sender: sender, wake: make(chan struct{}, 1),
		unsaved: map[string]queue.Settlement{}, renewals: map[string]*renewal{}}
	d.Configure(o)
	return d
}

// Configure replaces the options, from the next pass on. The logger stays.
func (d *Drainer) Configure(o Options) {
	if min(o.BatchSize, o.BatchBytes) <= 0 || o.Interval <= 0 {
		panic("drain: BatchSize, BatchBytes and Interval must be above 0")
	}
	if old := d.options.Load(); old != nil && o.Logger == nil {
		o.Logger = old.Logger
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(queue.Entry, message.Outcome, queue.Settlement) {}
	}
	if o.ObserveExpired == nil {
		o.ObserveExpired = func(queue.Expired, queue.Expiry) {}
	}
	d.options.Store(&o)
}

// Wake asks for a pass soon: after a put, and when a broker came up. It never blocks.
func (d *Drainer) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Pause stops sending after the batch being sent; expiry goes on.
func (d *Drainer) Pause() { d.paused.Store(true) }

// Resume ends a Pause.
func (d *Drainer) Resume() {
	d.paused.Store(false)
	d.Wake()
}

// Status may be called at any time.
func (d *Drainer) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.status
	st.Paused, st.Unsaved = d.paused.Load(), len(d.unsaved)
	return st
}

// Run drains until ctx ends, and returns nil then. A batch that is being sent at that moment is finished
// within 5 s, while brokers answer. Its outcomes are stored within 3 s more; what is not stored then is sent
// again after the next start, under the same message-ids.
func (d *Drainer) Run(ctx context.Context) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	if l, ok := d.store.(Listener); ok {
		listening.Go(func() { l.ListenQueue(ctx, d.Wake) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			d.saveAtEnd(ctx)
			return nil
		case <-d.wake:
		case <-timer.C:
		}
		next := d.work(ctx)
		timer.Reset(next)
	}
}

// work runs passes as long as there is something to drain, and gives the time until the next look.
func (d *Drainer) work(ctx context.Context) time.Duration {
	d.mu.Lock()
	d.toldAt = time.Now()
	d.mu.Unlock()
	defer d.tell(true)
	for ctx.Err() == nil {
		if wait := time.Until(d.notBefore); wait > 0 {
			return wait
		}
		o := d.options.Load()
		draining := d.draining()
		if draining {
			d.renew(ctx, o)
		}
		expiring := !time.Now().Before(d.nextExpiry)
		if !draining && !expiring && !d.owesOutcomes() {
			break
		}
		if expiring {
			d.measure(ctx, o)
		}
		more, err := d.pass(ctx, o, draining, expiring)
		d.account(o, err)
		if err == nil && !more {
			break
		}
	}
	return max(0, min(d.options.Load().Interval, time.Until(d.nextExpiry), d.renewalIn()))
}

// draining reports whether a pass would send anything now.
func (d *Drainer) draining() bool { return !d.paused.Load() && d.sender.Usable() }

// tell logs how many queued messages were sent since it last did. Many short drains share a line.
func (d *Drainer) tell(ended bool) {
	now := time.Now()
	d.mu.Lock()
	messages := d.status.Accepted - d.told
	due := now.Sub(d.toldAt) >= tellEvery
	if ended {
		due = now.Sub(d.endedAt) >= tellEvery
	}
	due = due && messages > 0
	if due {
		d.told, d.toldAt = d.status.Accepted, now
	}
	if due && ended {
		d.endedAt = now
	}
	d.mu.Unlock()
	if due {
		d.options.Load().Logger.Info("queued messages were sent", "messages", messages)
	}
}

// measure lets a store whose size is bounded count what the other relays of the fleet put and drained.
func (d *Drainer) measure(ctx context.Context, o *Options) {
	if m, ok := d.store.(interface{ Remeasure(context.Context) error }); ok {
		if err := m.Remeasure(ctx); err != nil && ctx.Err() == nil {
			o.Logger.Warn("the size of the queue is not known exactly", "error", err)
		}
	}
}

// errNotTaken ends a pass in which a broker is up and yet messages were not sent.
var errNotTaken = errors.New("no broker took the batch")

// account notes how a pass ended. After a failure the next pass waits, for longer with each failure. A
// cause is logged once in a trouble.
func (d *Drainer) account(o *Options, err error) {
	d.mu.Lock()
	d.status.LastPass, d.status.Error = time.Now(), ""
	if err != nil {
		d.status.Error = err.Error()
	}
	d.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, queue.ErrBusy):
		d.trouble.Recovered(o.Logger, "the drain works again")
		if err != nil {
			d.notBefore = time.Now().Add(retry.Jitter(busyDelay))
		}
		return
	case errors.Is(err, context.Canceled):
		return
	}
	if d.trouble.Failed(err) {
		o.Logger.Warn("the drain is interrupted", "error", err)
	}
	d.notBefore = time.Now().Add(d.trouble.Delay())
}

// busyDelay is the time until this process asks again for a lock that another one holds.
const busyDelay = 2 * time.Second
