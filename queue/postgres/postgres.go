// Package postgres is the queue on Koji's table proton_queue beside our schema koji_relay, and the outbox.
//
// It promises what package queue does, for all relays of a fleet and beside protonmsg. It never alters Koji's tables,
// and never waits for a lock that a pass of another process holds.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"koji-relay/queue"
)

// Options says how to reach the database.
type Options struct {
	ConnString string // libpq keywords or a URL; its password never appears in errors or logs
	Limits     queue.Limits
	MaxConns   int // of the pool; default 8. Listening and the outbox use one more each.
	Logger     *slog.Logger
}

// Store is the store on Koji's own table proton_queue and our schema koji_relay. All processes of a fleet use the
// same database.
type Store struct {
	pool   *pgxpool.Pool
	name   string // HOST:PORT/DATABASE, for errors
	log    *slog.Logger
	limits atomic.Pointer[queue.Limits]
	bytes  gauge
	news   *news

	// mu guards the fields below: what this process knows about positions in the queue between passes.
	mu      sync.Mutex
	walks   marks[places]
	backlog marks[int64] // queue_id up to which no never-attempted message was left
	outbox  marks[int64] // outbox.id up to which no event was left
}

const (
	connectTimeout = 2 * time.Second
	// callTimeout bounds calls of the drain and of commands. Put has the caller's deadline, which is shorter.
	callTimeout = 30 * time.Second
	// lockTimeout bounds taking and renewing the drain lock.
	lockTimeout = 5 * time.Second
)

// sessionSettings apply to every connection of ours; names that the server does not know are passed over.
//   - A transaction of ours that idles for long belongs to a frozen process. The server ends it, and with it the
//     drain lock. This also replaces a shorter timeout of the server, under which the lock could not be held.
//   - Plans are made for the actual values. A generic plan made while a table was small would scan the grown table.
//   - Every statement of ours takes few rows by an index, one after the other. On tables that grow and shrink by a
//     million rows the planner's statistics are never right, and then it reads them whole, in parallel, compiled.
//     Where few ids are joined with a table, the condition is = ANY(ARRAY[id]) rather than = id: of a table that it
//     believes to be empty the planner would take each row first, and look for it among the ids.
//   - An answer 200 means on disk, whatever the database's default.
const sessionSettings = `
	SELECT set_config(name, value, false)
	FROM (VALUES
		('idle_in_transaction_session_timeout', '10s'),
		('statement_timeout', '60s'),
		('plan_cache_mode', 'force_custom_plan'),
		('enable_seqscan', 'off'),
		('enable_bitmapscan', 'off'),
		('enable_hashjoin', 'off'),
		('enable_mergejoin', 'off'),
		('max_parallel_workers_per_gather', '0'),
		('jit', 'off'),
		('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
			ELSE current_setting('synchronous_commit') END)
	) AS wanted(name, value)
	JOIN pg_settings USING (name)`

// Open opens the store. It refuses what only an administrator can mend (an unusable connection string, a
// refused login, a server before PostgreSQL 12, schema koji_relay absent or of another version), naming the remedy. A
// server that cannot be reached or is starting up is no error: the store is returned, its calls fail until the server
// is back, and then work without a restart. ctx bounds the first look only.
func Open(ctx context.Context, o Options) (*Store, error) {
	p, err := newStore(o)
	if err != nil {
		return nil, err
	}
	err = p.checkSchema(ctx)
	switch {
	case err == nil:
	case errors.Is(err, queue.ErrSchema), errors.Is(err, errOldServer), refused(err):
		p.pool.Close()
		return nil, err
	default:
		p.log.Warn("the queue's database cannot be reached; messages cannot be queued until it is back",
			"database", p.name, "error", err)
	}
	return p, nil
}

func newStore(o Options) (*Store, error) {
	config, err := pgxpool.ParseConfig(o.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read the connection string of the queue's database: %w", redact(err))
	}
	config.MaxConns = 8
	if o.MaxConns > 0 {
		config.MaxConns = int32(o.MaxConns)
	}
	cc := config.ConnConfig
	cc.ConnectTimeout = connectTimeout
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "koji-relay"
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sessionSettings)
		return err
	}
	// With no context that ends, only the parsed configuration can be wrong here; connecting happens on use.
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("prepare connections to the queue's database: %w", err)
	}
	p := &Store{pool: pool, log: o.Logger, news: newNews(), name: fmt.Sprintf("%s:%d/%s", cc.Host, cc.Port, cc.Database)}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.SetLimits(o.Limits)
	return p, nil
}

// redact keeps the cause of a connection string's error without the string, which may hold a password.
func redact(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		if cause := errors.Unwrap(parse); cause != nil {
			return cause
		}
		return errors.New("it is not understood")
	}
	return err
}

// SetLimits replaces the limits from the next call on.
func (p *Store) SetLimits(l queue.Limits) { p.limits.Store(&l) }

// Close closes the connections, waiting for calls that run.
func (p *Store) Close() error {
	p.tellAtEnd()
	p.pool.Close()
	return nil
}

// do runs f on a connection. what names the operation in errors; limit bounds it beside ctx. f runs again, once, when
// the connection turned out to be dead: all our operations are safe to repeat.
func (p *Store) do(ctx context.Context, what string, limit time.Duration, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	run := func() error {
		return p.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return f(ctx, c.Conn()) })
	}
	err := run()
	if err != nil && ctx.Err() == nil && worthRepeating(err) {
		// After a restart of the server every pooled connection is dead, not only this one.
		p.pool.Reset()
		err = run()
	}
	return p.explain(what, err)
}

// worthRepeating reports whether the cause is a connection that broke or a transaction that was aborted in favour of
// another, not the statement.
func worthRepeating(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "57P01", "57P02", "40001", "40P01": // shutdown, crash; serialization, deadlock
			return true
		}
		return false
	}
	var connect *pgconn.ConnectError
	return !errors.As(err, &connect)
}

// explain names the operation, the database and, where one is known, the remedy.
func (p *Store) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "42P01", "3F000", "42703": // undefined table, schema, column
			return fmt.Errorf("%s in %s: %w: %w; run 'koji-relay db init' or 'koji-relay db upgrade'", what, p.name, queue.ErrSchema, err)
		case "42501":
			return fmt.Errorf("%s in %s: %w; grant the rights that 'koji-relay db init --print' shows", what, p.name, err)
		}
	}
	return fmt.Errorf("%s in %s: %w", what, p.name, err)
}

// refused reports whether the server answered that it will not have us: waiting does not help.
func refused(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	class := pg.Code[:min(2, len(pg.Code))]
	return class == "28" || class == "3D" || class == "42" // authorization, no such database, rights
}
