package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// kojiTables are the tables of a hub's database that the queue touches.
const kojiTables = createQueueTable + `;
	CREATE TABLE locks (name TEXT NOT NULL PRIMARY KEY);
	INSERT INTO locks (name) VALUES ('protonmsg-plugin'), ('scheduler');`

// relayRole and hubRole have the printed grants and no other right, so that every test of a store shows that they are
// enough. Roles belong to the whole server: they stay when a test's database goes.
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
	for _, role := range []string{relayRole, hubRole} {
		fmt.Fprintf(&b, `DO $$ BEGIN CREATE ROLE %q LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;`, role)
	}
	return b.String() + grants
}()

// hubDatabase is a database as 'koji-relay db init' leaves it on a hub. The connection string is that of a superuser.
func hubDatabase(tb testing.TB) string {
	tb.Helper()
	return pgtest.Database(tb, kojiTables+relaySchema)
}

// as is conn with another role.
func as(role, conn string) string { return conn + " user='" + role + "'" }

// openPostgres opens the store in the role of a relay.
func openPostgres(tb testing.TB, conn string, l Limits) *Postgres {
	tb.Helper()
	p, err := OpenPostgres(tb.Context(), PostgresOptions{ConnString: as(relayRole, conn), Limits: l})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

func openFile(tb testing.TB, path string, l Limits) *File {
	tb.Helper()
	f, err := OpenFile(path, FileOptions{Limits: l})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// eachStore runs a test of the contract on every store. open may be called once.
func eachStore(t *testing.T, test func(t *testing.T, open func(Limits) Store)) {
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, func(l Limits) Store { return openPostgres(t, hubDatabase(t), l) })
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		test(t, func(l Limits) Store { return openFile(t, filepath.Join(t.TempDir(), "queue.db"), l) })
	})
}

var testCommit = uuid.MustParse("7f3c1f60-58e5-4c7b-8a0e-0d3a2e3f9b10")

// aMessage is the nth test message.
func aMessage(n int) message.Message {
	return message.Message{
		ID: uuid.NewSHA1(testCommit, fmt.Append(nil, n)).String(), Commit: testCommit.String(), Event: n, Callback: "postTag",
		Address: "build.tag",
		Props:   []message.Prop{{Key: "type", Value: "Tag"}, {Key: "n", Value: int64(n)}},
		Body:    fmt.Sprintf(`{"n": %d,  "build": {"name": "caf\u00e9"}}`, n),
		Created: time.Now().UTC().Truncate(time.Microsecond),
	}
}

func aging(m message.Message, by time.Duration) message.Message {
	m.Created = m.Created.Add(-by)
	return m
}

// unsent gives the messages first to last as after a failed publish.
func unsent(first, last int) []message.Unsent {
	var list []message.Unsent
	for n := first; n <= last; n++ {
		list = append(list, message.Unsent{Message: aMessage(n)})
	}
	return list
}

func after(m message.Message, next message.Next, reason string) message.Unsent {
	return message.Unsent{Message: m, Outcome: message.Outcome{State: message.Rejected, Next: next, Broker: "b1:5672", Reason: reason}}
}

func put(tb testing.TB, s Store, list ...message.Unsent) {
	tb.Helper()
	if err := s.Put(tb.Context(), list, nil); err != nil {
		tb.Fatal(err)
	}
}

var testLimits = BatchLimits{Messages: 100, Bytes: 8 << 20}

// drained reads the whole queue in one pass, and changes nothing.
func drained(tb testing.TB, s Store) []Entry {
	tb.Helper()
	pass, err := s.BeginDrain(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	defer pass.End(false)
	var all []Entry
	for {
		batch, err := pass.Next(tb.Context(), testLimits)
		if err != nil {
			tb.Fatal(err)
		}
		if len(batch) == 0 {
			return all
		}
		all = append(all, batch...)
	}
}

// numbers gives the property n of each entry.
func numbers(entries []Entry) []int {
	list := []int{}
	for _, e := range entries {
		list = append(list, e.Message.Event)
	}
	return list
}

func mustSettle(tb testing.TB, s Store, list ...Settlement) {
	tb.Helper()
	if err := s.Settle(tb.Context(), list); err != nil {
		tb.Fatal(err)
	}
}

func expire(tb testing.TB, s Store, e Expiry) Expired {
	tb.Helper()
	pass, err := s.BeginDrain(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	defer pass.End(true)
	done, err := pass.Expire(tb.Context(), e)
	if err != nil {
		tb.Fatal(err)
	}
	return done
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// canceled is a context that has ended.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
