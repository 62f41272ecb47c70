package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Taker deals with commits. It is what publishes those that come over the socket, too.
type Taker interface {
	// Take returns which events were neither sent nor stored (nor made dead letters); these stay in the outbox.
	Take(ctx context.Context, c message.Commit) message.Receipt
}

// OutboxOptions configures the outbox reader.
type OutboxOptions struct {
	Interval time.Duration // between looks that no notification caused; default 30 s
	// MaxBytes bounds the kwargs handed over at once; default 64 MiB. A larger commit is handed over in pieces.
	MaxBytes int
	Logger   *slog.Logger
}

// Outbox reads the table koji_relay.outbox, into which the hub inserts events that do not come over the socket. One process
// of a fleet reads at a time: the one whose session holds an advisory lock. Commits are taken whole, oldest first, one
// after the other, and are deleted after they were dealt with: killed in between, they are taken again, under the
// same message-ids.
type Outbox struct {
	store *Store
	taker Taker
	o     OutboxOptions

	// mu guards the fields below.
	mu      sync.Mutex
	status  OutboxStatus
	session *listener // by which this process is the reader; nil when it is not

	// Only Run uses these.
	done    map[int64]bool // ids dealt with and not yet deleted
	walk    marks[int64]
	trouble retry.Trouble
}

// OutboxStatus is what the reader has done since the start.
type OutboxStatus struct {
	Reading bool  // this process is the reader of the fleet
	Taken   int64 // events dealt with
	Error   string
}

const (
	// outboxPage is the number of events looked at together.
	outboxPage = 200
	// outboxTurn is the time between two tries to become the reader.
	outboxTurn = 2 * time.Second
	// saveTime is what deleting events that were dealt with gets when Run is told to stop.
	saveTime   = 3 * time.Second
	lockOutbox = `SELECT pg_try_advisory_lock(hashtext('koji_relay'), hashtext('outbox'))`
)

// NewOutbox prepares a reader; it starts nothing.
func NewOutbox(p *Store, t Taker, o OutboxOptions) *Outbox {
	if o.Interval <= 0 {
		o.Interval = 30 * time.Second
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Outbox{store: p, taker: t, o: o, done: map[int64]bool{}}
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

// Run reads until ctx ends, and returns nil then, after the commit in hand is dealt with. It reconnects by itself.
func (b *Outbox) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := b.read(ctx)
		if ctx.Err() != nil {
			break
		}
		if b.trouble.Failed(err) {
			b.o.Logger.Warn("the outbox cannot be read", "error", b.store.explain("read the outbox", err))
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
	if err := b.deleteDone(ctx); err != nil {
		return err
	}
	for {
		held, err := tryLock(ctx, session.conn)
		if err != nil {
			return err
		}
		if held {
			break
		}
		b.works()
		for until := time.Now().Add(outboxTurn); time.Now().Before(until); {
			if _, err := session.await(ctx, time.Until(until)); err != nil {
				return err
			}
		}
	}
	b.reading(session)
	defer b.reading(nil)
	for {
		if err := b.empty(ctx, session); err != nil {
			return err
		}
		b.works()
		// A little early, so that what came right after a look is with a broker within the interval.
		until := time.Now().Add(b.o.Interval - b.o.Interval/10)
		for h := (heard{}); !h.outbox && time.Now().Before(until); {
			if h, err = session.await(ctx, time.Until(until)); err != nil {
				return err
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

// Poke says that there is something in the outbox: to the reader in this process, or else, by NOTIFY and at most every
// 50 ms, to that of another one. It never blocks, and may be called by anyone at any time.
func (b *Outbox) Poke() {
	b.mu.Lock()
	session := b.session
	b.mu.Unlock()
	if session == nil {
		b.store.news.add(notifyOutbox)
		return
	}
	session.poke()
}

// works notes that the outbox is in order.
func (b *Outbox) works() {
	if b.trouble.Over() {
		b.o.Logger.Info("the outbox can be read again")
	}
	b.mark(func(st *OutboxStatus) { st.Error = "" })
}

func tryLock(ctx context.Context, conn *pgx.Conn) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return held, conn.QueryRow(ctx, lockOutbox).Scan(&held)
}

// errHeldBack ends a session in which events could be neither sent nor stored; they are tried again after a while.
var errHeldBack = errors.New("events of the outbox could be neither sent nor queued")

// outboxEvent is what is known of an event before its kwargs are read.
type outboxEvent struct {
	id     int64
	commit string
	size   int
}

// empty takes commits until there are none. Each page begins where the reader was some time ago: an event that was committed
// late appears before some that were taken, and must be taken before all that come from then on.
func (b *Outbox) empty(ctx context.Context, session *listener) error {
	for {
		began := time.Now()
		from, full := b.walk.start(began, math.MinInt64)
		page, err := b.page(ctx, from)
		if err != nil {
			return err
		}
		if full {
			b.walk.walked(began, time.Since(began))
		}
		commits := wholeCommits(page)
		if len(commits) == 0 {
			return nil
		}
		for _, events := range commits {
			if err := b.takeCommit(ctx, session, events); err != nil {
				return errors.Join(err, b.deleteDone(ctx))
			}
		}
		if err := b.deleteDone(ctx); err != nil {
			return err
		}
		seen := page[len(page)-1].id
		if len(page) >= outboxPage {
			seen = page[0].id - 1 // events may be left anywhere behind the first one
		}
		b.walk.reached(time.Now(), seen)
	}
}

// page gives the first events after from that were not dealt with.
func (b *Outbox) page(ctx context.Context, from int64) ([]outboxEvent, error) {
	var page []outboxEvent
	err := b.store.do(ctx, "look into the outbox", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		var err error
		page, err = readEvents(ctx, conn, `WHERE id > $1 ORDER BY id LIMIT $2`, from, outboxPage)
		if err != nil || len(page) < outboxPage || page[0].commit != page[len(page)-1].commit {
			return err
		}
		// A commit that fills a page: read on to its end.
		page, err = readEvents(ctx, conn, `WHERE commit = $1::uuid ORDER BY id`, page[0].commit)
		return err
	})
	return page, err
}

func readEvents(ctx context.Context, conn *pgx.Conn, where string, args ...any) ([]outboxEvent, error) {
	rows, _ := conn.Query(ctx, `SELECT id, commit::text, octet_length(kwargs::text) FROM koji_relay.outbox `+where, args...)
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (outboxEvent, error) {
		var e outboxEvent
		err := row.Scan(&e.id, &e.commit, &e.size)
		return e, err
	})
}

// wholeCommits groups the events of a page by commit, in the order of their first events. The last commit of a full page
// may go on beyond it and waits for the next page, unless it is alone.
func wholeCommits(page []outboxEvent) [][]outboxEvent {
	var groups [][]outboxEvent
	at := map[string]int{}
	for _, e := range page {
		i, known := at[e.commit]
		if !known {
			i = len(groups)
			at[e.commit] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], e)
	}
	if len(page) >= outboxPage && len(groups) > 1 {
		cut := at[page[len(page)-1].commit]
		groups = slices.Delete(groups, cut, len(groups))
	}
	return groups
}

// takeCommit hands one commit over, in pieces where it is larger than MaxBytes.
func (b *Outbox) takeCommit(ctx context.Context, session *listener, events []outboxEvent) error {
	for len(events) > 0 {
		n, size := 0, 0
		for n < len(events) && (n == 0 || size+events[n].size <= b.o.MaxBytes) {
			size += events[n].size
			n++
		}
		if _, err := session.alive(ctx); err != nil { // it still holds the lock
			return err
		}
		if err := b.take(ctx, events[:n]); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// take reads the kwargs of events and hands them over. What is not named in the receipt is noted as done.
func (b *Outbox) take(ctx context.Context, events []outboxEvent) error {
	ids := make([]int64, len(events))
	for i, e := range events {
		ids[i] = e.id
	}
	c := message.Commit{ID: events[0].commit}
	var numbers map[int]int64
	err := b.store.do(ctx, "read events of the outbox", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		c.Events, numbers = nil, map[int]int64{}
		rows, _ := conn.Query(ctx, `SELECT id, event, callback, kwargs::text FROM koji_relay.outbox WHERE id = ANY($1) ORDER BY event`, ids)
		var id int64
		var e message.Event
		var kwargs []byte
		_, err := pgx.ForEachRow(rows, []any{&id, &e.Number, &e.Callback, &kwargs}, func() error {
			e.Kwargs = slices.Clone(kwargs)
			c.Events = append(c.Events, e)
			numbers[e.Number] = id
			return nil
		})
		return err
	})
	if err != nil || len(c.Events) == 0 {
		return err
	}
	failpoint.Hit("before-outbox-take")
	// What was begun is finished, as for a commit of the socket: cut short, it would be sent again.
	receipt := b.taker.Take(context.WithoutCancel(ctx), c)
	failpoint.Hit("after-outbox-take")
	for _, n := range receipt.NotTaken {
		delete(numbers, n)
	}
	for _, id := range numbers {
		b.done[id] = true
	}
	b.mark(func(st *OutboxStatus) { st.Taken += int64(len(numbers)) })
	if len(receipt.NotTaken) > 0 {
		return fmt.Errorf("%w: %s", errHeldBack, receipt.Reason)
	}
	return nil
}

// deleteDone deletes what was dealt with, also when ctx has ended. Until that succeeds, nothing more is taken.
func (b *Outbox) deleteDone(ctx context.Context) error {
	if len(b.done) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	ids := slices.Collect(maps.Keys(b.done))
	err := b.store.do(ctx, "delete events from the outbox", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `DELETE FROM koji_relay.outbox WHERE id = ANY($1)`, ids)
		return err
	})
	if err == nil {
		clear(b.done)
		failpoint.Hit("after-outbox-delete")
	}
	return err
}
