package postgres

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/inspect"
)

// The outbox is a log with readers. A reader is a row of koji_relay.reader; all relays of one name are one
// reader, and the empty name is that of relays without one. What is guaranteed, by whom:
//
//   - An event that the hub commits after a reader was registered stays until that reader has taken it, was
//     forgotten, or was away for longer than another reader's max_age (ExpireOutbox counts that by name).
//   - Where there is one reader only, its events are deleted at once. The deletion and the look for others
//     are one statement: whoever sees an event sees each reader that was registered before it.
//   - Else what a reader took is marked in koji_relay.outbox_taken. It marks under the lock of the events'
//     rows, and only then looks who else has: of two readers that finish the same event, the second one
//     deletes it.
//   - ForgetReader waits for those who are marking, under a lock that they share. Whoever marks after it does
//     not see the reader any more. Then it deletes what that reader alone held.

// takenBy gives those who have taken the event o. It is written so that a planner which believes the table to
// be empty looks into its index for each event all the same.
const takenBy = `ARRAY(SELECT t.reader FROM koji_relay.outbox_taken t ` +
	`WHERE t.id = o.id AND t.commit = o.commit)`

// untaken joins the outbox o with the marks t of one reader, which follows: t.id is NULL where it has not
// taken an event. For walks over the whole outbox: after onlyMerge that is one walk over two indexes, in the
// order of ids, whatever the planner believes. Another reader that is away makes the outbox long.
const untaken = `koji_relay.outbox o LEFT JOIN koji_relay.outbox_taken t ` +
	`ON t.id = o.id AND t.commit = o.commit AND t.reader = `

// onlyMerge is for the rest of a transaction.
const onlyMerge = `SELECT set_config('enable_mergejoin', 'on', true),
	set_config('enable_nestloop', 'off', true)`

// takenByAll is true where each reader has taken o.
const takenByAll = `NOT EXISTS (SELECT FROM koji_relay.reader r WHERE r.name <> ALL (` + takenBy + `))`

const lockReaders = `hashtext('koji_relay'), hashtext('readers')`

// lockOf is the second half of the advisory lock of who reads for name.
func lockOf(name string) string {
	if name == "" {
		return "outbox"
	}
	return "outbox " + name
}

// Announce registers the reader called name (empty: the one without a name), and says which callbacks make
// messages there, as patterns between spaces. It gives what the others want. The hub's plugin collects what
// any reader asks for, and everything while there is none. Call it when the relay starts, after a reload, and
// every minute.
func (p *Store) Announce(ctx context.Context, name, events string) (others []string, err error) {
	err = p.do(ctx, "announce what is read from the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			rows, _ := conn.Query(ctx, `WITH mine AS (
					INSERT INTO koji_relay.reader (name, events) VALUES ($1, $2)
					ON CONFLICT (name) DO UPDATE SET events = excluded.events, seen = now())
				SELECT events FROM koji_relay.reader WHERE name <> $1`, name, events)
			var err error
			others, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	if err == nil {
		p.shared.Store(len(others) > 0)
	}
	return others, err
}

// Shared reports whether the outbox had other readers at the last Announce.
func (p *Store) Shared() bool { return p.shared.Load() }

// finishOutbox notes that name has taken events, and deletes those that nobody else needs. ids and commits
// belong together.
func (p *Store) finishOutbox(ctx context.Context, name string, ids []int64, commits []string) error {
	return p.do(ctx, "delete events from the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			var others int
			err := conn.QueryRow(ctx, `WITH others AS MATERIALIZED (
				SELECT name FROM koji_relay.reader WHERE name <> $3),
			gone AS (DELETE FROM koji_relay.outbox WHERE id = ANY($1) AND commit = ANY($2::uuid[])
				AND NOT EXISTS (SELECT FROM others))
			SELECT count(*) FROM others`, ids, slices.Compact(slices.Clone(commits)), name).Scan(&others)
			if err != nil || others == 0 {
				return err
			}
			failpoint.Hit("before-outbox-mark")
			return markTaken(ctx, conn, name, ids, commits)
		})
}

// markTaken is finishOutbox where there are other readers.
func markTaken(ctx context.Context, conn *pgx.Conn, name string, ids []int64, commits []string) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(`SELECT pg_advisory_xact_lock_shared(` + lockReaders + `)`)
		batch.Queue(`SELECT FROM koji_relay.outbox o WHERE id = ANY($1) ORDER BY id FOR UPDATE`, ids)
		// Each statement sees what was committed before it: now, what others marked before we had the rows.
		batch.Queue(`INSERT INTO koji_relay.outbox_taken (id, reader, commit)
			SELECT o.id, $3, o.commit FROM unnest($1::bigint[], $2::uuid[]) AS done(id, commit),
				LATERAL (SELECT id, commit FROM koji_relay.outbox WHERE id = done.id AND commit = done.commit) o
			ON CONFLICT (id, reader) DO UPDATE SET commit = excluded.commit`, ids, commits, name)
		batch.Queue(`WITH gone AS MATERIALIZED (
				SELECT id FROM koji_relay.outbox o WHERE id = ANY($1) AND commit = ANY($2::uuid[]) AND `+takenByAll+`),
			marks AS (DELETE FROM koji_relay.outbox_taken WHERE id = ANY(ARRAY(SELECT id FROM gone)))
			DELETE FROM koji_relay.outbox WHERE id = ANY(ARRAY(SELECT id FROM gone))`,
			ids, slices.Compact(slices.Clone(commits)))
		return tx.SendBatch(ctx, batch).Close()
	})
}

// outboxChunk is how many events a call of ExpireOutbox or ForgetReader deletes in one transaction.
const outboxChunk = 1000

// ExpireOutbox deletes events that name has taken and that are older than maxAge. It gives how many each of
// the other readers did not take, by name. After an error it gives what was deleted before it.
func (p *Store) ExpireOutbox(ctx context.Context, name string,
	maxAge time.Duration) (map[string]int64, error) {
	lost := map[string]int64{}
	for {
		var gone int
		var missed map[string]int64
		err := p.do(ctx, "delete old events from the outbox", callTimeout,
			func(ctx context.Context, conn *pgx.Conn) error {
				rows, _ := conn.Query(ctx, `WITH old AS MATERIALIZED (
						SELECT o.id, `+takenBy+` AS readers FROM (SELECT id, commit, created FROM koji_relay.outbox
							ORDER BY id LIMIT $3) o WHERE o.created < now() - make_interval(secs => $2)),
					mine AS MATERIALIZED (SELECT id, readers FROM old WHERE $1 = ANY(readers)),
					marks AS (DELETE FROM koji_relay.outbox_taken WHERE id = ANY(ARRAY(SELECT id FROM mine))),
					gone AS (DELETE FROM koji_relay.outbox WHERE id = ANY(ARRAY(SELECT id FROM mine)) RETURNING id)
					SELECT ARRAY(SELECT r.name FROM koji_relay.reader r WHERE r.name <> ALL (mine.readers))
					FROM mine WHERE id IN (SELECT id FROM gone)`, name, maxAge.Seconds(), outboxChunk)
				missed, gone = map[string]int64{}, 0
				var missing []string
				_, err := pgx.ForEachRow(rows, []any{&missing}, func() error {
					gone++
					for _, reader := range missing {
						missed[reader]++
					}
					return nil
				})
				return err
			})
		if err != nil {
			return lost, err
		}
		for reader, n := range missed {
			lost[reader] += n
		}
		if gone == 0 {
			return lost, nil
		}
	}
}

// Readers describes the readers of the outbox, by name. Of a long outbox that may be some seconds old.
func (p *Store) Readers(ctx context.Context) ([]inspect.Reader, error) {
	began := time.Now()
	if readers, ok := p.readers.last(began); ok {
		return readers, nil
	}
	var readers []inspect.Reader
	var rows int64
	err := p.do(ctx, "look at the readers of the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			var err error
			readers, rows, err = readReaders(ctx, conn)
			return err
		})
	if err == nil {
		p.readers.note(readers, rows, began, time.Since(began))
	}
	return readers, err
}

// selectReaders gives each reader with the session that holds its lock. $1 is inspect.AwayAfter in seconds.
const selectReaders = `SELECT r.name, r.seen, now() - r.seen > make_interval(secs => $1), w.walked, w.n,
		w.oldest, coalesce(l.pid, 0), coalesce(a.application_name, ''), coalesce(host(a.client_addr), '')
	FROM koji_relay.reader r
	CROSS JOIN LATERAL (SELECT count(*) AS walked, count(*) FILTER (WHERE t.id IS NULL) AS n,
		min(o.created) FILTER (WHERE t.id IS NULL) AS oldest FROM ` + untaken + `r.name) w
	LEFT JOIN LATERAL (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = (hashtext('koji_relay')::bigint & 4294967295)::oid
		AND objid = (hashtext(CASE r.name WHEN '' THEN 'outbox' ELSE 'outbox ' || r.name END)::bigint
			& 4294967295)::oid LIMIT 1) l ON true
	LEFT JOIN pg_stat_activity a ON a.pid = l.pid
	ORDER BY r.name`

// readReaders also gives how many rows it walked over.
func readReaders(ctx context.Context, conn *pgx.Conn) (readers []inspect.Reader, rows int64, err error) {
	batch := &pgx.Batch{} // one transaction
	batch.Queue(onlyMerge)
	batch.Queue(selectReaders, inspect.AwayAfter.Seconds()).Query(func(found pgx.Rows) (err error) {
		readers, err = pgx.CollectRows(found, scanReader(&rows))
		return err
	})
	return readers, rows, conn.SendBatch(ctx, batch).Close()
}

// scanReader adds to walked what each row cost.
func scanReader(walked *int64) pgx.RowToFunc[inspect.Reader] {
	return func(row pgx.CollectableRow) (inspect.Reader, error) {
		var r inspect.Reader
		var oldest pgtype.Timestamptz
		var n int64
		err := row.Scan(&r.Name, &r.Seen, &r.Away, &n, &r.Depth, &oldest, &r.Holder.PID, &r.Holder.Name,
			&r.Holder.Address)
		r.Oldest = timeOf(oldest)
		r.Holder.Name = inspect.Line(r.Holder.Name, 0)
		*walked += n
		return r, err
	}
}

// ErrReading is a reader that is reading.
var ErrReading = errors.New("a relay reads for it; stop that relay first")

// ForgetReader unregisters the reader called name, and deletes the events that it alone held, with their
// number. known is false where there was none of that name; what an earlier call left is deleted then.
// ErrReading says that a relay reads for it. After an error it may be called again.
func (p *Store) ForgetReader(ctx context.Context, name string) (known bool, deleted int64, err error) {
	err = p.do(ctx, "forget a reader of the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
				var free bool
				err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtext('koji_relay'), hashtext($1))`,
					lockOf(name)).Scan(&free)
				if err != nil {
					return err
				}
				if !free {
					return ErrReading
				}
				if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(`+lockReaders+`)`); err != nil {
					return err
				}
				tag, err := tx.Exec(ctx, `DELETE FROM koji_relay.reader WHERE name = $1`, name)
				known = known || tag.RowsAffected() > 0
				return err
			})
		})
	if err != nil {
		return known, 0, err
	}
	deleted, err = p.sweepOutbox(ctx, name)
	return known, deleted, err
}

// DropOutbox deletes events inserted before a moment, whoever has not taken them, and gives their number;
// with dry it only counts. What a relay has in hand meanwhile goes out all the same. After an error it gives
// what was deleted before it.
func (p *Store) DropOutbox(ctx context.Context, before time.Time, dry bool) (n int64, err error) {
	if dry {
		err = p.do(ctx, "count events of the outbox", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, `SELECT count(*) FROM koji_relay.outbox WHERE created < $1`, before).Scan(&n)
		})
		return n, err
	}
	for gone := int64(outboxChunk); gone == outboxChunk; n += gone {
		err := p.do(ctx, "delete events from the outbox", callTimeout,
			func(ctx context.Context, conn *pgx.Conn) error {
				return conn.QueryRow(ctx, `WITH old AS MATERIALIZED (
						SELECT id FROM koji_relay.outbox WHERE created < $1 ORDER BY id LIMIT $2),
					marks AS (DELETE FROM koji_relay.outbox_taken WHERE id = ANY(ARRAY(SELECT id FROM old))),
					gone AS (DELETE FROM koji_relay.outbox WHERE id = ANY(ARRAY(SELECT id FROM old)) RETURNING id)
					SELECT count(*) FROM gone`, before, outboxChunk).Scan(&gone)
			})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// sweepOutbox deletes the marks of name, and the events that every reader has taken. Where there is no reader
// it deletes no event.
func (p *Store) sweepOutbox(ctx context.Context, name string) (deleted int64, err error) {
	var from int64
	for more := true; more && err == nil; {
		err = p.do(ctx, "delete events that were taken by all", callTimeout,
			func(ctx context.Context, conn *pgx.Conn) error {
				var gone int64
				var last *int64
				err := conn.QueryRow(ctx, `WITH page AS MATERIALIZED (
						SELECT id, commit FROM koji_relay.outbox WHERE id > $1 ORDER BY id LIMIT $2),
					taken AS MATERIALIZED (SELECT id FROM page o
						WHERE EXISTS (SELECT FROM koji_relay.reader) AND `+takenByAll+`),
					marks AS (DELETE FROM koji_relay.outbox_taken WHERE id = ANY(ARRAY(SELECT id FROM taken))),
					gone AS (DELETE FROM koji_relay.outbox WHERE id = ANY(ARRAY(SELECT id FROM taken)) RETURNING id)
					SELECT (SELECT max(id) FROM page), (SELECT count(*) FROM gone)`, from, outboxChunk).
					Scan(&last, &gone)
				if err != nil {
					return err
				}
				deleted += gone
				if more = last != nil; more {
					from = *last
				}
				return nil
			})
	}
	if err != nil {
		return deleted, err
	}
	return deleted, p.do(ctx, "delete the marks of a reader", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `DELETE FROM koji_relay.outbox_taken t WHERE t.reader = $1
				OR t.commit <> ALL (ARRAY(SELECT o.commit FROM koji_relay.outbox o WHERE o.id = t.id))`, name)
			return err
		})
}
