package queue

import (
	"context"
	"math"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// adoptWindow is the number of rows looked at for one batch while the walk for rows of protonmsg goes on.
const adoptWindow = 5000

// Next implements Pass. Messages that were set aside and are due take every fourth batch, and all batches when there
// are no others: in batches of their own they hold up nothing that was never tried.
func (s *pgPass) Next(ctx context.Context, limits BatchLimits) ([]Entry, error) {
	var entries []Entry
	err := s.store.do(ctx, "read a batch", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		began, before, adopting := time.Now(), s.places, !s.adopted
		var err error
		entries, err = s.next(ctx, conn, limits)
		if err != nil {
			s.places = before // the call may be made again
			return err
		}
		if adopting || s.turn == 1 {
			s.walking += time.Since(began)
		}
		if n := len(s.reached); n == 0 || began.Sub(s.reached[n-1].when) >= time.Second {
			s.reached = append(s.reached, mark[places]{began, s.places})
		}
		return nil
	})
	return entries, err
}

func (s *pgPass) next(ctx context.Context, conn *pgx.Conn, limits BatchLimits) ([]Entry, error) {
	s.turn++
	if s.turn%4 == 0 {
		if entries, err := s.batch(ctx, conn, limits, s.readDue); err != nil || len(entries) > 0 {
			return entries, err
		}
	}
	for {
		if !s.adopted {
			if err := s.adoptSome(ctx, conn); err != nil {
				return nil, err
			}
		}
		entries, err := s.batch(ctx, conn, limits, s.readFresh)
		if err != nil || len(entries) > 0 {
			return entries, err
		}
		if s.adopted {
			return s.batch(ctx, conn, limits, s.readDue)
		}
	}
}

// head is what koji_relay.delivery knows of a message.
type head struct {
	Entry
	queueID     int64
	size        int64
	nextAttempt time.Time
}

const headColumns = `message_id, queue_id, size, commit, event, callback, created, attempts, tries, next_attempt`

// batch reads heads until limits are reached, and then the bodies of those only, so that memory is bounded by limits
// whatever is queued. Heads without a row are orphans and are swept.
func (s *pgPass) batch(ctx context.Context, conn *pgx.Conn, limits BatchLimits,
	read func(context.Context, *pgx.Conn, int) ([]head, error),
) ([]Entry, error) {
	for {
		heads, err := read(ctx, conn, max(1, limits.Messages))
		if err != nil || len(heads) == 0 {
			return nil, err
		}
		bytes := heads[0].size
		n := 1
		for n < len(heads) && bytes+heads[n].size <= int64(limits.Bytes) {
			bytes += heads[n].size
			n++
		}
		heads = heads[:n]
		if last := heads[n-1]; last.nextAttempt.IsZero() {
			s.fresh = last.queueID
		} else {
			s.due, s.dueID = last.nextAttempt, last.queueID
		}
		entries, err := loadBodies(ctx, conn, heads)
		if err != nil || len(entries) > 0 {
			return entries, err
		}
	}
}

func (s *pgPass) readFresh(ctx context.Context, conn *pgx.Conn, limit int) ([]head, error) {
	// Rows beyond the adopting walk wait for it, so that rows of protonmsg keep their place among ours.
	bound := int64(math.MaxInt64)
	if !s.adopted {
		bound = s.adopt
	}
	return readHeads(ctx, conn, `SELECT `+headColumns+` FROM koji_relay.delivery
		WHERE next_attempt IS NULL AND queue_id > $1 AND queue_id <= $2 ORDER BY queue_id LIMIT $3`, s.fresh, bound, limit)
}

func (s *pgPass) readDue(ctx context.Context, conn *pgx.Conn, limit int) ([]head, error) {
	return readHeads(ctx, conn, `SELECT `+headColumns+` FROM koji_relay.delivery
		WHERE next_attempt IS NOT NULL AND next_attempt <= now() AND (next_attempt, queue_id) > ($1, $2)
		ORDER BY next_attempt, queue_id LIMIT $3`, s.due, s.dueID, limit)
}

func readHeads(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]head, error) {
	rows, _ := conn.Query(ctx, sql, args...) // CollectRows gives the error
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (head, error) {
		var h head
		var created, next *time.Time
		m := &h.Message
		err := row.Scan(&m.ID, &h.queueID, &h.size, &m.Commit, &m.Event, &m.Callback, &created, &h.Attempts, &h.Tries, &next)
		m.Created, h.nextAttempt = timeOf(created), timeOf(next)
		return h, err
	})
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// loadBodies completes heads from proton_queue, in their order.
func loadBodies(ctx context.Context, conn *pgx.Conn, heads []head) ([]Entry, error) {
	ids, at := make([]string, len(heads)), make(map[string]int, len(heads))
	for i := range heads {
		ids[i] = heads[i].Message.ID
		at[ids[i]] = i
	}
	rows, err := conn.Query(ctx, `
		SELECT d.message_id, q.address, q.props::text, q.body::text
		FROM koji_relay.delivery d
		JOIN proton_queue q ON q.id = d.queue_id AND q.created_ts IS NOT DISTINCT FROM d.created_ts
		WHERE d.message_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	found := make([]bool, len(heads))
	var id, address, body string
	var props []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &address, &props, &body}, func() error {
		i := at[id]
		found[i] = true
		m := &heads[i].Message
		m.Address, m.Body = address, body
		var err error
		if m.Props, err = decodeProps(props); err != nil {
			heads[i].Unreadable = err.Error()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	entries, orphans := make([]Entry, 0, len(heads)), []string{}
	for i := range heads {
		if found[i] {
			entries = append(entries, heads[i].Entry)
		} else {
			orphans = append(orphans, heads[i].Message.ID)
		}
	}
	if len(orphans) > 0 {
		if _, err := conn.Exec(ctx, deleteOrphans, orphans); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// protonmsgSpace is the namespace of message-ids for rows that protonmsg wrote; the name is
// "DATABASE/ID/CREATED_TS" with created_ts in UTC to the microsecond. It is itself the UUIDv5 of "proton_queue" in
// the OID namespace of RFC 9562, and must never change: an id must survive an upgrade between two attempts.
var protonmsgSpace = uuid.NewSHA1(uuid.NameSpaceOID, []byte("proton_queue"))

// findForeign gives, among the rows of one window, those without a delivery row, and in a last row of its own the end of
// the window and how many rows it has.
const findForeign = `
	WITH w AS MATERIALIZED (SELECT id, created_ts FROM proton_queue WHERE id > $1::bigint ORDER BY id LIMIT $2)
	SELECT w.id::bigint, current_database() || '/' || w.id || '/' ||
		coalesce(to_char(w.created_ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), ''), 0::bigint
	FROM w WHERE NOT EXISTS (SELECT FROM koji_relay.delivery d
		WHERE d.queue_id > $1::bigint AND d.queue_id = w.id AND d.created_ts IS NOT DISTINCT FROM w.created_ts)
	UNION ALL SELECT coalesce(max(id), 0)::bigint, '', count(*) FROM w`

const insertForeign = `
	INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size)
	SELECT k.message_id, q.id, q.created_ts, CASE WHEN isfinite(q.created_ts) THEN q.created_ts END, q.address,
		octet_length(q.body::text) + octet_length(q.props::text) + octet_length(q.address) + 256
	FROM unnest($1::text[], $2::bigint[]) AS k(message_id, id) JOIN proton_queue q ON q.id = k.id
	ON CONFLICT (message_id) DO NOTHING`

// adoptSome looks at one more window of proton_queue and gives each row that protonmsg wrote a delivery row.
func (s *pgPass) adoptSome(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, findForeign, s.adopt, adoptWindow)
	if err != nil {
		return err
	}
	var ids []string
	var queueIDs []int64
	var id, count int64
	var name string
	end, size := s.adopt, int64(0)
	_, err = pgx.ForEachRow(rows, []any{&id, &name, &count}, func() error {
		if name == "" {
			if size = count; size > 0 {
				end = id
			}
			return nil
		}
		ids = append(ids, uuid.NewSHA1(protonmsgSpace, []byte(name)).String())
		queueIDs = append(queueIDs, id)
		return nil
	})
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		if _, err := conn.Exec(ctx, insertForeign, ids, queueIDs); err != nil {
			return err
		}
	}
	s.adopt = end
	s.adopted = size < adoptWindow
	return nil
}
