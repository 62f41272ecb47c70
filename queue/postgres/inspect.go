package postgres

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"koji-relay/internal/inspect"
	"koji-relay/queue"
)

// Counting a queue takes time that grows with it, and so does counting an outbox that is held for another
// reader. So what was counted is shown again for a while where it is long: counting takes at most 2 % of the
// time, however long it is and however often it is asked for.
const (
	statsLong  = 10_000 // less than that is counted each time
	statsShare = 50
	statsOld   = 30 * time.Second // at the most
	// Looking for each row of proton_queue takes three to six times as long. It is done once in a while for a
	// long queue, and never for a huge one.
	comparedEach = time.Minute
	comparedMost = 1_000_000
)

// counted is the last count of something.
type counted[T any] struct {
	// mu guards the fields below.
	mu    sync.Mutex
	count T
	rows  int64 // that were walked over
	at    time.Time
	took  time.Duration
}

// last gives the last count, unless it is to be repeated.
func (c *counted[T]) last(now time.Time) (T, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count, c.rows >= statsLong && now.Sub(c.at) < min(statsShare*c.took, statsOld)
}

func (c *counted[T]) note(count T, rows int64, at time.Time, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count, c.rows, c.at, c.took = count, rows, at, took
}

// forget makes the next count a new one: after an administrator's change.
func (c *counted[T]) forget() {
	var none T
	c.note(none, 0, time.Time{}, 0)
}

// Stats implements Inspector. Of a long queue it may be some seconds old.
func (p *Store) Stats(ctx context.Context) (inspect.Statistics, error) {
	began := time.Now()
	if st, ok := p.counted.last(began); ok {
		return st, nil
	}
	st, rows, err := p.count(ctx)
	if err != nil {
		return st, err
	}
	p.counted.note(st, rows, began, time.Since(began))
	return st, nil
}

// count also gives how many rows it walked over.
func (p *Store) count(ctx context.Context) (st inspect.Statistics, walked int64, err error) {
	err = p.do(ctx, "count the queue", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		st = inspect.Statistics{DeadLettersByReason: map[string]int64{}}
		return inOneView(ctx, conn, func(tx pgx.Tx) error {
			walked, err = p.readStats(ctx, tx, &st)
			return err
		})
	})
	return st, walked, err
}

// inOneView runs fn in a transaction that counts: all its queries see one state, and scan tables.
func inOneView(ctx context.Context, conn *pgx.Conn, fn func(pgx.Tx) error) error {
	options := pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}
	return pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) error {
		// Counting all is the one thing that a scan of the table does best.
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = on"); err != nil {
			return err
		}
		return fn(tx)
	})
}

// compares reports whether a count of so many messages looks for the row of each in proton_queue.
func (p *Store) compares(depth int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return depth < statsLong || depth <= comparedMost && (p.differs || time.Since(p.compared) >= comparedEach)
}

// readTopics counts the messages of each topic. Rows of proton_queue that others have deleted leave ours
// behind until the drain comes there, which without a broker is never: where one is missing at an end of a
// topic, it counts anew by what is there. With thorough it finds those in the middle, too, of a long queue in
// its time. tx must see one state.
func (p *Store) readTopics(ctx context.Context, tx pgx.Tx, st *inspect.Statistics, thorough bool) error {
	const topics = `SELECT address, count(*), least(sum(size), 9223372036854775807)::bigint, min(created_ts),
		count(next_attempt), min(next_attempt), min(queue_id), max(queue_id)
		FROM koji_relay.delivery d `
	var ends []int64
	read := func(where string) error {
		rows, _ := tx.Query(ctx, p.sql(topics+where+` GROUP BY address ORDER BY address`))
		var t inspect.Topic
		var aside, first, last int64
		var oldest, next pgtype.Timestamptz
		_, err := pgx.ForEachRow(rows, []any{&t.Address, &t.Depth, &t.Bytes, &oldest, &aside, &next, &first, &last},
			func() error {
				t.Oldest = timeOf(oldest)
				ends = append(ends, first, last)
				queue.AddTopic(st, t, aside, timeOf(next))
				return nil
			})
		return err
	}
	if err := read(``); err != nil || len(ends) == 0 {
		return err
	}
	if !thorough || !p.compares(st.Depth) {
		var missing bool
		if err := tx.QueryRow(ctx, p.sql(`SELECT EXISTS (SELECT FROM unnest($1::bigint[]) AS e(id)
			WHERE NOT EXISTS (SELECT FROM {koji}.proton_queue q WHERE q.id = ANY(ARRAY[e.id])))`), ends).
			Scan(&missing); err != nil || !missing {
			return err
		}
	}
	ours := st.Depth
	*st = inspect.Statistics{DeadLettersByReason: map[string]int64{}}
	err := read(`WHERE EXISTS (SELECT FROM {koji}.proton_queue q WHERE q.id = d.queue_id
		AND q.created_ts IS NOT DISTINCT FROM d.created_ts)`)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.compared, p.differs = time.Now(), err == nil && st.Depth != ours
	return err
}

func (p *Store) readStats(ctx context.Context, tx pgx.Tx, st *inspect.Statistics) (walked int64, err error) {
	if err := p.readTopics(ctx, tx, st, true); err != nil {
		return 0, err
	}
	if st.SetAside > 0 {
		err := tx.QueryRow(ctx, `SELECT left(last_error, 500), count(*) FROM koji_relay.delivery
			WHERE next_attempt IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1`).Scan(&st.AsideReason, &st.AsideFor)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return 0, err
		}
	}
	rows, _ := tx.Query(ctx, `SELECT reason, count(*) FROM koji_relay.dead_letter GROUP BY reason
		ORDER BY count(*) DESC LIMIT 50`)
	var reason string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&reason, &n}, func() error {
		st.DeadLettersByReason[reason] = n
		return nil
	})
	if err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, onlyMerge); err != nil {
		return 0, err
	}
	var oldest pgtype.Timestamptz
	err = tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM koji_relay.dead_letter), count(*),
		count(*) FILTER (WHERE t.id IS NULL), min(o.created) FILTER (WHERE t.id IS NULL) FROM `+untaken+`''`).
		Scan(&st.DeadLetters, &walked, &st.Outbox, &oldest)
	st.OutboxOldest = timeOf(oldest)
	return st.Depth + st.DeadLetters + walked, err
}

// List implements Inspector. Items that come or go meanwhile may be listed or not.
func (p *Store) List(ctx context.Context, box inspect.Box, o inspect.ListOptions,
	each func(queue.Item) error) error {
	left := o.Limit
	if left <= 0 {
		left = math.MaxInt
	}
	var at listPlace
	for left > 0 {
		var items []queue.Item
		err := p.do(ctx, "list "+box.Name(), callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			from := at
			var err error
			items, err = listSome(ctx, conn, box,
				inspect.ListOptions{Address: o.Address, Newest: o.Newest, Limit: min(left, queue.ListChunk)}, &from)
			if err == nil {
				at = from
			}
			return err
		})
		if err != nil || len(items) == 0 {
			return err
		}
		for _, it := range items {
			if err := each(it); err != nil {
				return err
			}
		}
		left -= len(items)
	}
	return nil
}

// listPlace is where a list goes on; at the beginning it is not known.
type listPlace struct {
	known   bool
	queueID int64
	died    pgtype.Timestamptz
	id      string
}

const (
	queueItem = `d.message_id, d.queue_id, d.created_ts, d.commit, d.event, d.callback, d.address, d.created,
		d.size, d.attempts,
		d.tries, d.next_attempt, d.last_error, false`
	deadItem = `d.message_id, 0::bigint, d.died, d.commit, d.event, d.callback, coalesce(d.address, ''),
		d.created,
		(octet_length(d.body) + 256)::bigint, d.attempts, 0, NULL::timestamptz, d.reason, d.address IS NULL`
)

func listSome(ctx context.Context, conn *pgx.Conn, box inspect.Box, o inspect.ListOptions,
	at *listPlace) ([]queue.Item, error) {
	than, order := ">", ""
	if o.Newest {
		than, order = "<", " DESC"
	}
	sql := `SELECT ` + queueItem + `, ''::bytea, ''::bytea FROM koji_relay.delivery d
		WHERE ($4 OR d.queue_id ` + than + ` $1) AND ($2 = '' OR d.address = $2)
		ORDER BY d.queue_id` + order + ` LIMIT $3`
	args := []any{at.queueID, o.Address, o.Limit, !at.known}
	if box == inspect.DeadBox {
		sql = `SELECT ` + deadItem + `, ''::bytea, ''::bytea FROM koji_relay.dead_letter d
			WHERE ($5 OR (d.died, d.message_id) ` + than + ` ($1, $2)) AND ($3 = '' OR d.address = $3)
			ORDER BY d.died` + order + `, d.message_id` + order + ` LIMIT $4`
		args = []any{at.died, at.id, o.Address, o.Limit, !at.known}
	}
	items, last, err := readItems(ctx, conn, sql, args...)
	if err == nil && len(items) > 0 {
		*at = last
	}
	return items, err
}

// readItems reads the columns of queueItem or deadItem, props and body. It also gives the place of the last
// item.
func readItems(ctx context.Context, conn *pgx.Conn, sql string,
	args ...any) ([]queue.Item, listPlace, error) {
	rows, _ := conn.Query(ctx, sql, args...) // CollectRows gives the error
	var last listPlace
	items, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (queue.Item, error) {
		var it queue.Item
		var created, next pgtype.Timestamptz
		var props []byte
		m := &it.Message
		err := row.Scan(&m.ID, &last.queueID, &last.died, &m.Commit, &m.Event, &m.Callback, &m.Address, &created,
			&it.Size, &it.Attempts, &it.Tries, &next, &it.Reason, &it.Event, &props, &it.Body)
		last.known, last.id = true, m.ID
		it.Queued, m.Created, it.NextAttempt = timeOf(last.died), timeOf(created), timeOf(next)
		it.Props = queue.PropsText(props)
		return it, err
	})
	return items, last, err
}

const (
	fullQueueItems = `SELECT ` + queueItem + `, convert_to(q.props::text, 'UTF8'),
		convert_to(q.body::text, 'UTF8')
		FROM koji_relay.delivery d JOIN {koji}.proton_queue q ON q.id = ANY(ARRAY[d.queue_id])
			AND q.created_ts IS NOT DISTINCT FROM d.created_ts`
	fullDeadItems = `SELECT ` + deadItem + `, coalesce(d.props, ''), d.body FROM koji_relay.dead_letter d`
)

// Holds implements Inspector.
func (p *Store) Holds(ctx context.Context, ids []string) (n int, err error) {
	err = p.do(ctx, "look for messages in the queue", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, `SELECT count(*) FROM koji_relay.delivery WHERE message_id = ANY($1)`,
				ids).Scan(&n)
		})
	return n, err
}

// Show implements Inspector.
func (p *Store) Show(ctx context.Context, box inspect.Box, id string) (queue.Item, error) {
	sql := fullQueueItems
	if box == inspect.DeadBox {
		sql = fullDeadItems
	}
	var items []queue.Item
	err := p.do(ctx, "show "+id, callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		var err error
		items, _, err = readItems(ctx, conn, p.sql(sql)+` WHERE d.message_id = $1`, id)
		if err == nil && len(items) == 0 {
			err = queue.ErrNotFound
		}
		return err
	})
	if err != nil {
		return queue.Item{}, err
	}
	return items[0], nil
}

// Retry implements Inspector. What is set aside becomes due rather than fresh: the drain finds it by its
// time, and not by its place among messages that were passed long ago.
func (p *Store) Retry(ctx context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	defer p.counted.forget()
	if box == inspect.DeadBox {
		return p.retryDead(ctx, which)
	}
	return p.change(ctx, "retry messages", which, `
		UPDATE koji_relay.delivery d SET attempts = 0,
			next_attempt = CASE WHEN next_attempt IS NOT NULL THEN least(next_attempt, now()) END
		WHERE `+where(which, "d.next_attempt > now()")+` RETURNING d.message_id`)
}

// Drop implements Inspector.
func (p *Store) Drop(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error) {
	defer p.counted.forget()
	if box == inspect.DeadBox {
		return p.change(ctx, "drop dead letters", which,
			`DELETE FROM koji_relay.dead_letter d WHERE `+where(which, "true")+` RETURNING d.message_id`)
	}
	changed, err := p.change(ctx, "drop messages", which, `
		WITH gone AS (
			DELETE FROM koji_relay.delivery d WHERE `+where(which, "true")+` RETURNING d.message_id, d.queue_id,
				d.created_ts
		), deleted AS (
			DELETE FROM {koji}.proton_queue q USING gone g WHERE q.id = ANY(ARRAY[g.queue_id])
				AND q.created_ts IS NOT DISTINCT FROM g.created_ts
		)
		SELECT message_id FROM gone`)
	if err != nil {
		return changed, err
	}
	return changed, p.Remeasure(ctx)
}

// where is the condition for the rows d that are selected, with the ids as $1; all is it for all of them.
func where(which inspect.Selection, all string) string {
	if which.All {
		return "$1::text[] IS NOT NULL AND " + all
	}
	return "d.message_id = ANY($1)"
}

// change runs a statement that takes ids, and gives the ids of what it changed.
func (p *Store) change(ctx context.Context, what string, which inspect.Selection,
	sql string) (inspect.Changed, error) {
	var changed inspect.Changed
	err := p.do(ctx, what, callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		ids := which.IDs
		if ids == nil {
			ids = []string{}
		}
		rows, _ := conn.Query(ctx, p.sql(sql), ids) // CollectRows gives the error
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		changed = inspect.Changed{Count: len(found)}
		if !which.All {
			changed.Missing = queue.Missing(which.IDs, found)
		}
		return err
	})
	return changed, err
}

// retryDead returns dead letters to the queue, a few at a time, since their bodies pass through this process.
// Each message is either still a dead letter or queued.
func (p *Store) retryDead(ctx context.Context, which inspect.Selection) (inspect.Changed, error) {
	ids := which.IDs
	if which.All {
		ids = nil
		err := p.List(ctx, inspect.DeadBox, inspect.ListOptions{}, func(it queue.Item) error {
			if !it.Event {
				ids = append(ids, it.Message.ID)
			}
			return nil
		})
		if err != nil {
			return inspect.Changed{}, err
		}
	}
	var changed inspect.Changed
	for _, id := range ids {
		err := p.retryOne(ctx, id)
		switch {
		case err == nil:
			changed.Count++
		case errors.Is(err, queue.ErrNotFound) || refusedData(err):
			changed.Missing = append(changed.Missing, id)
		default:
			return changed, err
		}
	}
	return changed, nil
}

func (p *Store) retryOne(ctx context.Context, id string) error {
	it, err := p.Show(ctx, inspect.DeadBox, id)
	if err != nil {
		return err
	}
	r, ok := it.Unsent()
	if !ok {
		return queue.ErrNotFound
	}
	return p.do(ctx, "retry dead letter "+id, callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM koji_relay.dead_letter WHERE message_id = $1`, id)
		var n int64
		p.queueRows(batch, []queue.Row{r}, &n)
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		p.news.add(notifyQueue)
		return nil
	})
}

// Add implements Inspector.
func (p *Store) Add(ctx context.Context, box inspect.Box, items []queue.Item) (int, error) {
	defer p.counted.forget()
	in := queue.SortItems(box, items)
	var stored int64
	err := p.do(ctx, "add "+inspect.Count(len(items), "item")+" to "+box.Name(), callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			stored = 0
			batch := &pgx.Batch{}
			p.queueRows(batch, in.Rows, &stored)
			queueDead(batch, in.Dead).Exec(func(tag pgconn.CommandTag) error {
				stored += tag.RowsAffected()
				return nil
			})
			return conn.SendBatch(ctx, batch).Close()
		})
	if err == nil {
		p.bytes.add(in.Size)
	}
	return int(stored), err
}

var _ queue.Inspector = (*Store)(nil)
