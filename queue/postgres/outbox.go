package postgres

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Publisher publishes commits: the same that publishes those of the socket.
type Publisher interface {
	// Publish returns which events were neither sent nor stored (nor made dead letters); these stay in the
	// outbox. It is called by many goroutines at once.
	Publish(ctx context.Context, c message.Commit) message.Receipt
}

// OutboxOptions configures the outbox reader.
type OutboxOptions struct {
	Name     string        // of the reader; empty for the one without a name
	Interval time.Duration // between looks that no notification caused
	// Subjects says what a commit is about. Commits that share a subject are taken one after the other, in
	// their order; others at the same time. Without it all are taken one after the other.
	Subjects func(message.Commit) []string
	// MaxBytes bounds the kwargs that are being dealt with; default 8 MiB. A larger event is dealt with alone.
	MaxBytes int
	// BeforeDelete is called before events that were dealt with are deleted: then they are remembered
	// elsewhere. It must bound itself.
	BeforeDelete func(ctx context.Context)
	Logger       *slog.Logger
}

// Outbox reads the table koji_relay.outbox, into which the hub inserts events within its own transactions, or
// those that the socket did not take. One process of a fleet reads at a time: the one whose session holds an
// advisory lock. Relays of another name are a reader of their own (see reader.go).
//
// Many commits are under way at once. Those about one subject keep their order, and so do the events of a
// commit. A commit is taken whole, a large one in pieces. Events are deleted after they were dealt with, many
// at a time: killed in between, they are taken again, under the same message-ids.
type Outbox struct {
	store     *Store
	publisher Publisher
	o         OutboxOptions
	// intervals has a new Options.Interval that Run has not seen.
	intervals chan time.Duration

	// mu guards the fields below.
	mu      sync.Mutex
	status  OutboxStatus
	session *listener // by which this process is the reader; nil when it is not

	// Only Run uses these.
	done    []doneEvent // not yet deleted
	trouble retry.Trouble
	walk    marks[int64] // how far the reads of the last session came, if that ended in good order
	server  time.Time    // when the server that it was on had started
}

// OutboxStatus is what the reader has done since the start.
type OutboxStatus struct {
	Reading bool  // this process is the reader of the fleet
	Taken   int64 // events dealt with
	Error   string
}

const (
	// outboxTurn is the time between two tries to become the reader.
	outboxTurn = 2 * time.Second
	lockOutbox = `SELECT pg_try_advisory_lock(hashtext('koji_relay'), hashtext($1))`
	// saveTime is what deleting events that were dealt with gets when Run is told to stop.
	saveTime = 3 * time.Second
)

// NewOutbox prepares a reader; it starts nothing.
func NewOutbox(p *Store, t Publisher, o OutboxOptions) *Outbox {
	if o.Interval <= 0 {
		panic("postgres: OutboxOptions.Interval must be above 0")
	}
	if o.Subjects == nil {
		o.Subjects = func(message.Commit) []string { return []string{"everything"} }
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 8 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Outbox{store: p, publisher: t, o: o, intervals: make(chan time.Duration, 1)}
}

// SetInterval changes OutboxOptions.Interval, and lets the reader look at once. It never blocks. One
// goroutine at a time may call it.
func (b *Outbox) SetInterval(interval time.Duration) {
	select {
	case <-b.intervals: // one that was not seen
	default:
	}
	b.intervals <- interval
}

// Status may be called at any time.
func (b *Outbox) Status() OutboxStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *Outbox) mark(f func(*OutboxStatus)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.status)
}

// Run reads until ctx ends, and returns nil then, after the commits in hand are dealt with. It reconnects by
// itself.
func (b *Outbox) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := b.read(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRenew) {
			continue
		}
		err = b.store.explain("read the outbox", err)
		if b.trouble.Failed(err) {
			b.o.Logger.Warn("the outbox cannot be read", "error", err)
		}
		b.mark(func(st *OutboxStatus) { st.Error = err.Error() })
		retry.Pause(ctx, b.trouble.Delay())
	}
	return nil
}

// read is one session: it becomes the reader, and reads until something fails.
func (b *Outbox) read(ctx context.Context) error {
	session, err := b.store.listen(ctx)
	if err != nil {
		return err
	}
	defer session.close()
	// First of all, and whoever reads now: what was dealt with must not be taken again.
	if err := b.deleteDone(ctx, b.done); err != nil {
		return err
	}
	b.done = nil
	for {
		held, err := session.tryLock(ctx, lockOf(b.o.Name))
		if err != nil {
			return err
		}
		if held {
			break
		}
		b.walk = marks[int64]{} // another relay reads on
		b.works()
		for until := time.Now().Add(outboxTurn); time.Now().Before(until); {
			if _, err := session.await(ctx, time.Until(until)); err != nil {
				return err
			}
		}
	}
	b.reading(session)
	defer b.reading(nil)
	return b.readAll(ctx, session)
}

// readAll runs a window over the outbox, and beside it what waits for the session to tell of more. Where the
// last session only was old, on the same server, the window goes on where that came to: else each read of the
// first seconds would walk past all that is held for others.
func (b *Outbox) readAll(ctx context.Context, session *listener) error {
	server, err := session.serverStart(ctx)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	w := newWindow(b, session)
	if server.Equal(b.server) {
		w.walk = b.walk
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		w.watched <- session.watch(ctx, w.wake)
	})
	err = w.run(ctx)
	stop()
	watching.Wait()
	b.done = w.done
	b.walk, b.server = marks[int64]{}, server
	// What was read and not dealt with may lie before where reads would begin.
	if errors.Is(err, errRenew) && len(w.held) == len(w.done) {
		b.walk = w.walk
	}
	return errors.Join(err, b.deleteRest(ctx))
}

// deleteRest deletes what was dealt with at the end of a session.
func (b *Outbox) deleteRest(ctx context.Context) error {
	err := b.deleteDone(ctx, b.done)
	if err == nil {
		b.done = nil
	}
	return err
}

func (l *listener) tryLock(ctx context.Context, key string) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return held, l.conn.QueryRow(ctx, lockOutbox, key).Scan(&held)
}

// serverStart tells one server, and one run of it, from another.
func (l *listener) serverStart(ctx context.Context) (start time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return start, l.conn.QueryRow(ctx, "SELECT pg_postmaster_start_time()").Scan(&start)
}

// watch fills wake whenever the session hears of the outbox, until it breaks or ctx ends.
func (l *listener) watch(ctx context.Context, wake chan<- struct{}) error {
	for {
		h, err := l.await(ctx, time.Hour)
		if err != nil {
			return err
		}
		if h.outbox {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}

// reading notes the session by which this process is the reader; nil when it is not.
func (b *Outbox) reading(session *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session, b.status.Reading = session, session != nil
}

// works notes that the outbox is in order.
func (b *Outbox) works() {
	b.trouble.Recovered(b.o.Logger, "the outbox can be read again")
	b.mark(func(st *OutboxStatus) { st.Error = "" })
}

// Poke says that there is something in the outbox: to the reader in this process, and by NOTIFY, at most
// every 50 ms, to those of others. It never blocks, and may be called by anyone at any time.
func (b *Outbox) Poke() {
	b.mu.Lock()
	session := b.session
	b.mu.Unlock()
	if session == nil || b.store.Shared() {
		b.store.news.add(notifyOutbox)
	}
	if session != nil {
		session.poke()
	}
}
