package postgres

import (
	"testing"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/pgtest"
	queue "koji-relay/queue/postgres"
)

// relayRole has the printed grants and no other right, so that every test shows that they are enough.
const relayRole = "koji_relay_test_history"

// schema is what 'koji-relay db init --print' prints, with the grants.
func schema(tb testing.TB) string {
	tb.Helper()
	grants, err := queue.GrantsSQL(relayRole, relayRole)
	if err != nil {
		tb.Fatal(err)
	}
	return queue.SchemaSQL() + `DO $$ BEGIN CREATE ROLE ` + relayRole +
		` LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;` + grants
}

// open opens the store in the role of a relay.
func open(tb testing.TB, conn string) *Store {
	tb.Helper()
	s, err := Open(Options{ConnString: conn + " user=" + relayRole})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) history.Store { return open(t, pgtest.Database(t, schema(t))) })
}
