package postgres

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// adoptWindow is the number of rows looked at beside one batch while the walk for rows of protonmsg goes on.
const adoptWindow = 2000

// Next implements Pass. Messages that were set aside and are due take every fourth batch, and all batches
// when there are no others: in batches of their own they hold up nothing that was never tried.
//
// Beside each batch goes one step of the walk for rows of protonmsg, so that neither waits for the other:
// those rows keep their place among ours when the walk is ahead, as it is by far where they are many, and
// else come a little later.
func (s *pgPass) Next(ctx context.Context, limits queue.BatchLimits) ([]queue.Entry, error) {
	s.turn++
	began, adopting := time.Now(), !s.adopted
	if adopting {
		if err := s.do(ctx, "look for rows of protonmsg", s.adoptSome); err != nil {
			return nil, err
		}
	}
	reads := []walk{s.behindWalk(), s.freshWalk(), s.dueWalk()}
	if s.turn%4 == 0 {
		reads = []walk{s.dueWalk(), s.behindWalk(), s.freshWalk()}
	}
	for _, w := range reads {
		entries, err := s.batch(ctx, limits, w)
		if err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			s.note(began, adopting)
			return entries, nil
		}
	}
	if !s.adopted {
		return s.Next(ctx, limits) // nothing but rows that the walk has to pass
	}
	s.note(began, adopting)
	return nil, nil
}

// note remembers how far the pass is, and what it took to walk there.
func (s *pgPass) note(began time.Time, adopting bool) {
	if adopting || s.turn == 1 {
		s.walking += time.Since(began)
	}
	if len(s.behind) > 0 {
		return // the next pass would not find them
	}
	if n := len(s.reached); n == 0 || began.Sub(s.reached[n-1].when) >= time.Second {
		s.reached = append(s.reached, mark[places]{began, s.places})
	}
}

// walk is one of the ways through the queue: read gives the next heads, took is told which of them were
// taken.
type walk struct {
	read func(context.Context, *pgx.Conn, int) ([]head, error)
	took func([]head)
}

// freshWalk gives messages that were never attempted; first those that the walk for rows of protonmsg has
// passed.
//
// A put that is committed late makes rows appear before some that were given. Those must be given before all
// that are put from then on, or order would be lost. So the walk does not pass rows of the last seconds, but
// reads them again, and knows those that it gave.
func (s *pgPass) freshWalk() walk {
	const fresh = `SELECT ` + headColumns + ` FROM koji_relay.delivery
		WHERE next_attempt IS NULL AND queue_id > $1 AND queue_id <= $2 ORDER BY queue_id LIMIT $3`
	upTo := func(ctx context.Context, conn *pgx.Conn, end int64, limit int) ([]head, error) {
		most := limit + len(s.given)
		still := make(map[int64]bool, len(s.given))
		seen, last := 0, end
		heads, err := readHeads(ctx, conn, limit, func(id int64) bool {
			seen, last = seen+1, id
			if s.given[id] {
				still[id] = true
			}
			return !s.given[id]
		}, fresh, s.fresh, end, most)
		if err != nil {
			return nil, err
		}
		if seen == most {
			end = last
		}
		maps.DeleteFunc(s.given, func(id int64, _ bool) bool { return id <= end && !still[id] }) // they are settled
		return heads[:min(limit, len(heads))], nil
	}
	return walk{
		read: func(ctx context.Context, conn *pgx.Conn, limit int) ([]head, error) {
			if !s.adopted {
				heads, err := upTo(ctx, conn, s.adopt, limit)
				if err != nil || len(heads) > 0 {
					return heads, err
				}
			}
			return upTo(ctx, conn, math.MaxInt64, limit)
		},
		took: func(heads []head) {
			passing := true
			for _, h := range heads {
				if passing = passing && !h.late; passing {
					s.fresh = h.queueID
				} else {
					s.given[h.queueID] = true
				}
			}
		},
	}
}

// behindWalk gives rows of protonmsg that were found when messages behind them had been given.
func (s *pgPass) behindWalk() walk {
	return walk{
		read: func(ctx context.Context, conn *pgx.Conn, limit int) ([]head, error) {
			if len(s.behind) == 0 {
				return nil, nil
			}
			return readHeads(ctx, conn, limit, nil, `SELECT `+headColumns+` FROM unnest($1::text[]) AS k(id)
				JOIN koji_relay.delivery ON message_id = ANY(ARRAY[k.id])
				WHERE next_attempt IS NULL ORDER BY queue_id LIMIT $2`, s.behind, limit)
		},
		took: func(heads []head) {
			taken := make(map[string]bool, len(heads))
			for _, h := range heads {
				taken[h.Message.ID] = true
			}
			s.behind = slices.DeleteFunc(s.behind, func(id string) bool { return taken[id] })
		},
	}
}

// dueWalk gives messages that were set aside and whose time has come.
func (s *pgPass) dueWalk() walk {
	return walk{
		read: func(ctx context.Context, conn *pgx.Conn, limit int) ([]head, error) {
			return readHeads(ctx, conn, limit, nil, `SELECT `+headColumns+` FROM koji_relay.delivery
				WHERE next_attempt IS NOT NULL AND next_attempt <= now() AND (next_attempt, queue_id) > ($1, $2)
				ORDER BY next_attempt, queue_id LIMIT $3`, s.dueFrom(), s.dueID, limit)
		},
		took: func(heads []head) {
			last := heads[len(heads)-1]
			s.due, s.dueID = last.nextAttempt, last.queueID
		},
	}
}

// dueFrom is the time behind which messages that were set aside were not given yet. An administrator may have
// written '-infinity' for "at once": the walk begins there.
func (s *pgPass) dueFrom() pgtype.Timestamptz {
	from := pgtype.Timestamptz{Time: s.due, Valid: true}
	if s.due.IsZero() && s.dueID == math.MinInt64 {
		from.InfinityModifier = pgtype.NegativeInfinity
	}
	return from
}

// head is what koji_relay.delivery knows of a message.
type head struct {
	queue.Entry
	queueID     int64
	createdTS   pgtype.Timestamptz // of proton_queue
	size        int64
	nextAttempt time.Time
	late        bool // it was put so recently that rows before it may still appear
}

// The interval is lateness.
const headColumns = `message_id, queue_id, created_ts, size, commit, event, callback, created,
	attempts, tries, next_attempt,
	coalesce(created_ts > now() - interval '10 seconds', false)`

// batch reads heads until limits are reached, and then the bodies of those only, so that memory is bounded by
// limits whatever is queued. Heads without a row are orphans and are swept.
func (s *pgPass) batch(ctx context.Context, limits queue.BatchLimits, w walk) ([]queue.Entry, error) {
	for {
		var heads []head
		var entries []queue.Entry
		err := s.store.do(ctx, "read a batch", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			var err error
			if heads, err = w.read(ctx, conn, max(1, limits.Messages)); err != nil || len(heads) == 0 {
				return err
			}
			heads = within(heads, int64(limits.Bytes))
			entries, err = s.store.loadBodies(ctx, conn, heads)
			return err
		})
		if err != nil || len(heads) == 0 {
			return nil, err
		}
		w.took(heads)
		if len(entries) > 0 {
			return entries, nil
		}
	}
}

// within gives as many of heads as fit limit bytes, at least one.
func within(heads []head, limit int64) []head {
	bytes, n := heads[0].size, 1
	for n < len(heads) && bytes+heads[n].size <= limit {
		bytes += heads[n].size
		n++
	}
	return heads[:n]
}

// readHeads gives the heads of those rows that are wanted: of all where wanted is nil. They are about as many
// as limit.
func readHeads(ctx context.Context, conn *pgx.Conn, limit int, wanted func(queueID int64) bool, sql string,
	args ...any) ([]head, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var heads []head
	var h head
	var created, next pgtype.Timestamptz
	m := &h.Message
	all := []any{&m.ID, &h.queueID, &h.createdTS, &h.size, &m.Commit, &m.Event, &m.Callback, &created,
		&h.Attempts, &h.Tries, &next, &h.late}
	key := make([]any, len(all)) // nothing else of a row that is not wanted is decoded
	key[1] = &h.queueID
	for rows.Next() {
		if wanted != nil {
			if err := rows.Scan(key...); err != nil {
				return nil, err
			}
			if !wanted(h.queueID) {
				continue
			}
		}
		if err := rows.Scan(all...); err != nil {
			return nil, err
		}
		m.Created, h.nextAttempt = timeOf(created), timeOf(next)
		if heads == nil {
			heads = make([]head, 0, min(limit, 1000))
		}
		heads = append(heads, h)
	}
	return heads, rows.Err()
}

// timeOf gives t, and the zero time for none and for what is none to us: infinity, and years that JSON has no
// form for. Rows that others wrote may have them.
func timeOf(t pgtype.Timestamptz) time.Time {
	at := t.Time.UTC()
	if !t.Valid || t.InfinityModifier != pgtype.Finite || at.Year() < 1 || at.Year() > 9999 {
		return time.Time{}
	}
	return at
}

// loadBodies completes heads from proton_queue, in their order. OFFSET 0 keeps the planner from turning the
// look-ups, one for each head, into a scan.
func (p *Store) loadBodies(ctx context.Context, conn *pgx.Conn, heads []head) ([]queue.Entry, error) {
	ids := make([]int64, len(heads))
	for i := range heads {
		ids[i] = heads[i].queueID
	}
	rows, err := conn.Query(ctx, p.sql(`
		SELECT k.n - 1, q.* FROM unnest($1::bigint[]) WITH ORDINALITY AS k(id, n) CROSS JOIN LATERAL (
			SELECT created_ts, address, props::text, body::text FROM {koji}.proton_queue WHERE id = k.id OFFSET 0
		) q`), ids)
	if err != nil {
		return nil, err
	}
	found := make([]bool, len(heads))
	var n int64
	var createdTS pgtype.Timestamptz
	var address, body string
	var props []byte
	_, err = pgx.ForEachRow(rows, []any{&n, &createdTS, &address, &props, &body}, func() error {
		h := &heads[n]
		if createdTS != h.createdTS { // both are decoded alike
			return nil // the id was used again
		}
		found[n] = true
		h.Message.Address, h.Message.Body = address, body
		var err error
		if h.Message.Props, err = message.DecodeProps(props); err != nil {
			h.Unreadable = err.Error()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	entries, orphans := make([]queue.Entry, 0, len(heads)), []string{}
	for i := range heads {
		if found[i] {
			entries = append(entries, heads[i].Entry)
		} else {
			orphans = append(orphans, heads[i].Message.ID)
		}
	}
	if len(orphans) > 0 {
		if _, err := conn.Exec(ctx, p.sql(deleteOrphans), orphans); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// protonmsgSpace is the namespace of message-ids for rows that protonmsg wrote; the name is
// "DATABASE/ID/CREATED_TS" with created_ts in UTC to the microsecond. It is itself the UUIDv5 of
// "proton_queue" in the OID namespace of RFC 9562, and must never change: an id must survive an upgrade
// between two attempts.
var protonmsgSpace = uuid.NewSHA1(uuid.NameSpaceOID, []byte("proton_queue"))

// findForeign gives, among the rows of one window, those without a delivery row, and in a last row of its own
// the end of the window and how many rows it has.
const findForeign = `
	WITH w AS MATERIALIZED (SELECT id, created_ts FROM {koji}.proton_queue WHERE id > $1::bigint
		ORDER BY id LIMIT $2)
	SELECT w.id::bigint, current_database() || '/' || w.id || '/' ||
		coalesce(to_char(w.created_ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), ''), 0::bigint
	FROM w WHERE NOT EXISTS (SELECT FROM koji_relay.delivery d
		WHERE d.queue_id = w.id AND d.created_ts IS NOT DISTINCT FROM w.created_ts OFFSET 0)
	UNION ALL SELECT coalesce(max(id), 0)::bigint, '', count(*) FROM w`

const insertForeign = `
	INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size)
	SELECT k.message_id, q.id, q.created_ts, CASE WHEN isfinite(q.created_ts) THEN q.created_ts END, q.address,
		octet_length(q.body::text) + octet_length(q.props::text) + octet_length(q.address) + 256
	FROM unnest($1::text[], $2::bigint[]) AS k(message_id, id) JOIN {koji}.proton_queue q
		ON q.id = ANY(ARRAY[k.id])
	ON CONFLICT (message_id) DO NOTHING`

// adoptSome looks at one more window of proton_queue and gives each row that protonmsg wrote a delivery row.
func (s *pgPass) adoptSome(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, s.store.sql(findForeign), s.adopt, adoptWindow)
	if err != nil {
		return err
	}
	var ids []string
	var queueIDs []int64
	var id, count int64
	var name string
	end, size := s.adopt, int64(0)
	var behind []string
	_, err = pgx.ForEachRow(rows, []any{&id, &name, &count}, func() error {
		if name == "" {
			if size = count; size > 0 {
				end = id
			}
			return nil
		}
		messageID := uuid.NewSHA1(protonmsgSpace, []byte(name)).String()
		ids, queueIDs = append(ids, messageID), append(queueIDs, id)
		if id <= s.fresh {
			behind = append(behind, messageID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		if _, err := conn.Exec(ctx, s.store.sql(insertForeign), ids, queueIDs); err != nil {
			return err
		}
	}
	s.adopt = end
	s.behind = append(s.behind, behind...)
	s.adopted = size < adoptWindow
	return nil
}
