package postgres

import (
	"fmt"
	"strings"
	"testing"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
)

// kojiTables are the tables of a hub's database that the queue touches.
var kojiTables = strings.ReplaceAll(createQueueTable, "{koji}.", "") + `;
	CREATE TABLE locks (name TEXT NOT NULL PRIMARY KEY);
	INSERT INTO locks (name) VALUES ('protonmsg-plugin'), ('scheduler');`

// relayRole and hubRole have the printed grants and no other right, so that every test of a store shows that
// they are enough. Roles belong to the whole server: they stay when a test's database goes.
const (
	relayRole = "koji_relay_test relay" // a name that needs quoting
	hubRole   = "koji_relay_test hub"
)

// relaySchema is what 'koji-relay db init --print' prints, with the grants.
var relaySchema = func() string {
	grants, err := GrantsSQL(relayRole, hubRole)
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	b.WriteString(SchemaSQL())
	return b.String() + createRoles() + grants
}()

func createRoles() string {
	var b strings.Builder
	for _, role := range []string{relayRole, hubRole} {
		fmt.Fprintf(&b, `DO $$ BEGIN CREATE ROLE %q LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation `+
			`THEN NULL; END $$;`, role)
	}
	return b.String()
}

// hubDatabase is a database as 'koji-relay db init' leaves it on a hub. The connection string is that of a
// superuser.
func hubDatabase(tb testing.TB) string {
	tb.Helper()
	return pgtest.Database(tb, kojiTables+relaySchema)
}

// as is conn with another role.
func as(role, conn string) string { return conn + " user='" + role + "'" }

// open opens the store in the role of a relay.
func open(tb testing.TB, conn string, l queue.Limits) *Store {
	tb.Helper()
	p, err := Open(tb.Context(), Options{ConnString: as(relayRole, conn), Limits: l})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}
