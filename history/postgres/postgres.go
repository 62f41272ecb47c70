// Package postgres keeps the history in schema koji_relay of a PostgreSQL database, in partitions of a day.
//
// It promises: a batch is committed as a whole; searching uses an index whatever the size of the tables; a
// day is dropped within its lock_timeout or not at all, so that nobody waits long behind it.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"koji-relay/history"
	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
)

// Options say how to reach the database.
type Options struct {
	ConnString string // libpq keywords or a URL; its password never appears in errors or logs
}

// Store implements history.Store. All relays of a fleet may use the same database.
type Store struct {
	pool *pgxpool.Pool
	name string // HOST:PORT/DATABASE, for errors

	mu    sync.Mutex      // guards the fields below
	days  map[string]bool // known to be there
	words map[word]bool   // known to be there since today
	today string          // the day of words
	full  bool            // today alone takes more than there may be
}

type word struct {
	kind history.Kind
	text string
}

const (
	connectTimeout = 2 * time.Second
	// maxConns: one writes, one tidies, two search.
	maxConns = 4
	// dropTimeout bounds how long dropping a day waits for queries on it. Others wait behind it as long.
	dropTimeout = "200ms"
	dayFormat   = "2006-01-02"
	// maxWords bounds the words that are remembered, so that hostile ones fill no memory.
	maxWords = 100_000
)

// sessionSettings: whoever asks has an index for it, whatever the planner believes of a day that has just
// begun; and a batch is on the disk of this server when it is committed, which no replica needs to confirm.
const sessionSettings = `
	SELECT set_config(name, value, false)
	FROM (VALUES
		('search_path', 'pg_catalog'),
		('timezone', 'UTC'),
		('idle_in_transaction_session_timeout', '10s'),
		('statement_timeout', '60s'),
		('plan_cache_mode', 'force_custom_plan'),
		('enable_seqscan', 'off'),
		('max_parallel_workers_per_gather', '0'),
		('jit', 'off'),
		('default_transaction_isolation', 'read committed'),
		('default_transaction_deferrable', 'off'),
		('lock_timeout', '0'),
		('transaction_timeout', '0'),
		('synchronous_commit', 'local')
	) AS wanted(name, value)
	WHERE pg_catalog.current_setting(name, true) IS NOT NULL`

// Open prepares the store. It connects at the first call: a database that cannot be reached is no error here.
func Open(o Options) (*Store, error) {
	cc, err := libpq.Parse(o.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read the connection string of the history's database: %w", err)
	}
	config, err := pgxpool.ParseConfig("") // a pool's is not made otherwise
	if err != nil {
		return nil, fmt.Errorf("prepare connections to the history's database: %w", err)
	}
	config.ConnConfig = cc
	config.MaxConns = maxConns
	config.MaxConnLifetime = time.Hour
	config.PingTimeout = connectTimeout
	if cc.ConnectTimeout == 0 {
		cc.ConnectTimeout = connectTimeout
	}
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "koji-relay history"
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sessionSettings)
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("prepare connections to the history's database: %w", err)
	}
	return &Store{pool: pool, name: fmt.Sprintf("%s:%d/%s", cc.Host, cc.Port, cc.Database),
		days: map[string]bool{}, words: map[word]bool{}}, nil
}

// Close implements history.Store.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// do runs f on a connection, and again, once, when that turned out to be dead. what names the operation in
// errors.
func (s *Store) do(ctx context.Context, what string, f func(context.Context, *pgx.Conn) error) error {
	run := func() error {
		return s.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return f(ctx, c.Conn()) })
	}
	err := run()
	if err != nil && ctx.Err() == nil && brokenConnection(err) {
		s.pool.Reset()
		err = run()
	}
	if err == nil {
		return nil
	}
	err = libpq.Plain(err)
	switch code(err) {
	case "42P01", "3F000", "42703", "42883": // undefined table, schema, column, function
		err = fmt.Errorf("%w; run 'koji-relay db init' or 'koji-relay db upgrade'", err)
	case "25006":
		err = fmt.Errorf("%w: %w", libpq.ErrReadOnly, err)
	case "42501":
		err = fmt.Errorf("%w; grant the rights that 'koji-relay db init --print' shows", err)
	}
	return fmt.Errorf("%s in %s: %w", what, s.name, err)
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// brokenConnection reports whether the cause is the connection, not the statement. A refused connect is not
// repeated.
func brokenConnection(err error) bool {
	var connect *pgconn.ConnectError
	switch c := code(err); {
	case errors.As(err, &connect):
		return false
	case c == "":
		return !errors.Is(err, history.ErrFull)
	default:
		return c == "57P01" || c == "57P02" || c == "25006" || c[:2] == "08"
	}
}

// Begin implements history.Store.
func (s *Store) Begin(ctx context.Context, writer string) (alive time.Time, err error) {
	err = s.do(ctx, "begin the history", func(ctx context.Context, conn *pgx.Conn) error {
		var stopped bool
		var known *time.Time // null: no time at which a relay can have been alive
		err := conn.QueryRow(ctx, `SELECT CASE WHEN alive > '2000-01-01' THEN least(alive, now()) END, stopped
			FROM koji_relay.history_writer WHERE name = $1`, writer).Scan(&known, &stopped)
		if alive = (time.Time{}); known != nil && !stopped {
			alive = *known
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		_, err = conn.Exec(ctx, noteWriter, writer, time.Now(), false)
		return err
	})
	return alive, err
}

// End implements history.Store.
func (s *Store) End(ctx context.Context, writer string) error {
	return s.do(ctx, "end the history", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, noteWriter, writer, time.Now(), true)
		return err
	})
}

const noteWriter = `INSERT INTO koji_relay.history_writer (name, alive, stopped) VALUES ($1, $2, $3)
	ON CONFLICT (name) DO UPDATE SET alive = excluded.alive, stopped = excluded.stopped`

// Gaps implements history.Store.
func (s *Store) Gaps(ctx context.Context, since, until time.Time) (gaps []inspect.Gap, err error) {
	err = s.do(ctx, "read the gaps of the history", func(ctx context.Context, conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `SELECT `+sane("began")+`, `+sane("ended")+`,
				messages, reason, writer FROM koji_relay.history_gap
			WHERE ended >= $1 AND began < $2 ORDER BY began`, since, endOf(until))
		gaps, err = pgx.CollectRows(rows, pgx.RowToStructByPos[inspect.Gap])
		return err
	})
	return gaps, err
}

// sane gives an expression for a time that fits into time.Time and into JSON, as near as can be.
func sane(column string) string {
	return "least(greatest(" + column + ", '" + firstTime + "'), '" + lastTime + "')"
}

const firstTime, lastTime = "0001-01-01", "9999-12-31"

// Words implements history.Store. The words are few.
func (s *Store) Words(ctx context.Context, k history.Kind, match func(string) bool) (words []string,
	err error) {
	err = s.do(ctx, "read the words of the history", func(ctx context.Context, conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `SELECT word FROM koji_relay.history_word WHERE kind = $1`, string(k))
		words, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return slices.DeleteFunc(words, func(w string) bool { return !match(w) }), err
}

// Tidy implements history.Store.
func (s *Store) Tidy(ctx context.Context, keep time.Duration, maxBytes int64) (history.Usage, error) {
	var usage history.Usage
	err := s.do(ctx, "drop old days of the history", func(ctx context.Context, conn *pgx.Conn) error {
		now := time.Now()
		for _, day := range []time.Time{now, now.Add(24 * time.Hour)} {
			if err := s.addDays(ctx, conn, map[string]bool{day.UTC().Format(dayFormat): true}); err != nil {
				return err
			}
		}
		var err error
		usage, err = s.dropDays(ctx, conn, now.UTC(), keep, maxBytes)
		if err != nil {
			return err
		}
		oldest := now.Add(-keep).UTC().Truncate(24 * time.Hour)
		batch := &pgx.Batch{}
		batch.Queue(`DELETE FROM koji_relay.history_word WHERE seen < $1`, oldest)
		batch.Queue(`DELETE FROM koji_relay.history_open WHERE handed < $1`, oldest)
		batch.Queue(`DELETE FROM koji_relay.history_gap WHERE ended < $1`, oldest)
		batch.Queue(`DELETE FROM koji_relay.history_writer WHERE alive < $1`, oldest)
		return conn.SendBatch(ctx, batch).Close()
	})
	return usage, err
}

// dropDays drops what is too old or too much, the oldest first.
func (s *Store) dropDays(ctx context.Context, conn *pgx.Conn, now time.Time, keep time.Duration,
	maxBytes int64) (history.Usage, error) {
	var usage history.Usage
	type size struct {
		Day   time.Time
		Bytes int64
	}
	rows, _ := conn.Query(ctx, `SELECT day, bytes FROM koji_relay.history_day ORDER BY day`)
	days, err := pgx.CollectRows(rows, pgx.RowToStructByPos[size])
	if err != nil {
		return usage, err
	}
	for _, d := range days {
		usage.Bytes += d.Bytes
	}
	var errs []error
	for _, d := range days {
		end := d.Day.Add(24 * time.Hour)
		past, old := !end.After(now), end.Before(now.Add(-keep))
		if past && (old || usage.Bytes > maxBytes) {
			if err := s.dropDay(ctx, conn, d.Day); err != nil {
				errs = append(errs, err) // someone looks at it; the next minute will do
			} else {
				usage.Bytes -= d.Bytes
				usage.Dropped = append(usage.Dropped, d.Day.Format(dayFormat))
				continue
			}
		}
		usage.Days++
		if usage.Oldest.IsZero() {
			usage.Oldest = d.Day
		}
	}
	s.mu.Lock()
	s.full = usage.Bytes > maxBytes
	for _, day := range usage.Dropped {
		delete(s.days, day)
	}
	s.mu.Unlock()
	return usage, errors.Join(errs...)
}

func (s *Store) dropDay(ctx context.Context, conn *pgx.Conn, day time.Time) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true)`, dropTimeout); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT koji_relay.history_drop_day($1::date)`, day.Format(dayFormat))
		return err
	})
}

// addDays makes the days that are not known to be there.
func (s *Store) addDays(ctx context.Context, conn *pgx.Conn, days map[string]bool) error {
	for _, day := range slices.Sorted(maps.Keys(days)) {
		s.mu.Lock()
		known := s.days[day]
		s.mu.Unlock()
		if known {
			continue
		}
		if _, err := conn.Exec(ctx, `SELECT koji_relay.history_add_day($1::date)`, day); err != nil {
			return err
		}
		s.mu.Lock()
		s.days[day] = true
		s.mu.Unlock()
	}
	return nil
}

// endOf gives a time for "until" where none is set.
func endOf(until time.Time) time.Time {
	if until.IsZero() {
		return time.Now().Add(24 * time.Hour)
	}
	return until
}
