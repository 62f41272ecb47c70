package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// AddReplay implements history.ReplayStore.
func (s *Store) AddReplay(ctx context.Context, r *inspect.Replay, lines []history.Row) error {
	return s.do(ctx, "add a replay", func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			err := tx.QueryRow(ctx, `INSERT INTO koji_relay.replay (running, state) VALUES (true, $1)
				RETURNING id`, r).Scan(&r.ID)
			if err != nil {
				return err
			}
			_, err = tx.CopyFrom(ctx, pgx.Identifier{"koji_relay", "replay_line"}, []string{"replay",
				"line", "message", "content"},
				pgx.CopyFromSlice(len(lines), func(i int) ([]any, error) {
					row := lines[i]
					row.Content = nil
					return []any{r.ID, i + 1, row, lines[i].Content}, nil
				}))
			return err
		})
	})
}

// Replays implements history.ReplayStore.
func (s *Store) Replays(ctx context.Context) (all []inspect.Replay, err error) {
	err = s.do(ctx, "list the replays", func(ctx context.Context, conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `SELECT `+replayColumns+` FROM koji_relay.replay ORDER BY id`)
		all, err = pgx.CollectRows(rows, readReplay)
		return err
	})
	return all, err
}

// readReplay reads what replayColumns names.
func readReplay(row pgx.CollectableRow) (inspect.Replay, error) {
	var id int64
	var text string
	var running, held bool
	err := row.Scan(&id, &text, &running, &held)
	r := history.ReadReplay(id, []byte(text))
	if r.Held = held; r.State == inspect.ReplayRuns && !running {
		r.State, r.Error = inspect.ReplayCancelled, "running is false in koji_relay.replay"
	}
	return r, err
}

// A lease that ends later than any relay asks for is nobody's.
const (
	leased        = "lease BETWEEN now() AND now() + interval '1 day'"
	replayColumns = "id, state::text, running, running AND " + leased
)

// ClaimReplays implements history.ReplayStore. What it has is claimed by a statement of its own: of the
// replays of others it waits for none, so that two relays never wait for one another.
func (s *Store) ClaimReplays(ctx context.Context, writer string,
	lease time.Duration) (claimed []inspect.Replay, err error) {
	err = s.do(ctx, "claim replays", func(ctx context.Context, conn *pgx.Conn) error {
		claimed = nil // a try that failed may be followed by one that finds nothing
		for _, which := range []string{"running AND holder = $1", `id IN (SELECT id FROM koji_relay.replay
			WHERE running AND NOT ` + leased + ` AND holder <> $1 ORDER BY id FOR UPDATE SKIP LOCKED)`} {
			rows, _ := conn.Query(ctx, `UPDATE koji_relay.replay SET holder = $1,
				lease = now() + $2 * interval '1 second' WHERE `+which+` RETURNING `+replayColumns,
				writer, lease.Seconds())
			some, err := pgx.CollectRows(rows, readReplay)
			if err != nil {
				return err
			}
			claimed = append(claimed, some...)
		}
		slices.SortFunc(claimed, func(a, b inspect.Replay) int { return cmp.Compare(a.ID, b.ID) })
		return nil
	})
	return claimed, err
}

// SaveReplay implements history.ReplayStore. The messages of a file and the password of a URL go when it
// ends.
func (s *Store) SaveReplay(ctx context.Context, r *inspect.Replay, writer string) (runs bool, err error) {
	saved := *r
	saved.Held = false // the lease says it
	if r.State != inspect.ReplayRuns {
		saved.URL = history.MaskURL(r.URL)
	}
	err = s.do(ctx, "save a replay", func(ctx context.Context, conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, `UPDATE koji_relay.replay SET state = $1, running = $2
			WHERE id = $3 AND running AND holder = $4`, saved, r.State == inspect.ReplayRuns, r.ID, writer)
		runs = tag.RowsAffected() == 1
		if err == nil && runs && r.State != inspect.ReplayRuns {
			_, err = conn.Exec(ctx, `DELETE FROM koji_relay.replay_line WHERE replay = $1`, r.ID)
		}
		return err
	})
	return runs, err
}

// CancelReplay implements history.ReplayStore.
func (s *Store) CancelReplay(ctx context.Context, id int64) (ran bool, err error) {
	err = s.do(ctx, "cancel a replay", func(ctx context.Context, conn *pgx.Conn) error {
		ran = false
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			rows, _ := tx.Query(ctx, `SELECT `+replayColumns+` FROM koji_relay.replay WHERE id = $1 AND running
				FOR UPDATE`, id)
			r, err := pgx.CollectExactlyOneRow(rows, readReplay)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err != nil {
				return err
			}
			r.State, r.Ended, r.Held, r.URL = inspect.ReplayCancelled, time.Now(), false, history.MaskURL(r.URL)
			_, err = tx.Exec(ctx, `UPDATE koji_relay.replay SET running = false, state = $1 WHERE id = $2`, r, id)
			if err == nil {
				_, err = tx.Exec(ctx, `DELETE FROM koji_relay.replay_line WHERE replay = $1`, id)
			}
			ran = err == nil
			return err
		})
	})
	return ran, err
}

// Lines implements history.ReplayStore.
func (s *Store) Lines(ctx context.Context, replay int64, after, n int) (lines []history.Row, last int,
	err error) {
	err = s.do(ctx, "read the lines of a replay", func(ctx context.Context, conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `SELECT line, message::text, content FROM koji_relay.replay_line
			WHERE replay = $1 AND line > $2 ORDER BY line LIMIT $3`, replay, after, n)
		lines, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (history.Row, error) {
			var r history.Row
			var text string
			var content []byte
			err := row.Scan(&last, &text, &content)
			if json.Unmarshal([]byte(text), &r) != nil {
				return history.Row{}, err
			}
			r.Content = content
			return r, err
		})
		return err
	})
	return lines, last, err
}
