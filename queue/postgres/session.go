package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"koji-relay/internal/libpq"
	"koji-relay/queue"
)

// pinPath is for every session of ours. Where PUBLIC may create functions in the schema of Koji's tables
// (PostgreSQL 14 and older), a stranger's nextval(text) would run with the rights of the relay: it fits
// better than nextval(regclass), wherever its schema stands in the path. So no schema but the system's is in
// the path, and statements name the schema of each table: {koji} stands for that of Koji's.
const pinPath = `SET search_path = pg_catalog, pg_temp;`

// countsReaders says that the session looks for other readers before it deletes events of the outbox: step 5
// of the schema holds the deletions of relays that do not.
const countsReaders = `SET koji_relay.counts_readers = 'on';`

// sessionSettings apply to every connection of ours; names that the server does not know are passed over.
//   - A transaction of ours that idles for long belongs to a frozen process. The server ends it, and with it
//     the drain lock. This also replaces a shorter timeout of the server, under which the lock could not be
//     held.
//   - Plans are made for the actual values. A generic plan made while a table was small would scan the grown
//     table.
//   - Every statement of ours takes few rows by an index, one after the other. On tables that grow and shrink
//     by a million rows the planner's statistics are never right, and then it reads them whole, in parallel,
//     compiled. Where few ids are joined with a table, the condition is = ANY(ARRAY[id]) rather than = id: of
//     a table that it believes to be empty the planner would take each row first, and look for it among the
//     ids.
//   - An answer 200 means on disk, whatever the database's default.
//   - A statement sees what was committed before it. None of ours makes a serializable transaction of the
//     hub's fail, which has the outbox in common with us.
//   - Where policies (row level security) would hide rows from us, statements fail. Else a message that was
//     put would be there and never be seen again.
//   - Our deadlines say how long a lock or a transaction may take, and not what suits others.
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
		('default_transaction_isolation', 'read committed'),
		('default_transaction_deferrable', 'off'),
		('row_security', 'off'),
		('lock_timeout', '0'),
		('transaction_timeout', '0'),
		('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
			ELSE current_setting('synchronous_commit') END)
	) AS wanted(name, value)
	WHERE current_setting(name, true) IS NOT NULL`

// names are those of Koji's tables, as this database has them.
type names struct {
	koji     string // the schema of proton_queue, quoted
	table    bool   // proton_queue exists
	sequence string // of proton_queue.id, with its schema, quoted
	replacer *strings.Replacer
}

// in puts the names into a statement.
func (n *names) in(sql string) string { return n.replacer.Replace(sql) }

// lookUp runs before the path is pinned: the path says where Koji's tables are. Where there are none it is
// where they would be made. It also gives the process id of the server, which a pooler changes. It prepares
// no statement, so that it works through any pooler.
func lookUp(ctx context.Context, conn *pgx.Conn) (*names, uint32, error) {
	var pid uint32
	var found, made *string
	err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid(),
		pg_catalog.quote_ident(pg_catalog.current_schema()::pg_catalog.text),
			(SELECT pg_catalog.quote_ident(n.nspname::pg_catalog.text) FROM pg_catalog.pg_class c
				JOIN pg_catalog.pg_namespace n
				ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
				WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('proton_queue'))`,
		pgx.QueryExecModeSimpleProtocol).Scan(&pid, &made, &found)
	if err != nil {
		return nil, 0, err
	}
	n := &names{koji: "public", table: found != nil}
	for _, name := range []*string{made, found} {
		if name != nil {
			n.koji = *name
		}
	}
	if strings.Contains(n.koji, "'") {
		return nil, 0, fmt.Errorf("%w: a quote in the name of schema %s is not supported", queue.ErrSchema, n.koji)
	}
	n.sequence = n.koji + ".proton_queue_id_seq"
	n.replacer = strings.NewReplacer("{koji}", n.koji, "{sequence}", n.sequence)
	return n, pid, nil
}

// prepare makes a new connection fit for us, unless a pooler in transaction mode stands before the server:
// then it leaves the session alone, which belongs to others, and gives errPooler. pooled says that a pooler
// was seen before, in session mode; prepare gives whether one is there. The sequence is found here, not in
// each statement that draws from it.
func prepare(ctx context.Context, conn *pgx.Conn, settings string, pooled bool) (*names, bool, error) {
	n, pid, err := lookUp(ctx, conn)
	if err != nil {
		return nil, false, err
	}
	if pid != conn.PgConn().PID() && !pooled {
		mode, err := poolerMode(ctx, conn)
		if err != nil {
			return nil, false, fmt.Errorf("%w: %w", errSmallPool, err)
		}
		if mode == transactionMode {
			return nil, true, errPooler
		}
		pooled = true
	}
	if _, err := conn.Exec(ctx, pinPath+countsReaders+settings); err != nil {
		return nil, pooled, err
	}
	if !n.table {
		return n, pooled, nil
	}
	var sequence *string
	err = conn.QueryRow(ctx, n.in(`SELECT pg_get_serial_sequence('{koji}.proton_queue', 'id')`),
		pgx.QueryExecModeSimpleProtocol).Scan(&sequence)
	if err == nil && sequence != nil && !strings.Contains(*sequence, "'") {
		n.sequence = *sequence
		n.replacer = strings.NewReplacer("{koji}", n.koji, "{sequence}", n.sequence)
	}
	return n, pooled, err
}

// afterConnect prepares a connection of the store, and remembers the names.
func (p *Store) afterConnect(ctx context.Context, conn *pgx.Conn) error {
	n, pooled, err := prepare(ctx, conn, sessionSettings, p.pooled.Load())
	if err != nil {
		return err
	}
	p.pooled.Store(pooled)
	p.names.Store(n)
	conn.PgConn().CustomData()[bornKey] = time.Now()
	return nil
}

const bornKey = "born"

// born is when the session of conn was new. The server has not crashed since, or the session would be gone.
func born(conn *pgx.Conn) time.Time {
	at, _ := conn.PgConn().CustomData()[bornKey].(time.Time)
	return at
}

// sql is a statement with the names of Koji's tables. A connection was made before it is called.
func (p *Store) sql(text string) string { return p.names.Load().in(text) }

// errPooler is a pooler that gives each transaction another session.
var errPooler = errors.New("a pooler in transaction or statement mode stands before the database; " +
	poolerRemedy)

// errSmallPool is a pooler that gives the relay fewer sessions than it needs.
var errSmallPool = errors.New("a pooler stands before the database and gives us too few sessions; " +
	"let its pool_size and max_client_conn have room for 16")

const (
	poolerRemedy = "LISTEN and locks do not work through it: connect to PostgreSQL itself, or pool by session"

	protocolViolation = "08P01"

	transactionMode = "transaction" // or "statement", which allows less
	sessionMode     = "session"
)

// poolerMode tells in which mode the pooler before conn works. In transaction mode it gives conn, or others,
// the session of the server that another one had.
func poolerMode(ctx context.Context, conn *pgx.Conn) (string, error) {
	pid := func(conn *pgx.Conn) (id uint32, err error) {
		err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&id)
		return id, err
	}
	first, err := pid(conn)
	if err != nil {
		return "", err
	}
	// Each holds a session of the server by its transaction. One of them is the first one's, or conn gets
	// another.
	for range 3 {
		other, err := pgx.ConnectConfig(ctx, conn.Config())
		if err != nil {
			return "", err
		}
		defer closeConn(other)
		_, err = other.Exec(ctx, "BEGIN")
		switch {
		case code(err) == protocolViolation: // pgbouncer in statement mode: no transaction is allowed
			return transactionMode, nil
		case err != nil:
			return "", err
		}
		held, err := pid(other)
		if err != nil {
			return "", err
		}
		again, err := pid(conn)
		if err != nil {
			return "", err
		}
		if held == first || again != first {
			return transactionMode, nil
		}
	}
	return sessionMode, nil
}

// writable refuses a session in which nothing can be changed: after a failover another one may be had.
func writable(next pgconn.ValidateConnectFunc) pgconn.ValidateConnectFunc {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if next != nil {
			if err := next(ctx, conn); err != nil {
				return err
			}
		}
		answer := conn.ExecParams(ctx, "SHOW transaction_read_only", nil, nil, nil, nil).Read()
		switch {
		case answer.Err != nil:
			return fmt.Errorf("ask whether the server takes changes: %w", answer.Err)
		case len(answer.Rows) != 1 || string(answer.Rows[0][0]) != "off":
			return libpq.ErrReadOnly
		}
		return nil
	}
}

// code is the SQLSTATE of an error; empty where there is none.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// aboutServer reports whether an error is about the connection or the role of the server, and not about the
// statement: another connection may do better, and this one is of no more use.
func aboutServer(err error) bool {
	switch c := code(err); {
	case c == "":
		return false
	case strings.HasPrefix(c, "08"), strings.HasPrefix(c, "57P"):
		// connection; shutdown, crash, starting up, ended for idling
		return true
	default:
		// read-only; ended for idling in a transaction; failed to write to a replica that has become the primary's
		return c == "25006" || c == "25P03" || c == "25P04"
	}
}
