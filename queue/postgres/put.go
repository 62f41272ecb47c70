package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// deleteOrphans removes what is known of messages whose row is gone (drained by protonmsg, or deleted by
// hand), so that putting them again stores them again.
const deleteOrphans = `
	DELETE FROM koji_relay.delivery d WHERE d.message_id = ANY($1::text[])
	AND NOT EXISTS (SELECT FROM {koji}.proton_queue q WHERE q.id = ANY(ARRAY[d.queue_id])
		AND q.created_ts IS NOT DISTINCT FROM d.created_ts)`

// insertRows numbers the messages in their order, claims the message-ids in the order of the ids (two puts of
// the same messages then wait for one another instead of locking each other up), and inserts what was not
// known.
const insertRows = `
	WITH input AS MATERIALIZED (
		SELECT nextval('{sequence}'::regclass) AS queue_id,
			now() - age * interval '1 second' AS created_ts, ordered.*
		FROM (
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::text[], $7::bigint[],
				$8::timestamptz[], $9::float8[], $10::int[], $11::int[], $12::float8[], $13::text[])
			WITH ORDINALITY AS u(message_id, address, props, body, event, callback, size,
				created, age, attempts, tries, delay, last_error, position)
			ORDER BY position
		) ordered
	), claimed AS (
		INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, commit, event, callback,
			address, size,
			attempts, tries, next_attempt, last_error)
		SELECT message_id, queue_id, created_ts, created, ($14::text[])[position], event, callback,
			address, size, attempts, tries, now() + delay * interval '1 second', last_error
		FROM input ORDER BY message_id
		ON CONFLICT (message_id) DO NOTHING
		RETURNING queue_id
	), stored AS (
		INSERT INTO {koji}.proton_queue (id, created_ts, address, props, body)
		SELECT queue_id, created_ts, address, props::json, body::json
		FROM input WHERE queue_id = ANY (ARRAY(SELECT queue_id FROM claimed)) ORDER BY queue_id
		RETURNING id
	), counts AS (SELECT (SELECT count(*) FROM claimed) AS claimed, (SELECT count(*) FROM stored) AS stored)
	SELECT (SELECT stored FROM counts, generate_series(1, CASE WHEN claimed = stored THEN 1 ELSE 2 END))`

// swallowed is the error (more than one row where one is expected) by which insertRows fails where PostgreSQL
// left out a row that it was to insert, and had no complaint: a trigger can do that.
const swallowed = "21000"

var errSwallowed = errors.New("the database leaves out messages that are put into proton_queue: " +
	"a trigger on that table does so; remove it, or set store = file in [queue]")

// insertDead leaves a dead letter that exists as it is.
const insertDead = `
	INSERT INTO koji_relay.dead_letter (message_id, died, created, commit, event, callback, address, props,
		body, attempts, reason)
	SELECT message_id, coalesce(died, now()), created, commit, event, callback, address, props, body, attempts,
		reason
	FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::int[], $5::text[], $6::text[], $7::bytea[],
		$8::bytea[],
		$9::int[], $10::text[], $11::timestamptz[])
		AS u(message_id, created, commit, event, callback, address, props, body, attempts, reason, died)
	ORDER BY message_id
	ON CONFLICT (message_id) DO NOTHING`

// Put implements Store. It takes one round trip however many messages there are, and shares it with other
// puts that come at the same time. The exception is a body that is JSON but that this server refuses all the
// same (nested too deep, or a character that the database's encoding lacks): then the messages are stored one
// by one, to find it.
func (p *Store) Put(ctx context.Context, unsent []message.Unsent,
	undeliverable []message.Undeliverable) (queue.Stored, error) {
	limits := p.limits.Load()
	in := queue.SortOut(unsent, undeliverable, limits.MaxAttempts)
	if len(in.Rows) == 0 && len(in.Dead) == 0 {
		return queue.Stored{}, nil
	}
	if err := p.room(ctx, in.Size, limits.MaxBytes); err != nil {
		return queue.Stored{}, err
	}
	what := queue.PutText(len(in.Rows), len(in.Dead))
	stored := in
	err := p.together.put(ctx, in, func(all queue.Incoming) error {
		return p.do(ctx, what, callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			err := p.putAll(ctx, conn, all)
			if !refusedData(err) || len(all.Rows) != len(in.Rows) {
				return err
			}
			stored, err = p.putEach(ctx, conn, in, code(err) == untranslatable)
			return err
		})
	})
	if err != nil {
		return queue.Stored{}, err
	}
	p.bytes.add(stored.Size)
	failpoint.Hit("after-put-before-answer")
	if len(stored.Rows) > 0 {
		p.news.add(notifyQueue)
	}
	return stored.Stored(), nil
}

// Probe implements queue.Store, by what a put does, on rows that are gone before they are committed.
func (p *Store) Probe(ctx context.Context) error {
	return p.do(ctx, "probe the queue by writing", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		batch := &pgx.Batch{}
		batch.Queue(p.sql(`INSERT INTO {koji}.proton_queue (id, address, props, body)
			VALUES (nextval('{sequence}'::regclass), 'koji-relay probe', '{}', 'null')`)).Exec(
			func(tag pgconn.CommandTag) error {
				if tag.RowsAffected() == 0 {
					return errSwallowed
				}
				return nil
			})
		// Each session has a message-id of its own, so that none waits for another.
		batch.Queue(p.sql(`INSERT INTO koji_relay.delivery (message_id, queue_id, address, size)
			VALUES ('koji-relay probe ' || pg_backend_pid(), currval('{sequence}'::regclass), 'koji-relay probe', 0)`))
		batch.Queue(p.sql(`WITH gone AS (DELETE FROM {koji}.proton_queue WHERE id = currval('{sequence}'::regclass))
			DELETE FROM koji_relay.delivery WHERE message_id = 'koji-relay probe ' || pg_backend_pid()`))
		return conn.SendBatch(ctx, batch).Close()
	})
}

// room returns ErrFull where size more bytes would exceed limit. Only the first put with a limit measures;
// later ones rely on counting, and on Remeasure.
func (p *Store) room(ctx context.Context, size, limit int64) error {
	if limit <= 0 {
		return nil
	}
	if !p.bytes.known() {
		if err := p.measure(ctx, false); err != nil {
			return err
		}
	}
	if !p.bytes.fits(size, limit) {
		return fmt.Errorf("put %s in %s: %w: max_bytes is %d; raise it, or see 'koji-relay queue status'",
			inspect.Size(size), p.name, queue.ErrFull, limit)
	}
	return nil
}

// Remeasure corrects what this process knows of the size of the queue, where that is bounded. Its cost grows
// with the number of queued messages (a million take a few tenths of a second), so the drain calls it once a
// minute.
func (p *Store) Remeasure(ctx context.Context) error {
	if p.limits.Load().MaxBytes <= 0 {
		return nil
	}
	return p.measure(ctx, true)
}

func (p *Store) measure(ctx context.Context, thorough bool) error {
	return p.do(ctx, "measure the queue", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return inOneView(ctx, conn, func(tx pgx.Tx) error {
			var st inspect.Statistics
			err := p.readTopics(ctx, tx, &st, thorough)
			if err == nil {
				p.bytes.set(st.Bytes)
			}
			return err
		})
	})
}

// putAll stores everything with one batch, which PostgreSQL runs as one transaction. It is committed only
// when closing the batch gave no error. Ids that were known already are rare: only then it looks for those
// whose messages are gone, with a second batch.
func (p *Store) putAll(ctx context.Context, conn *pgx.Conn, in queue.Incoming) error {
	batch := &pgx.Batch{}
	// What a put does is the same for all values, so that planning it each time would be for nothing: on the
	// hub's time that is a fifth of a put of one message.
	batch.Queue("SELECT set_config('plan_cache_mode', 'force_generic_plan', true)")
	inserted := int64(0)
	if len(in.Rows) > 0 {
		p.insertRows(batch, in.Rows, &inserted)
	}
	queueDead(batch, in.Dead)
	failpoint.Hit("before-put-commit")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil || inserted == int64(len(in.Rows)) {
		return err
	}
	again := &pgx.Batch{}
	p.queueRows(again, in.Rows, &inserted)
	return conn.SendBatch(ctx, again).Close()
}

// putEach stores everything in one transaction with a savepoint for each message, and gives what it stored.
// Messages that the server refuses become dead letters. plain is for a database whose encoding lacks some
// character of them.
func (p *Store) putEach(ctx context.Context, conn *pgx.Conn, in queue.Incoming, plain bool) (queue.Incoming,
	error) {
	stored := queue.Incoming{Dead: slices.Clone(in.Dead)}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, r := range in.Rows {
			if plain {
				r = plainRow(r)
			}
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				batch := &pgx.Batch{}
				var n int64
				p.queueRows(batch, []queue.Row{r}, &n)
				return tx.SendBatch(ctx, batch).Close()
			})
			switch {
			case refusedData(err):
				stored.Dead = append(stored.Dead, queue.DeadMessage(r.Message, r.PropsText, r.Attempts,
					"cannot be stored: "+err.Error()))
			case err != nil:
				return err
			default:
				stored.Rows, stored.Size = append(stored.Rows, r), stored.Size+r.Bytes
			}
		}
		if plain {
			plainDead(stored.Dead)
		}
		batch := &pgx.Batch{}
		queueDead(batch, stored.Dead)
		return tx.SendBatch(ctx, batch).Close()
	})
	return stored, err
}

// refusedData reports whether the server refused a value (class 22) or found it too complex (class 54). A
// number that could not be drawn is no fault of the message (errUsedUp).
func refusedData(err error) bool {
	c := code(err)
	return len(c) == 5 && (c[:2] == "22" || c[:2] == "54") && c != "2200H" && c != "22003"
}

// queueRows adds rows to the queue, after sweeping what is known of their ids without a message. It counts
// into stored, once the batch is read.
func (p *Store) queueRows(batch *pgx.Batch, rows []queue.Row, stored *int64) {
	if len(rows) == 0 {
		return
	}
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	batch.Queue(p.sql(deleteOrphans), ids)
	p.insertRows(batch, rows, stored)
}

// insertRows adds those rows to the queue whose ids are not known, and counts them into stored.
func (p *Store) insertRows(batch *pgx.Batch, rows []queue.Row, stored *int64) {
	n := len(rows)
	ids, addresses, props, bodies := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	events, callbacks, sizes, created := make([]int32, n), make([]string, n), make([]int64, n),
		make([]*time.Time, n)
	ages, attempts, tries := make([]float64, n), make([]int32, n), make([]int32, n)
	delays, errs, commits := make([]*float64, n), make([]string, n), make([]string, n)
	for i := range rows {
		r := &rows[i]
		ids[i], addresses[i], props[i], bodies[i] = r.ID, r.Address, string(r.PropsText), r.Body
		events[i], callbacks[i], sizes[i], created[i] = int32(r.Event), r.Callback, r.Bytes, nullTime(r.Created)
		ages[i], attempts[i], tries[i] = r.Age.Seconds(), int32(r.Attempts), int32(r.Tries)
		errs[i], commits[i] = r.LastError, r.Commit
		if r.Aside {
			seconds := r.Delay.Seconds()
			delays[i] = &seconds
		}
	}
	batch.Queue(p.sql(insertRows), ids, addresses, props, bodies, events, callbacks, sizes, created, ages,
		attempts, tries, delays, errs, commits).QueryRow(func(row pgx.Row) error { return row.Scan(stored) })
}

func queueDead(batch *pgx.Batch, dead []queue.DeadRow) *pgx.QueuedQuery {
	if len(dead) == 0 {
		return &pgx.QueuedQuery{}
	}
	n := len(dead)
	ids, created, commits, events := make([]string, n), make([]*time.Time, n), make([]string, n),
		make([]int32, n)
	callbacks, addresses, props, bodies := make([]string, n), make([]*string, n), make([][]byte, n),
		make([][]byte, n)
	attempts, reasons, died := make([]int32, n), make([]string, n), make([]*time.Time, n)
	for i := range dead {
		d := &dead[i]
		ids[i], created[i], commits[i], events[i] = d.ID, nullTime(d.Created), d.Commit, int32(d.Event)
		callbacks[i], addresses[i], props[i], bodies[i] = d.Callback, d.Address, d.Props, d.Body
		if bodies[i] == nil {
			bodies[i] = []byte{}
		}
		attempts[i], reasons[i], died[i] = int32(d.Attempts), d.Reason, nullTime(d.Died)
	}
	return batch.Queue(insertDead, ids, created, commits, events, callbacks, addresses, props, bodies, attempts,
		reasons, died)
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
