package queue

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// TestRoleWithThePrintedGrantsDoesEverything runs the statements of every operation with no more rights than printed.
func TestRoleWithThePrintedGrantsDoesEverything(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	relay, hub := fmt.Sprintf("relay %d", time.Now().UnixNano()), fmt.Sprintf("hub %d", time.Now().UnixNano())
	grants, err := GrantsSQL(relay, hub)
	if err != nil {
		t.Fatal(err)
	}
	quote := func(s string) string { return pgx.Identifier{s}.Sanitize() }
	pgtest.SQL(t, conn, "CREATE ROLE "+quote(relay)+" LOGIN; CREATE ROLE "+quote(hub)+" LOGIN;"+grants)
	t.Cleanup(func() {
		pgtest.SQL(t, conn, "DROP OWNED BY "+quote(relay)+", "+quote(hub)+"; DROP ROLE "+quote(relay)+", "+quote(hub))
	})
	granted := func(role string) string { return conn + " user='" + role + "'" }
	protonmsgInsert(t, conn, 100, 101)
	contract := func(open func(Limits) Store) {
		s := filled(t, open)
		for _, step := range []func() error{
			func() error { _, err := s.Stats(t.Context()); return err },
			func() error { _, err := s.Retry(t.Context(), Dead, Selection{All: true}); return err },
			func() error { _, err := s.Retry(t.Context(), Queue, Selection{All: true}); return err },
			func() error { _, err := s.Drop(t.Context(), Dead, Selection{All: true}); return err },
			func() error { _, err := s.Backlog(t.Context()); return err },
		} {
			if err := step(); err != nil {
				t.Error(err)
			}
		}
		got := drained(t, s)
		if len(got) != 5 {
			t.Errorf("drained %d, want 5", len(got))
		}
		mustSettle(t, s, Settlement{ID: got[0].Message.ID, Action: Bury, Reason: "r"}, Settlement{ID: got[1].Message.ID})
		expire(t, s, Expiry{MaxAge: time.Nanosecond, ToDead: true, DeadMaxAge: time.Hour})
		expire(t, s, Expiry{MaxAge: time.Nanosecond})
	}
	contract(func(l Limits) Store { return openPostgres(t, granted(relay), l) })
	pgtest.SQL(t, granted(hub), insertEvents(commitID(1), 0, 2)+"; SELECT pg_notify('koji_relay', '')")
	taker := &fakeTaker{}
	readingOutbox(t, openPostgres(t, granted(relay), Limits{}), taker)
	eventually(t, "the outbox was read", func() bool { return taker.count() == 2 })
	if err := openPostgres(t, granted(relay), Limits{}).AppendOutbox(t.Context(), message.Commit{ID: commitID(2),
		Events: []message.Event{{Number: 0, Callback: "postTag", Kwargs: raw("{}")}}}); err != nil {
		t.Error(err)
	}
	eventually(t, "the outbox was read", func() bool { return taker.count() == 3 })
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
	put(t, openPostgres(t, conn, Limits{}), unsent(1, 1)...)
	st, err := s.Status(t.Context())
	if err != nil || st.Version != SchemaVersion() || !st.QueueTable || st.Queued != 1 || st.LockRow {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err = s.Status(t.Context())
	if err != nil || st.Version != 0 || !st.QueueTable || st.Queued != 1 {
		t.Errorf("status after remove %+v, %v; want Koji's table with its row", st, err)
	}
	if _, _, err := s.Upgrade(t.Context()); !errors.Is(err, ErrSchema) {
		t.Errorf("upgrade of nothing gave %v, want ErrSchema", err)
	}
}
