package postgres

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/schema"
	"koji-relay/queue/storetest"
)

// TestHubAddsToTheOutboxWithThePrintedGrants; that those of the relay's role suffice is shown by every other
// test.
func TestHubAddsToTheOutboxWithThePrintedGrants(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, as(hubRole, conn), insertEvents(commitID(1), 0, 2)+"; SELECT pg_notify('koji_relay', '')")
	publisher := &fakePublisher{}
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the outbox was read", func() bool { return publisher.count() == 2 })
}

// TestRolesHaveNoMoreThanThePrintedGrants keeps the suite honest: a role that owns a table or is a superuser
// would prove nothing.
func TestRolesHaveNoMoreThanThePrintedGrants(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	for role, refused := range map[string][]string{
		relayRole: {"UPDATE proton_queue SET body = '1'", "DELETE FROM locks", "DROP SCHEMA koji_relay CASCADE",
			"INSERT INTO koji_relay.version (version) VALUES (0)", "CREATE TABLE koji_relay.other ()"},
		hubRole: {"SELECT * FROM koji_relay.delivery", "SELECT * FROM proton_queue",
			"DELETE FROM koji_relay.outbox"},
	} {
		for _, sql := range refused {
			t.Run(role+" "+sql, func(t *testing.T) {
				t.Parallel()
				db, err := pgx.Connect(t.Context(), as(role, conn))
				if err != nil {
					t.Fatal(err)
				}
				defer closeConn(db)
				var pg *pgconn.PgError
				if _, err = db.Exec(t.Context(), sql); !errors.As(err, &pg) || pg.Code != "42501" {
					t.Errorf("%s: got %v, want it refused for lack of rights", sql, err)
				}
			})
		}
	}
}

// TestHubsRoleCanDoThreeThings: whatever tables, views, sequences and functions there are, the hub's role
// reads the outbox and its readers and adds to the outbox.
func TestHubsRoleCanDoThreeThings(t *testing.T) {
	t.Parallel()
	rights := query[[]string](t, hubDatabase(t), `SELECT array_agg(what ORDER BY what) FROM (
		SELECT format('%s %I.%I', word, nspname, relname) AS what
		FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace,
			unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) word
		WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND has_table_privilege('`+hubRole+`', pg_class.oid, word)
			AND nspname !~ '^pg_' AND nspname <> 'information_schema'
		UNION ALL SELECT format('sequence %I.%I', nspname, relname)
		FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
		WHERE relkind = 'S' AND CASE WHEN relkind = 'S' THEN
			has_sequence_privilege('`+hubRole+`', pg_class.oid, 'USAGE, SELECT, UPDATE') END
		UNION ALL SELECT format('function %I.%I', nspname, proname)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
		WHERE has_function_privilege('`+hubRole+`', p.oid, 'EXECUTE') AND prorettype <> 'trigger'::regtype
			AND nspname !~ '^pg_' AND nspname <> 'information_schema') rights`)
	want := []string{"INSERT koji_relay.outbox", "SELECT koji_relay.outbox", "SELECT koji_relay.reader"}
	if !slices.Equal(rights, want) {
		t.Errorf("the hub's role can do %q, not %q", rights, want)
	}
}

// Where a publication has all tables, PostgreSQL refuses to change or delete rows of those that have neither
// a primary key nor a replica identity.
func TestRowsThatTheRelayChangesHaveAnIdentity(t *testing.T) {
	t.Parallel()
	without := query[[]string](t, hubDatabase(t), `SELECT coalesce(array_agg(c.relname::text), '{}')
		FROM pg_class c WHERE c.relnamespace = 'koji_relay'::regnamespace AND c.relkind IN ('r', 'p')
			AND (has_table_privilege('`+relayRole+`', c.oid, 'DELETE') OR
				has_table_privilege('`+relayRole+`', c.oid, 'UPDATE'))
			AND c.relreplident <> 'f'
			AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)`)
	if len(without) > 0 {
		t.Errorf("the rows of %v cannot be told apart", without)
	}
}

func TestSchemaIsInitialisedOnceAndRemovedWithoutKojisTable(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, "CREATE TABLE other ()")
	s, err := OpenSchema(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if made, err := s.Init(t.Context()); err != nil || len(made) != 2 {
		t.Errorf("init made %v, %v; want the table and the schema", made, err)
	}
	if made, err := s.Init(t.Context()); err != nil || len(made) != 0 {
		t.Errorf("a second init made %v, %v; want nothing", made, err)
	}
	if from, to, err := s.Upgrade(t.Context()); err != nil || from != to {
		t.Errorf("upgrade went from %d to %d, %v", from, to, err)
	}
	owned, err := Open(t.Context(), Options{ConnString: conn}) // an owner needs no grants
	if err != nil {
		t.Fatal(err)
	}
	defer owned.Close()
	storetest.Put(t, owned, storetest.Unsent(1, 1)...)
	st, err := s.Status(t.Context())
	if err != nil || st.Version != schema.Version() || !st.QueueTable || st.Queued != 1 || st.LockRow {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err = s.Status(t.Context())
	if err != nil || st.Version != 0 || !st.QueueTable || st.Queued != 1 {
		t.Errorf("status after remove %+v, %v; want Koji's table with its row", st, err)
	}
	if _, _, err := s.Upgrade(t.Context()); !errors.Is(err, queue.ErrSchema) {
		t.Errorf("upgrade of nothing gave %v, want ErrSchema", err)
	}
}

func TestServerBeforePostgreSQL12IsRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	if err := checkServer(120000, "12.0"); err != nil {
		t.Errorf("PostgreSQL 12: %v", err)
	}
	err := checkServer(100023, "10.23")
	if !errors.Is(err, errOldServer) || !strings.Contains(err.Error(), "10.23") ||
		!strings.Contains(err.Error(), "store = file") {
		t.Errorf("PostgreSQL 10: %v", err)
	}
}
