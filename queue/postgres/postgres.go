// Package postgres is the queue on Koji's table proton_queue beside our schema koji_relay, and the outbox.
//
// It promises what package queue does, for all relays of a fleet and beside protonmsg. It never alters Koji's
// tables, and never waits for a lock that a pass of another process holds.
package postgres

import (
	"cmp"
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

	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
	"koji-relay/internal/retry"
	"koji-relay/queue"
)

// Options says how to reach the database.
type Options struct {
	ConnString string // libpq keywords or a URL; its password never appears in errors or logs
	// Application is the application_name, unless ConnString has one; default "koji-relay".
	Application string
	Limits      queue.Limits
	MaxConns    int // of the pool; default 8. Listening and the outbox use one more each.
	Logger      *slog.Logger
}

// Store is the store on Koji's own table proton_queue and our schema koji_relay. All processes of a fleet use
// the same database.
type Store struct {
	pool *pgxpool.Pool
	// silence is the constant of that name, but in tests.
	silence time.Duration
	name    string // HOST:PORT/DATABASE, for errors
	log     *slog.Logger
	names   atomic.Pointer[names] // set before the first call runs
	pooled  atomic.Bool           // a pooler stands before the server, in session mode
	shared  atomic.Bool           // the outbox had other readers at the last Announce
	limits  atomic.Pointer[queue.Limits]
	bytes   gauge
	counted counted[inspect.Statistics]
	readers counted[[]inspect.Reader]
	news    *news

	together together

	// mu guards the fields below: what this process knows about positions in the queue between passes.
	mu      sync.Mutex
	walks   marks[places]
	backlog marks[int64] // queue_id up to which no never-attempted message was left
	outbox  marks[int64] // outbox.id up to which no event was left
	// When a count last looked for each row of proton_queue, and whether some were missing.
	compared time.Time
	differs  bool
}

const (
	connectTimeout = 2 * time.Second
	connLifetime   = 5 * time.Minute
	// callTimeout bounds calls of the drain and of commands. Put has the caller's deadline, which is shorter.
	callTimeout = 30 * time.Second
	// lockTimeout bounds taking and renewing the drain lock.
	lockTimeout = 5 * time.Second
	// A connection that was idle for pingIdle is asked for a sign of life, and has pingTimeout for it.
	pingIdle    = time.Second
	pingTimeout = 300 * time.Millisecond
)

// Open opens the store. It refuses what only an administrator can mend (an unusable connection string, a
// refused login, a server before PostgreSQL 12, schema koji_relay absent or of another version), naming the
// remedy. A server that cannot be reached or is starting up is no error: the store is returned, its calls
// fail until the server is back, and then work without a restart. ctx bounds the first look only.
func Open(ctx context.Context, o Options) (*Store, error) {
	p, err := newStore(o)
	if err != nil {
		return nil, err
	}
	err = p.checkSchema(ctx)
	switch {
	case err == nil:
	case errors.Is(err, queue.ErrSchema), errors.Is(err, errOldServer), errors.Is(err, errPooler), refused(err):
		p.pool.Close()
		return nil, err
	default:
		p.log.Warn("the queue's database cannot be reached; messages cannot be queued until it is back",
			"database", p.name, "error", err)
	}
	return p, nil
}

func newStore(o Options) (*Store, error) {
	cc, err := libpq.Parse(o.ConnString)
	if err != nil {
		return nil, fmt.Errorf("read the connection string of the queue's database: %w", err)
	}
	config, err := pgxpool.ParseConfig("") // a pool's is not made otherwise
	if err != nil {
		return nil, fmt.Errorf("prepare connections to the queue's database: %w", err)
	}
	config.ConnConfig = cc
	config.MaxConns = 8
	if o.MaxConns > 0 {
		config.MaxConns = int32(o.MaxConns)
	}
	if cc.ConnectTimeout == 0 {
		cc.ConnectTimeout = connectTimeout
	}
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = cmp.Or(o.Application, "koji-relay")
	}
	cc.ValidateConnect = writable(cc.ValidateConnect)
	p := &Store{log: o.Logger, silence: silence, news: newNews(),
		name: fmt.Sprintf("%s:%d/%s", cc.Host, cc.Port, cc.Database)}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.SetLimits(o.Limits)
	config.AfterConnect, config.ShouldPing = p.afterConnect, p.shouldPing
	// An old connection may lead to a server that was the primary once.
	config.MaxConnLifetime, config.MaxConnLifetimeJitter = connLifetime, connLifetime/10
	// With no context that ends, only the parsed configuration can be wrong here; connecting happens on use.
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("prepare connections to the queue's database: %w", err)
	}
	p.pool = pool
	return p, nil
}

// SetLimits replaces the limits from the next call on.
func (p *Store) SetLimits(l queue.Limits) { p.limits.Store(&l) }

// Close closes the connections, waiting for calls that run.
func (p *Store) Close() error {
	p.tellAtEnd()
	p.pool.Close()
	return nil
}

// shouldPing has the pool give a connection up that is mute, and with it all others: a firewall forgets idle
// connections, and nobody tells the two ends. Else each of them would cost a put its time.
func (p *Store) shouldPing(ctx context.Context, idle pgxpool.ShouldPingParams) bool {
	if idle.IdleDuration < pingIdle {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := idle.Conn.Ping(ctx)
	if err != nil {
		p.pool.Reset()
	}
	return err != nil // which a closed connection fails at once
}

// do runs f on a connection. what names the operation in errors; limit bounds it beside ctx. f runs again,
// once, when the connection turned out to be dead: all our operations are safe to repeat.
func (p *Store) do(ctx context.Context, what string, limit time.Duration,
	f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	run := func() error {
		return p.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error { return f(ctx, c.Conn()) })
	}
	err := run()
	for pause := shortPause; p.mayBeFree(err) && ctx.Err() == nil; pause = min(2*pause, longPause) {
		retry.Pause(ctx, retry.Jitter(pause))
		if again := run(); ctx.Err() == nil || again == nil {
			err = again
		}
	}
	if err != nil && ctx.Err() == nil && worthRepeating(err) {
		p.forget(err)
		err = run()
		p.forget(err)
	}
	return p.explain(what, err)
}

// Between two looks for a free connection.
const shortPause, longPause = 2 * time.Millisecond, 50 * time.Millisecond

// mayBeFree reports whether the server has no room for one more connection, and one of ours can become free.
func (p *Store) mayBeFree(err error) bool {
	stat := p.pool.Stat()
	return code(err) == tooManyConnections && stat.AcquiredConns()+stat.IdleConns() > 0
}

// tooManyConnections: of the server, the database or the role.
const tooManyConnections = "53300"

// forget gives up the pooled connections where err says that they are of no more use: after a restart or a
// failover of the server each of them is dead or read-only, not only the one that showed it.
func (p *Store) forget(err error) {
	if err != nil && (aboutServer(err) || code(err) == "") {
		p.pool.Reset()
	}
}

// worthRepeating reports whether the cause is a connection that broke, a server that is the wrong one by now,
// or a transaction that was aborted in favour of another; not the statement.
func worthRepeating(err error) bool {
	switch code(err) {
	case "":
		var connect *pgconn.ConnectError
		return !errors.As(err, &connect)
	case "40001", "40P01", "0A000": // serialization, deadlock, a plan that an altered table made useless
		return true
	}
	return aboutServer(err)
}

// explain names the operation, the database and, where one is known, the remedy.
func (p *Store) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	var known *explained
	if errors.As(err, &known) {
		return fmt.Errorf("%s: %w", what, libpq.Plain(err))
	}
	return &explained{p.explainOnce(what, libpq.Plain(err))}
}

// explained is an error that has its explanation: who passes it on only says what for.
type explained struct{ error }

func (e *explained) Unwrap() error { return e.error }

func (p *Store) explainOnce(what string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "42P01", "3F000", "42703": // undefined table, schema, column
			return fmt.Errorf("%s in %s: %w: %w; run 'koji-relay db init' or 'koji-relay db upgrade'", what, p.name,
				queue.ErrSchema, err)
		case "25006":
			return fmt.Errorf("%s in %s: %w: %w", what, p.name, libpq.ErrReadOnly, err)
		case "2200H", "22003":
			return fmt.Errorf("%s in %s: %w: %w", what, p.name, errUsedUp, err)
		case swallowed:
			return fmt.Errorf("%s in %s: %w", what, p.name, errSwallowed)
		case "42501":
			if pg.Routine == "check_enable_rls" {
				return fmt.Errorf("%s in %s: %w; %s", what, p.name, err, rowSecurityRemedy)
			}
			return fmt.Errorf("%s in %s: %w; grant the rights that 'koji-relay db init --print' shows", what, p.name,
				err)
		}
	}
	return fmt.Errorf("%s in %s: %w", what, p.name, err)
}

const rowSecurityRemedy = "exempt the role from policies by ALTER ROLE ... BYPASSRLS, or disable them there"

// errUsedUp is a sequence, or a column, that has no number left for a message. The queue may be empty all the
// same.
var errUsedUp = errors.New("the numbers of proton_queue.id are used up; " +
	"when the queue is empty run 'ALTER SEQUENCE proton_queue_id_seq RESTART', or make both of type bigint")

// refused reports whether the server answered that it will not have us: waiting does not help.
func refused(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	class := pg.Code[:min(2, len(pg.Code))]
	return class == "28" || class == "3D" || class == "42" // authorization, no such database, rights
}
