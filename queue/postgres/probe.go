package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"koji-relay/queue/schema"
)

// ProbeReport is what Probe found out about the queue's database. It holds no secret.
type ProbeReport struct {
	SchemaStatus
	Server  string   // version of PostgreSQL
	Role    string   // we log in as
	Missing []string // grants that the relay needs and the role has not
	// Pooler says what stands between us and the server: empty, "session" or "transaction". Through the
	// last one neither LISTEN nor advisory locks work.
	Pooler string
}

// Probe connects to the database as serve would and looks at what serve needs. It changes nothing, and blocks for
// at most a minute. After an error the report has what was found before it.
func Probe(ctx context.Context, connString string) (ProbeReport, error) {
	var r ProbeReport
	s, err := OpenSchema(ctx, connString)
	if err != nil {
		return r, err
	}
	defer s.Close()
	r.Database = s.name
	var number int
	err = s.conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_user`).
		Scan(&r.Server, &number, &r.Role)
	if err != nil {
		return r, fmt.Errorf("ask %s who we are: %w", s.name, err)
	}
	if err := checkServer(number, r.Server); err != nil {
		return r, err
	}
	if r.Pooler, err = s.pooler(ctx, connString); err != nil {
		return r, err
	}
	if r.Missing, err = s.missingGrants(ctx); err != nil {
		return r, err
	}
	if len(r.Missing) > 0 {
		return r, nil // what follows would fail for want of them
	}
	r.SchemaStatus, err = s.Status(ctx)
	return r, err
}

// pooler tells a pooler by the process id of the server: it is not the one that was announced at login. A pooler in
// transaction mode gives a second client the server process that the first one had.
func (s *Schema) pooler(ctx context.Context, connString string) (string, error) {
	pid := func(conn *pgx.Conn) (uint32, error) {
		var id uint32
		err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&id)
		return id, err
	}
	first, err := pid(s.conn)
	if err != nil {
		return "", fmt.Errorf("look for a pooler before %s: %w", s.name, err)
	}
	if first == s.conn.PgConn().PID() {
		return "", nil
	}
	other, err := OpenSchema(ctx, connString)
	if err != nil {
		return "", err
	}
	defer other.Close()
	tx, err := other.conn.Begin(ctx)
	if err != nil {
		return "", fmt.Errorf("look for a pooler before %s: %w", s.name, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	held, err := pid(other.conn)
	if err != nil {
		return "", fmt.Errorf("look for a pooler before %s: %w", s.name, err)
	}
	again, err := pid(s.conn)
	if err != nil {
		return "", fmt.Errorf("look for a pooler before %s: %w", s.name, err)
	}
	if held == first || again != first {
		return "transaction", nil
	}
	return "session", nil
}

// neededGrants are those of GrantsSQL, as questions to the server: 'object' and 'privileges', each of them needed.
const neededGrants = `
	SELECT kind, object, privilege FROM (VALUES
		('schema', 'koji_relay', 'USAGE'),
		('table', 'koji_relay.version', 'SELECT'),
		('table', 'koji_relay.delivery', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.dead_letter', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.outbox', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.reader', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_message', 'SELECT,INSERT'),
		('table', 'koji_relay.history_step', 'SELECT,INSERT'),
		('table', 'koji_relay.history_writer', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.replay', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'proton_queue', 'SELECT,INSERT,DELETE'),
		('sequence', 'proton_queue_id_seq', 'USAGE'),
		('sequence', 'koji_relay.outbox_id_seq', 'USAGE'),
		('table', 'locks', 'SELECT,UPDATE')
	) AS needed(kind, object, privileges), unnest(string_to_array(privileges, ',')) AS privilege`

// missingGrants names the grants that are missing on what exists; what does not exist is not a matter of grants.
func (s *Schema) missingGrants(ctx context.Context) ([]string, error) {
	rows, _ := s.conn.Query(ctx, `
		SELECT privilege || ' ON ' || CASE kind WHEN 'table' THEN '' ELSE upper(kind) || ' ' END || object
		FROM (`+neededGrants+`) AS n
		WHERE CASE kind
			WHEN 'schema' THEN to_regnamespace(object) IS NOT NULL
				AND NOT has_schema_privilege(object, privilege)
			ELSE CASE WHEN split_part(object, '.', 2) <> '' AND NOT coalesce(has_schema_privilege(
					to_regnamespace(split_part(object, '.', 1)), 'USAGE'), false) THEN false
				WHEN to_regclass(object) IS NULL THEN false
				WHEN kind = 'table' THEN NOT has_table_privilege(to_regclass(object), privilege)
				ELSE NOT has_sequence_privilege(to_regclass(object), privilege) END
			END`) // CollectRows gives the error
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look at the grants in %s: %w", s.name, err)
	}
	return missing, nil
}

// Remedy says what makes the database usable; empty when it is.
func (r *ProbeReport) Remedy() string {
	switch {
	case r.Pooler == "transaction":
		return "LISTEN and locks do not work through a pooler in transaction mode: connect to PostgreSQL itself, or pool by session"
	case len(r.Missing) > 0:
		return fmt.Sprintf("grant %s to %s; 'koji-relay db init --print' has all grants", strings.Join(r.Missing, ", "), r.Role)
	case r.Version == 0 || !r.QueueTable:
		return "run 'koji-relay db init'"
	case r.Version < schema.Version():
		return "run 'koji-relay db upgrade'"
	case r.Version > schema.Version():
		return "install the newer koji-relay that made the schema"
	}
	return ""
}
