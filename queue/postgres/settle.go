package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/inspect"
	"koji-relay/queue"
)

const forget = `
	WITH gone AS (
		DELETE FROM koji_relay.delivery d WHERE d.message_id = ANY($1::text[])
		RETURNING d.queue_id, d.created_ts, d.size
	), deleted AS (
		DELETE FROM {koji}.proton_queue q USING gone g WHERE q.id = ANY(ARRAY[g.queue_id])
			AND q.created_ts IS NOT DISTINCT FROM g.created_ts
	)
	SELECT least(coalesce(sum(size), 0), 9223372036854775807)::bigint FROM gone`

const setAside = `
	UPDATE koji_relay.delivery d SET attempts = k.attempts, tries = k.tries, last_error = k.reason,
		next_attempt = now() + k.delay * interval '1 second'
	FROM unnest($1::text[], $2::int[], $3::int[], $4::float8[], $5::text[])
		AS k(message_id, attempts, tries, delay, reason)
	WHERE d.message_id = ANY(ARRAY[k.message_id])`

// bury moves the chosen rows, given as "chosen (message_id, attempts, reason)", to the dead letters.
const bury = `, gone AS (
		DELETE FROM koji_relay.delivery d USING chosen k WHERE d.message_id = ANY(ARRAY[k.message_id])
		RETURNING d.*, k.reason AS why, k.attempts AS tried
	), deleted AS (
		DELETE FROM {koji}.proton_queue q USING gone g WHERE q.id = ANY(ARRAY[g.queue_id])
			AND q.created_ts IS NOT DISTINCT FROM g.created_ts
		RETURNING q.id, q.created_ts, q.address, q.props::text AS props, q.body::text AS body
	), dead AS (
		INSERT INTO koji_relay.dead_letter (message_id, created, commit, event, callback, address, props, body,
			attempts, reason)
		SELECT g.message_id, g.created, g.commit, g.event, g.callback, r.address, convert_to(r.props, 'UTF8'),
			convert_to(r.body, 'UTF8'), g.tried, g.why
		FROM gone g JOIN deleted r ON r.id = g.queue_id AND r.created_ts IS NOT DISTINCT FROM g.created_ts
		ON CONFLICT (message_id) DO UPDATE SET died = now(), attempts = excluded.attempts, reason = excluded.reason
	)`

const buryThese = `WITH chosen AS (
		SELECT * FROM unnest($1::text[], $2::int[], $3::text[]) AS k(message_id, attempts, reason)
	)` + bury + ` SELECT least(coalesce(sum(size), 0), 9223372036854775807)::bigint FROM gone`

// Settle implements Store, in one round trip.
func (p *Store) Settle(ctx context.Context, settlements []queue.Settlement) error {
	if len(settlements) == 0 {
		return nil
	}
	return p.do(ctx, "settle "+inspect.Count(len(settlements), "message"), callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			err := p.settle(ctx, conn, settlements)
			if code(err) == untranslatable {
				err = p.settle(ctx, conn, plainReasons(settlements))
			}
			return err
		})
}

func (p *Store) settle(ctx context.Context, conn *pgx.Conn, settlements []queue.Settlement) error {
	batch := &pgx.Batch{}
	var freed int64
	free := func(row pgx.Row) error {
		var n int64
		err := row.Scan(&n)
		freed += n
		return err
	}
	var forgotten []string
	var buried, aside byAction
	for _, s := range settlements {
		switch s.Action {
		case queue.Forget:
			forgotten = append(forgotten, s.ID)
		case queue.Bury:
			buried.add(s)
		case queue.SetAside:
			aside.add(s)
		}
	}
	if len(forgotten) > 0 {
		batch.Queue(p.sql(forget), forgotten).QueryRow(free)
	}
	if len(buried.ids) > 0 {
		batch.Queue(p.sql(buryThese), buried.ids, buried.attempts, buried.reasons).QueryRow(free)
	}
	if len(aside.ids) > 0 {
		batch.Queue(setAside, aside.ids, aside.attempts, aside.tries, aside.delays, aside.reasons)
	}
	failpoint.Hit("before-settle-commit")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	p.bytes.add(-freed)
	return nil
}

// byAction holds settlements as the arrays that one statement takes.
type byAction struct {
	ids             []string
	attempts, tries []int32
	delays          []float64
	reasons         []string
}

func (b *byAction) add(s queue.Settlement) {
	b.ids = append(b.ids, s.ID)
	b.attempts = append(b.attempts, int32(s.Attempts))
	b.tries = append(b.tries, int32(s.Tries))
	b.delays = append(b.delays, s.Delay.Seconds())
	b.reasons = append(b.reasons, queue.CleanText(s.Reason))
}

const chooseExpired = `WITH chosen AS (
		SELECT message_id, attempts,
			'older than max_age; last: ' || coalesce(nullif(last_error, ''), 'never attempted') AS reason
		FROM koji_relay.delivery WHERE created_ts < now() - $1 * interval '1 second'
		ORDER BY created_ts LIMIT $2 FOR UPDATE SKIP LOCKED
	)`

const buryExpired = chooseExpired + bury +
	` SELECT g.message_id, g.address, g.size, coalesce(g.created, g.created_ts) FROM gone g`

const dropExpired = chooseExpired + `, gone AS (
		DELETE FROM koji_relay.delivery d USING chosen k WHERE d.message_id = ANY(ARRAY[k.message_id])
		RETURNING d.*
	), deleted AS (
		DELETE FROM {koji}.proton_queue q USING gone g WHERE q.id = ANY(ARRAY[g.queue_id])
			AND q.created_ts IS NOT DISTINCT FROM g.created_ts
	)
	SELECT g.message_id, g.address, g.size, coalesce(g.created, g.created_ts) FROM gone g`

const dropOldDead = `DELETE FROM koji_relay.dead_letter WHERE message_id = ANY(ARRAY(
		SELECT message_id FROM koji_relay.dead_letter WHERE died < now() - $1 * interval '1 second'
		ORDER BY died LIMIT $2))`

// Expire implements Pass. Rows of protonmsg expire as well, so it gives them delivery rows first.
func (s *pgPass) Expire(ctx context.Context, e queue.Expiry) (queue.Expired, error) {
	done := queue.Expired{Messages: map[string]int{}}
	sql := dropExpired
	if e.ToDead {
		sql = buryExpired
	}
	for more := !s.adopted && e.MaxAge > 0; more; more = !s.adopted {
		if err := s.do(ctx, "look for rows of protonmsg", s.adoptSome); err != nil {
			return done, err
		}
	}
	for more := e.MaxAge > 0; more; {
		var n int
		err := s.do(ctx, "expire messages", func(ctx context.Context, conn *pgx.Conn) error {
			var err error
			n, err = s.expireSome(ctx, conn, sql, e, done.Messages)
			return err
		})
		if err != nil {
			return done, err
		}
		failpoint.Hit("mid-expiry")
		more = n == queue.ExpiryChunk
	}
	for more := e.DeadMaxAge > 0; more; {
		var n int
		err := s.do(ctx, "expire dead letters", func(ctx context.Context, conn *pgx.Conn) error {
			tag, err := conn.Exec(ctx, dropOldDead, e.DeadMaxAge.Seconds(), queue.ExpiryChunk)
			n = int(tag.RowsAffected())
			return err
		})
		if err != nil {
			return done, err
		}
		done.Dead += n
		more = n == queue.ExpiryChunk
	}
	return done, nil
}

// do is the store's do for steps that need the pass to be exclusive.
func (s *pgPass) do(ctx context.Context, what string, f func(context.Context, *pgx.Conn) error) error {
	if !s.Held() {
		return fmt.Errorf("%s: %w", what, queue.ErrLockLost)
	}
	return s.store.do(ctx, what, callTimeout, f)
}

func (s *pgPass) expireSome(ctx context.Context, conn *pgx.Conn, sql string, e queue.Expiry,
	counts map[string]int) (int, error) {
	// CollectRows gives the error
	rows, _ := conn.Query(ctx, s.store.sql(sql), e.MaxAge.Seconds(), queue.ExpiryChunk)
	type gone struct {
		ID, Address string
		Size        int64
		Created     pgtype.Timestamptz
	}
	chunk, err := pgx.CollectRows(rows, pgx.RowToStructByPos[gone])
	if err != nil {
		return 0, err
	}
	for _, g := range chunk {
		counts[g.Address]++
		s.store.bytes.add(-g.Size)
		if at := timeOf(g.Created); e.Each != nil && !at.IsZero() {
			e.Each(g.ID, at)
		}
	}
	return len(chunk), nil
}
