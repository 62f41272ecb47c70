package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
	"koji-relay/queue/schema"
)

// ProbeReport is what Probe found out about the queue's database. It holds no secret.
type ProbeReport struct {
	SchemaStatus
	Server  string   // version of PostgreSQL
	Role    string   // we log in as
	Missing []string // grants that the relay needs and the role has not
	Hidden  []string // tables with policies (row level security) that may hide rows from the role
	// Pooler says what stands between us and the server: empty, "session" or "transaction". Through the
	// last one neither LISTEN nor advisory locks work.
	Pooler string
	// Outbox counts the events in the outbox that wait for the reader without a name, and OutboxOldest is when
	// the first of them was inserted.
	Outbox       int64
	OutboxOldest time.Time
	Readers      []inspect.Reader // of the outbox
}

// Probe connects to the database as serve would and looks at what serve needs. It changes nothing, and blocks
// for at most a minute. After an error the report has what was found before it.
func Probe(ctx context.Context, connString string) (ProbeReport, error) {
	var r ProbeReport
	ctx, cancel := context.WithTimeout(ctx, schemaTimeout)
	defer cancel()
	s, err := OpenSchema(ctx, connString)
	if errors.Is(err, errPooler) {
		r.Pooler = transactionMode
		return r, nil // Remedy says the rest
	}
	if err != nil {
		return r, err
	}
	defer s.Close()
	r.Database = s.name
	var number int
	var readOnly string
	err = s.conn.QueryRow(ctx, `SELECT current_setting('server_version'),
		current_setting('server_version_num')::int, current_user, current_setting('transaction_read_only')`).
		Scan(&r.Server, &number, &r.Role, &readOnly)
	if err != nil {
		return r, fmt.Errorf("ask %s who we are: %w", s.name, libpq.Plain(err))
	}
	if err := checkServer(number, r.Server); err != nil {
		return r, err
	}
	if readOnly != "off" {
		return r, fmt.Errorf("look at %s: %w", s.name, libpq.ErrReadOnly)
	}
	if s.pooled {
		r.Pooler = sessionMode
	}
	if r.Missing, err = s.missingGrants(ctx); err != nil {
		return r, err
	}
	if len(r.Missing) > 0 {
		return r, nil // what follows would fail for want of them
	}
	if r.Hidden, err = s.hiddenTables(ctx); err != nil || len(r.Hidden) > 0 {
		return r, err
	}
	if r.SchemaStatus, err = s.Status(ctx); err != nil || r.Version != schema.Version() {
		return r, err
	}
	var oldest pgtype.Timestamptz
	err = s.conn.QueryRow(ctx, `SELECT count(*), min(created) FROM koji_relay.outbox o
		WHERE '' <> ALL (`+takenBy+`)`).Scan(&r.Outbox, &oldest)
	if err != nil {
		return r, fmt.Errorf("look into the outbox of %s: %w", s.name, libpq.Plain(err))
	}
	r.OutboxOldest = timeOf(oldest)
	if r.Readers, _, err = readReaders(ctx, s.conn); err != nil {
		return r, fmt.Errorf("look at the readers of the outbox of %s: %w", s.name, libpq.Plain(err))
	}
	return r, nil
}

// neededGrants are those of GrantsSQL, as questions to the server: 'object' and 'privileges', each of them
// needed.
const neededGrants = `
	SELECT kind, object, privilege FROM (VALUES
		('schema', 'koji_relay', 'USAGE'),
		('table', 'koji_relay.version', 'SELECT'),
		('table', 'koji_relay.delivery', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.dead_letter', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.outbox', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.outbox_taken', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.reader', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_message', 'SELECT,INSERT'),
		('table', 'koji_relay.history_step', 'SELECT,INSERT'),
		('table', 'koji_relay.history_open', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_word', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_gap', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_writer', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.history_day', 'SELECT'),
		('table', 'koji_relay.replay', 'SELECT,INSERT,UPDATE,DELETE'),
		('table', 'koji_relay.replay_line', 'SELECT,INSERT,UPDATE,DELETE'),
		('function', 'koji_relay.history_add_day(date)', 'EXECUTE'),
		('function', 'koji_relay.history_drop_day(date)', 'EXECUTE'),
		('table', '{koji}.proton_queue', 'SELECT,INSERT,DELETE'),
		('sequence', '{sequence}', 'USAGE'),
		('sequence', 'koji_relay.outbox_id_seq', 'USAGE'),
		('table', '{koji}.locks', 'SELECT,UPDATE')
	) AS needed(kind, object, privileges), unnest(string_to_array(privileges, ',')) AS privilege`

// missingGrants names the grants that are missing on what exists; what does not exist is not a matter of
// grants.
func (s *Schema) missingGrants(ctx context.Context) ([]string, error) {
	rows, _ := s.conn.Query(ctx, s.names.in(`
		SELECT privilege || ' ON ' || CASE kind WHEN 'table' THEN '' ELSE upper(kind) || ' ' END || object
		FROM (`+neededGrants+`) AS n
		WHERE CASE kind
			WHEN 'schema' THEN to_regnamespace(object) IS NOT NULL
				AND NOT has_schema_privilege(object, privilege)
			ELSE CASE WHEN split_part(object, '.', 2) <> '' AND NOT coalesce(has_schema_privilege(
					to_regnamespace(split_part(object, '.', 1)), 'USAGE'), false) THEN false
				WHEN kind = 'function' THEN to_regprocedure(object) IS NOT NULL
					AND NOT has_function_privilege(to_regprocedure(object), privilege)
				WHEN to_regclass(object) IS NULL THEN false
				WHEN kind = 'table' THEN NOT has_table_privilege(to_regclass(object), privilege)
				ELSE NOT has_sequence_privilege(to_regclass(object), privilege) END
			END`)) // CollectRows gives the error
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look at the grants in %s: %w", s.name, libpq.Plain(err))
	}
	return missing, nil
}

// hiddenTables names the tables whose rows policies may hide, for a role that has all grants.
func (s *Schema) hiddenTables(ctx context.Context) ([]string, error) {
	rows, _ := s.conn.Query(ctx, s.names.in(`SELECT object FROM (`+neededGrants+`) AS n
		WHERE kind = 'table' AND row_security_active(to_regclass(object)::oid)
		GROUP BY object ORDER BY object`)) // CollectRows gives the error
	hidden, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look at the policies in %s: %w", s.name, libpq.Plain(err))
	}
	return hidden, nil
}

// Remedy says what makes the database usable; empty when it is.
func (r *ProbeReport) Remedy() string {
	switch {
	case r.Pooler == transactionMode:
		return "the pooler before the database is in transaction or statement mode: " + poolerRemedy
	case len(r.Missing) > 0:
		return fmt.Sprintf("grant %s to %s; 'koji-relay db init --print' has all grants",
			strings.Join(r.Missing, ", "), r.Role)
	case len(r.Hidden) > 0:
		return fmt.Sprintf("policies may hide rows of %s from %s: %s", strings.Join(r.Hidden, ", "), r.Role,
			rowSecurityRemedy)
	case r.Version == 0 || !r.QueueTable:
		return "run 'koji-relay db init'"
	case r.Version < schema.Version():
		return "run 'koji-relay db upgrade'"
	case r.Version > schema.Version():
		return "install the newer koji-relay that made the schema"
	}
	return ""
}
