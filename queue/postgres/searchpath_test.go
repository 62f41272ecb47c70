package postgres

import (
	"fmt"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// planted are functions and an operator of a stranger that fit calls of ours better than those of the system.
const planted = `
	GRANT CREATE ON SCHEMA public TO PUBLIC;
	CREATE FUNCTION public.boom(text) RETURNS text LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'planted: %', $1; END $$;
	CREATE FUNCTION public.nextval(text) RETURNS bigint LANGUAGE sql AS $$
		SELECT public.boom('nextval')::bigint $$;
	CREATE FUNCTION public.pg_sequence_last_value(text) RETURNS bigint LANGUAGE sql AS $$
		SELECT public.boom('last_value')::bigint $$;
	CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS $$ SELECT public.boom('unnest') $$;
	CREATE FUNCTION public.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE sql AS $$
		SELECT public.boom('unnest')::bigint $$;
	CREATE FUNCTION public.hashtext(varchar) RETURNS int LANGUAGE sql AS $$
		SELECT public.boom('hashtext')::int $$;
	CREATE FUNCTION public.octet_length(varchar) RETURNS int LANGUAGE sql AS $$
		SELECT public.boom('octet_length')::int $$;
	CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE sql AS $$
		SELECT public.boom('quote_ident') $$;
	CREATE FUNCTION public.upper(varchar) RETURNS text LANGUAGE sql AS $$ SELECT public.boom('upper') $$;
	CREATE FUNCTION public.to_regclass(varchar) RETURNS regclass LANGUAGE sql AS $$
		SELECT public.boom('to_regclass')::regclass $$;
	CREATE FUNCTION public.split_part(varchar, varchar, int) RETURNS text LANGUAGE sql AS $$
		SELECT public.boom('split_part') $$;
	CREATE FUNCTION public.split_part(text, varchar, int) RETURNS text LANGUAGE sql AS $$
		SELECT public.boom('split_part') $$;
	CREATE FUNCTION public.count(text) RETURNS bigint LANGUAGE sql AS $$ SELECT public.boom('count')::bigint $$;
	CREATE FUNCTION public.glue(text, integer) RETURNS text LANGUAGE sql AS $$ SELECT public.boom('||') $$;
	CREATE FUNCTION public.glue(text, bigint) RETURNS text LANGUAGE sql AS $$ SELECT public.boom('||') $$;
	CREATE FUNCTION public.glue(name, text) RETURNS text LANGUAGE sql AS $$ SELECT public.boom('||') $$;
	CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = integer, FUNCTION = public.glue);
	CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = bigint, FUNCTION = public.glue);
	CREATE OPERATOR public.|| (LEFTARG = name, RIGHTARG = text, FUNCTION = public.glue);
	CREATE FUNCTION public.same(oid, regclass) RETURNS boolean LANGUAGE sql AS $$
		SELECT public.boom('=')::boolean $$;
	CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.same);
	CREATE FUNCTION public.same(name, text) RETURNS boolean LANGUAGE sql AS $$
		SELECT public.boom('=')::boolean $$;
	CREATE FUNCTION public.same(bigint, integer) RETURNS boolean LANGUAGE sql AS $$
		SELECT public.boom('=')::boolean $$;
	CREATE FUNCTION public.minus(timestamptz, interval) RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() $$;`

func TestFunctionsOfAStrangerAreNotRun(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, kojiTables+relaySchema)
	pgtest.SQL(t, conn, planted)
	protonmsgInsert(t, conn, 1, 20)
	s := open(t, conn, queue.Limits{MaxBytes: 1 << 30})
	storetest.Put(t, s, append(storetest.Unsent(100, 700), message.Unsent{Message: storetest.Message(800),
		Outcome: message.Outcome{State: message.Rejected, Next: message.Dead}})...)
	for _, name := range []string{"", "other"} {
		if _, err := s.Announce(t.Context(), name, "*"); err != nil {
			t.Error(err)
		}
	}
	pgtest.SQL(t, conn, insertEvents(commitID(90), 0, 3))
	if err := s.finishOutbox(t.Context(), "", []int64{1, 2}, []string{commitID(90), commitID(90)}); err != nil {
		t.Error(err)
	}
	if _, err := s.ExpireOutbox(t.Context(), "", time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := s.Readers(t.Context()); err != nil {
		t.Error(err)
	}
	if _, _, err := s.ForgetReader(t.Context(), "other"); err != nil {
		t.Error(err)
	}
	if _, err := s.Stats(t.Context()); err != nil {
		t.Error(err)
	}
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		items := storetest.List(t, s, box, inspect.ListOptions{})
		if len(items) == 0 {
			t.Errorf("%s is empty", box)
		}
		if _, err := s.Retry(t.Context(), box, inspect.Selection{All: true}); err != nil {
			t.Error(err)
		}
	}
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 150))
	workOnQueue(t, s) // closes s
	if _, err := Probe(t.Context(), conn); err != nil {
		t.Error(err)
	}
	admin, err := OpenSchema(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// A hub may keep its tables elsewhere than in the schema public.
func TestKojisTablesAreFoundByTheSearchPath(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, `CREATE SCHEMA "Koji Hub"; SET search_path = "Koji Hub";`+kojiTables+relaySchema+
		fmt.Sprintf(`GRANT USAGE ON SCHEMA "Koji Hub" TO %q;`, relayRole))
	s := open(t, conn+` options='-c search_path="Koji\\ Hub"'`, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 3)...)
	if n := query[int](t, conn, `SELECT count(*) FROM "Koji Hub".proton_queue`); n != 3 {
		t.Errorf("%d messages are in Koji's table, want 3", n)
	}
	if got := storetest.Numbers(storetest.Drained(t, s)); len(got) != 3 {
		t.Errorf("drained %v, want 3", got)
	}
}
