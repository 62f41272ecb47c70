package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/libpq"
	"koji-relay/queue"
	"koji-relay/queue/schema"
)

// createQueueTable is Koji's table, for databases without it.
const createQueueTable = `CREATE TABLE {koji}.proton_queue (
    id         serial      PRIMARY KEY,
    created_ts timestamptz DEFAULT now(),
    address    text        NOT NULL,
    props      json        NOT NULL,
    body       json        NOT NULL
)`

// SchemaStatus describes a database.
type SchemaStatus struct {
	Database    string
	Version     int  // of schema koji_relay; 0 when it is absent
	QueueTable  bool // proton_queue exists
	LockRow     bool // Koji's lock row 'protonmsg-plugin' exists
	Queued      int64
	DeadLetters int64
	Outbox      int64
}

// Schema manages schema koji_relay. It is not safe for concurrent use.
type Schema struct {
	conn  *pgx.Conn
	name  string
	names *names
	// pooled says that a pooler stands before the server, in session mode.
	pooled bool
}

const (
	// schemaTimeout bounds one change of the schema, and waiting for locks of others.
	schemaTimeout = time.Minute
	// stepTimeout bounds a step, which may build indexes of a large history.
	stepTimeout = 2 * time.Hour
)

// OpenSchema connects to the database that connString names, with the rights of the role in it. The caller
// must Close.
func OpenSchema(ctx context.Context, connString string) (*Schema, error) {
	config, err := libpq.Parse(connString)
	if err != nil {
		return nil, fmt.Errorf("read the connection string of the queue's database: %w", err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	config.RuntimeParams["application_name"] = "koji-relay db"
	// A pooler in transaction mode is to be recognised, not to be tripped over.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	name := fmt.Sprintf("%s:%d/%s", config.Host, config.Port, config.Database)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, libpq.Plain(err))
	}
	n, pooled, err := prepare(ctx, conn, "", false)
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("prepare the connection to %s: %w", name, libpq.Plain(err))
	}
	s := &Schema{conn: conn, name: name, names: n, pooled: pooled}
	return s, nil
}

// Close ends the connection.
func (s *Schema) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	return s.conn.Close(ctx)
}

// Status reads what is there. Its counts cost time that grows with the tables.
func (s *Schema) Status(ctx context.Context) (SchemaStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, schemaTimeout)
	defer cancel()
	st, err := readStatus(ctx, s.conn, s.names)
	if err != nil {
		return st, fmt.Errorf("look at schema koji_relay in %s: %w", s.name, libpq.Plain(err))
	}
	st.Database = s.name
	return st, nil
}

func readStatus(ctx context.Context, conn *pgx.Conn, n *names) (SchemaStatus, error) {
	var st SchemaStatus
	var err error
	if st.Version, st.QueueTable, err = readVersion(ctx, conn, n); err != nil {
		return st, err
	}
	if st.QueueTable {
		if err := conn.QueryRow(ctx, n.in(`SELECT count(*) FROM {koji}.proton_queue`)).Scan(
			&st.Queued); err != nil {
			return st, err
		}
	}
	if st.Version > 0 {
		err := conn.QueryRow(ctx,
			`SELECT (SELECT count(*) FROM koji_relay.dead_letter), (SELECT count(*) FROM koji_relay.outbox)`).
			Scan(&st.DeadLetters, &st.Outbox)
		if err != nil {
			return st, err
		}
	}
	sql, err := chooseLock(ctx, conn, n)
	st.LockRow = sql == n.in(lockRow)
	return st, err
}

// errOldServer is a server that does not understand our statements: plan_cache_mode and MATERIALIZED came
// with PostgreSQL 12.
var errOldServer = errors.New("PostgreSQL 12 or later is needed")

// checkServer takes server_version_num and server_version.
func checkServer(number int, name string) error {
	if number < 120000 {
		return fmt.Errorf("%w, and this is %s; upgrade it, or set store = file in [queue]", errOldServer, name)
	}
	return nil
}

// readVersion gives the version of the schema, 0 when it is absent, and whether proton_queue exists.
func readVersion(ctx context.Context, conn *pgx.Conn, n *names) (version int, table bool, err error) {
	var schema bool
	var number int
	var name string
	err = conn.QueryRow(ctx, n.in(`SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'koji_relay'),
		to_regclass('{koji}.proton_queue') IS NOT NULL,
		current_setting('server_version_num')::int,
		current_setting('server_version')`)).Scan(&schema, &table, &number, &name)
	if err == nil {
		err = checkServer(number, name)
	}
	if err != nil || !schema {
		return 0, table, err
	}
	err = conn.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM koji_relay.version`).Scan(&version)
	return version, table, err
}

// checkSchema returns an error that wraps ErrSchema and names the remedy unless the database is ready for us.
func (p *Store) checkSchema(ctx context.Context) error {
	return p.do(ctx, "look at schema koji_relay", 2*connectTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			version, table, err := readVersion(ctx, conn, p.names.Load())
			switch {
			case err != nil:
				return err
			case version == 0 || !table:
				return fmt.Errorf("%w: it is absent; run 'koji-relay db init'", queue.ErrSchema)
			case version < schema.Version():
				return fmt.Errorf("%w: it has version %d, this koji-relay needs %d; run 'koji-relay db upgrade'",
					queue.ErrSchema, version, schema.Version())
			case version > schema.Version():
				return fmt.Errorf("%w: it has version %d, made by a newer koji-relay; this one knows %d: install the "+
					"newer one", queue.ErrSchema, version, schema.Version())
			}
			return nil
		})
}

// Init creates what is absent: schema koji_relay in the newest version, and Koji's table proton_queue. It
// changes nothing that exists, and gives what it created, in words.
func (s *Schema) Init(ctx context.Context) ([]string, error) {
	var made []string
	err := s.change(ctx, "create schema koji_relay", schemaTimeout, func(ctx context.Context, tx pgx.Tx) error {
		version, table, err := readVersion(ctx, tx.Conn(), s.names)
		if err != nil {
			return err
		}
		if version != 0 && version != schema.Version() {
			return fmt.Errorf("%w: it has version %d, not %d; run 'koji-relay db upgrade'", queue.ErrSchema, version,
				schema.Version())
		}
		if !table {
			if _, err := tx.Exec(ctx, s.names.in(createQueueTable)); err != nil {
				return err
			}
			made = append(made, "table proton_queue")
		}
		if version == 0 {
			made = append(made, fmt.Sprintf("schema koji_relay, version %d", schema.Version()))
			if _, err := tx.Exec(ctx, "CREATE SCHEMA koji_relay"); err != nil {
				return err
			}
			return applySteps(ctx, tx, 0, schema.Version())
		}
		return nil
	})
	return made, err
}

// Upgrade applies the steps that the schema lacks, and gives the versions before and after. Each is a
// transaction of its own: what one locks, such as the outbox, does not wait for the indexes of the next.
// After an error the steps before it hold, and another call goes on.
func (s *Schema) Upgrade(ctx context.Context) (from, to int, err error) {
	from = -1
	for to = -1; err == nil && to < schema.Version(); {
		err = s.change(ctx, "upgrade schema koji_relay", stepTimeout, func(ctx context.Context, tx pgx.Tx) error {
			version, _, err := readVersion(ctx, tx.Conn(), s.names)
			switch {
			case err != nil:
				return err
			case version == 0:
				return fmt.Errorf("%w: it is absent; run 'koji-relay db init'", queue.ErrSchema)
			case version > schema.Version():
				return fmt.Errorf("%w: it has version %d, made by a newer koji-relay; this one knows %d",
					queue.ErrSchema, version, schema.Version())
			}
			if from < 0 {
				from = version
			}
			to = min(version+1, schema.Version())
			return applySteps(ctx, tx, version, to)
		})
	}
	return from, to, err
}

// Remove drops schema koji_relay with its dead letters, its outbox and all it knows of queued messages.
// Koji's own table and the messages in it stay.
func (s *Schema) Remove(ctx context.Context) error {
	return s.change(ctx, "remove schema koji_relay", schemaTimeout, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, RemoveSQL)
		return err
	})
}

func applySteps(ctx context.Context, tx pgx.Tx, from, to int) error {
	for i := from; i < to; i++ {
		if _, err := tx.Exec(ctx, schema.Steps[i]); err != nil {
			return fmt.Errorf("apply step %d: %w", i+1, err)
		}
		if _, err := tx.Exec(ctx, "INSERT INTO koji_relay.version (version) VALUES ($1)", i+1); err != nil {
			return err
		}
	}
	return nil
}

// change runs f in a transaction that no other change of the schema runs beside.
func (s *Schema) change(ctx context.Context, what string, within time.Duration,
	f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = 0",
			schemaTimeout.Milliseconds()), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx,
			"SELECT pg_advisory_xact_lock(hashtext('koji_relay'), hashtext('schema'))"); err != nil {
			return err
		}
		return f(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("%s in %s: %w", what, s.name, libpq.Plain(err))
	}
	return nil
}

// SchemaSQL is what Init does in a database that has neither, as a script for psql. Run as another role than
// the relay's, it needs GrantsSQL as well.
func SchemaSQL() string {
	var b strings.Builder
	b.WriteString("BEGIN;\n\n-- Koji has this table since 1.25; it is created only where it is absent.\n")
	b.WriteString(strings.Replace(createQueueTable, "CREATE TABLE {koji}.", "CREATE TABLE IF NOT EXISTS ", 1))
	b.WriteString(";\n\nCREATE SCHEMA koji_relay;\n" + pinForScript)
	writeSteps(&b, 0)
	b.WriteString("COMMIT;\n")
	return b.String()
}

// UpgradeSQL is what Upgrade does to a schema of version from, as a script for psql.
func UpgradeSQL(from int) string {
	if from >= schema.Version() {
		return fmt.Sprintf("-- Nothing to do: schema koji_relay has version %d.\n", from)
	}
	var b strings.Builder
	b.WriteString("BEGIN;\n" + pinForScript)
	writeSteps(&b, from)
	b.WriteString("COMMIT;\n")
	return b.String()
}

// pinForScript keeps functions that a stranger made in the schema public from running in a script of the
// administrator's.
const pinForScript = "SET LOCAL search_path = pg_catalog, pg_temp;\n\n"

// RemoveSQL is what Remove does.
const RemoveSQL = "DROP SCHEMA IF EXISTS koji_relay CASCADE;\n"

func writeSteps(b *strings.Builder, from int) {
	for i := from; i < len(schema.Steps); i++ {
		b.WriteString(schema.Steps[i])
		fmt.Fprintf(b, "INSERT INTO koji_relay.version (version) VALUES (%d);\n\n", i+1)
	}
}

// GrantsSQL is what the roles of the relay and of the hub need beyond connecting, as a script for psql. A
// role that owns the tables needs none of it.
func GrantsSQL(relay, hub string) (string, error) {
	if relay == "" || hub == "" {
		return "", errors.New("the roles of the relay and of the hub must be named")
	}
	r := strings.NewReplacer("RELAY", pgx.Identifier{relay}.Sanitize(), "HUB", pgx.Identifier{hub}.Sanitize())
	return r.Replace(`-- The relay: its own schema, rows of the queue, the lock that it shares with protonmsg.
GRANT USAGE ON SCHEMA koji_relay TO RELAY;
GRANT SELECT ON koji_relay.version TO RELAY;
GRANT SELECT, INSERT, UPDATE, DELETE ON koji_relay.delivery, koji_relay.dead_letter, koji_relay.outbox,
    koji_relay.outbox_taken, koji_relay.reader TO RELAY;
GRANT SELECT, INSERT, DELETE ON proton_queue TO RELAY;
GRANT USAGE, SELECT ON SEQUENCE proton_queue_id_seq, koji_relay.outbox_id_seq TO RELAY;
GRANT SELECT, INSERT ON koji_relay.history_message, koji_relay.history_step TO RELAY;
GRANT SELECT, INSERT, UPDATE, DELETE ON koji_relay.history_open, koji_relay.history_word,
	koji_relay.history_gap,
    koji_relay.history_writer, koji_relay.replay, koji_relay.replay_line TO RELAY;
GRANT SELECT ON koji_relay.history_day TO RELAY;
GRANT EXECUTE ON FUNCTION koji_relay.history_add_day(date), koji_relay.history_drop_day(date) TO RELAY;
DO $$ BEGIN
    IF to_regclass('locks') IS NOT NULL THEN
        GRANT SELECT, UPDATE ON locks TO RELAY;
    END IF;
END $$;
-- The hub: it adds events to the outbox, and reads which ones are wanted.
GRANT USAGE ON SCHEMA koji_relay TO HUB;
GRANT SELECT, INSERT ON koji_relay.outbox TO HUB;
GRANT SELECT ON koji_relay.reader TO HUB;
`), nil
}
