package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// planted is what a stranger makes in a schema in which PUBLIC may create. Each function does what the
// system's does, and counts: a sequence keeps its number when the statement that ran it is undone.
const planted = `
	GRANT CREATE ON SCHEMA public TO PUBLIC;
	CREATE ROLE stranger;
	SET ROLE stranger;
	CREATE SEQUENCE public.ran;
	GRANT USAGE ON SEQUENCE public.ran TO PUBLIC;
	CREATE FUNCTION public.nextval(text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_catalog.nextval('public.ran'::pg_catalog.regclass);
		RETURN pg_catalog.nextval($1::pg_catalog.regclass);
	END $$;
	CREATE FUNCTION public.joined(text, integer) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
		PERFORM pg_catalog.nextval('public.ran'::pg_catalog.regclass);
		RETURN $1 OPERATOR(pg_catalog.||) $2::text;
	END $$;
	CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = integer, FUNCTION = public.joined);
	RESET ROLE;`

// TestFunctionsOfAStrangerNeverRun: where PUBLIC may create in the schema public, as up to PostgreSQL 14, a
// relay puts, drains, reads the outbox, records and shows, and runs none of the functions that were planted.
func TestFunctionsOfAStrangerNeverRun(t *testing.T) {
	t.Parallel()
	broker, postgres := startBroker(t, rabbitmq40), startPostgres(t)
	g, part := loadGolden(t, "extra500"), newPart()
	box := subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, g.topics())...)
	createDatabase(t, postgres, part)
	postgres.execute(t, part, planted)
	ran := func() (n int) {
		t.Helper()
		err := postgres.query(t, part, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.ran", &n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	postgres.execute(t, part,
		`CREATE SEQUENCE public.tried; SELECT 'a'::text || 1, nextval('public.tried'::text)`)
	before := ran()
	if before != 2 {
		t.Fatalf("a careless session ran the planted functions %d times, want 2", before)
	}

	set := forBroker(rabbitmq40, part, broker).with(initDatabase(t, postgres, part),
		settings{"queue.preserve_order": "on"})
	rows := insertAsProtonmsg(t, postgres, part, g)
	r := startRelay(t, set, broker)
	for id := range rows {
		box.waitFor(t, 30*time.Second, id)
	}
	r.command(t, "", "pause", "--publish")
	body, put := tagCommit(20)
	if a := r.mustPost(t, body); a.Queued != 20 {
		t.Errorf("while sending is paused the relay answers %+v, want 20 queued", a)
	}
	hub := &outboxHub{ledger: newLedger(postgres.connString(part)), poke: r.pokeSocket()}
	hub.commit(t, 10, `{}`) // one of them becomes a dead letter
	eventually(t, 30*time.Second, "the outbox is queued", func() error { return queued(t, postgres, part, 30) })
	show := func() {
		for _, words := range [][]string{{"queue", "status"}, {"queue", "list"}, {"queue", "export"},
			{"dead", "list"}, {"history"}, {"history", "show", put[0]}, {"db", "status"}} {
			r.command(t, "", words...)
		}
		path, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(path, "status", "--config", r.conf).Output() // 1: there are dead letters
		if !strings.HasPrefix(string(out), "Ready") {
			t.Errorf("koji-relay status says %q", out)
		}
	}
	show()
	r.command(t, "", "resume", "--publish")
	box.waitFor(t, 30*time.Second, put...)
	eventually(t, 30*time.Second, "the queue is empty", func() error { return queued(t, postgres, part, 0) })
	r.command(t, "", "dead", "drop", "--all", "--yes")
	r.command(t, "", "replay", "--since", "1h", "--yes")
	if code := r.stop(t); code != 0 {
		t.Errorf("the relay ended with %d", code)
	}
	r.command(t, "", "history", "show", put[0]) // from the store itself
	r.command(t, "", "check", "--connect")
	if n := ran(); n != before {
		t.Errorf("the planted functions ran %d times", n-before)
	}
}

// execute runs statements in one session.
func (s *server) execute(t testing.TB, database, sql string) {
	t.Helper()
	ctx := within(t, 10*time.Second)
	db, err := pgx.Connect(ctx, s.connString(database))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	if _, err := db.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(fmt.Errorf("in %s: %w", database, err))
	}
}
