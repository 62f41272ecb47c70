package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// address leads to one server or another, as the address of a cluster does that moves in a failover.
// Connections stay with the server that they were made to.
type address struct {
	listener net.Listener
	// mu guards the field below.
	mu sync.Mutex
	to string
}

func newAddress(t *testing.T) *address {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &address{listener: l}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			to := a.to
			a.mu.Unlock()
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			running.Go(func() { pipe(client, server) })
			running.Go(func() { pipe(server, client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return a
}

func pipe(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	from.Close()
	to.Close()
}

// leadTo lets new connections go to the server of conn.
func (a *address) leadTo(t *testing.T, conn string) {
	t.Helper()
	c, err := pgx.ParseConfig(conn)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = fmt.Sprintf("127.0.0.1:%d", c.Port)
}

// through is conn by way of the address.
func (a *address) through(conn string) string {
	return fmt.Sprintf("%s port=%d", conn, a.listener.Addr().(*net.TCPAddr).Port)
}

// servers are a primary with what the queue needs, and a standby that has it, too.
func servers(t *testing.T) (primary, standby *pgtest.Cluster) {
	t.Helper()
	primary = pgtest.StartCluster(t)
	pgtest.SQL(t, primary.ConnString("postgres"), kojiTables+relaySchema)
	standby = primary.Standby(t)
	conn := standby.ConnString("postgres")
	storetest.Eventually(t, "the standby has caught up", func() bool {
		return query[bool](t, conn, `SELECT to_regclass('koji_relay.reader') IS NOT NULL
			AND has_table_privilege('`+relayRole+`', 'koji_relay.outbox', 'DELETE')`)
	})
	return primary, standby
}

// The old primary goes on as a standby would: its sessions live, and take no changes.
func TestPutAfterAFailoverIsTakenByTheNewPrimary(t *testing.T) {
	t.Parallel()
	primary, standby := servers(t)
	old := primary.ConnString("postgres")
	at := newAddress(t)
	at.leadTo(t, old)
	s := open(t, at.through(old), queue.Limits{})
	publisher := &fakePublisher{}
	reader := readingOutbox(t, s, publisher)
	storetest.Eventually(t, "the outbox is read", func() bool { return reader.Status().Reading })
	var puts sync.WaitGroup
	for n := range 8 { // a connection each
		puts.Go(func() { _, _ = s.Put(t.Context(), storetest.Unsent(n, n), nil) })
	}
	puts.Wait()
	standbyConn := standby.ConnString("postgres")
	storetest.Eventually(t, "the standby has it all",
		func() bool { return query[int](t, standbyConn, "SELECT count(*) FROM proton_queue") == 8 })
	pgtest.SQL(t, old, "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
	storetest.Eventually(t, "the old primary takes no changes", func() bool {
		return query[string](t, old, "SHOW transaction_read_only") == "on"
	})
	if _, err := s.Put(t.Context(), storetest.Unsent(50, 50), nil); !errors.Is(err, errReadOnly) {
		t.Errorf("put to a read-only server gave %v, want that it is read-only", err)
	}
	standby.Promote(t)
	at.leadTo(t, standbyConn)
	for n := 100; n < 164; n++ {
		if _, err := s.Put(t.Context(), storetest.Unsent(n, n), nil); err != nil {
			t.Fatalf("put %d after the failover: %v", n-100, err)
		}
	}
	pgtest.SQL(t, standbyConn, insertEvents(commitID(1), 0, 1))
	storetest.Eventually(t, "the outbox of the new primary is read",
		func() bool { return publisher.count() == 1 })
	if n := query[int](t, standbyConn, "SELECT count(*) FROM proton_queue"); n != 72 {
		t.Errorf("the new primary has %d messages, want 72", n)
	}
}

// A connection string may name both servers; the relay finds the one that takes changes.
func TestOfSeveralServersThePrimaryIsUsed(t *testing.T) {
	t.Parallel()
	primary, standby := servers(t)
	port := func(conn string) uint16 {
		c, err := pgx.ParseConfig(conn)
		if err != nil {
			t.Fatal(err)
		}
		return c.Port
	}
	old := primary.ConnString("postgres")
	both := fmt.Sprintf("%s host=127.0.0.1,127.0.0.1 port=%d,%d", old, port(standby.ConnString("postgres")),
		port(old))
	s := open(t, both, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	storetest.Eventually(t, "the standby has it", func() bool {
		return query[int](t, standby.ConnString("postgres"), "SELECT count(*) FROM proton_queue") == 1
	})
	primary.Kill()
	standby.Promote(t)
	storetest.Put(t, s, storetest.Unsent(2, 2)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); len(got) != 2 {
		t.Errorf("drained %v, want 1 and 2", got)
	}
}

// Whatever the cause, the next try gets another connection.
func TestErrorAboutTheServerEndsTheConnection(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	for _, state := range []string{"25006", "57P01", "57P03", "57P05", "08000", "08006", "25P03"} {
		var pids []uint32
		err := s.do(t.Context(), "try", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			pids = append(pids, conn.PgConn().PID())
			if len(pids) > 1 {
				return nil
			}
			_, err := conn.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '`+state+`'; END $$`)
			return err
		})
		if err != nil || len(pids) != 2 || pids[0] == pids[1] {
			t.Errorf("%s: tried on the sessions %v, %v; want two different ones and success", state, pids, err)
		}
	}
}

func TestOldConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	s := open(t, hubDatabase(t), queue.Limits{})
	if life := s.pool.Config().MaxConnLifetime; life <= 0 || life > 10*time.Minute {
		t.Errorf("connections live for %v", life)
	}
}

// A session in use is not idle: notifications that come all the time are no sign of life that the server
// would count.
func TestSessionsLiveThroughNotificationsWithoutEnd(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	p, err := Open(t.Context(), Options{ConnString: as(relayRole, conn), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	p.silence = keepAlive + time.Second
	publisher := &fakePublisher{}
	b := NewOutbox(p, publisher, OutboxOptions{Interval: 30 * time.Second, Logger: log})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = b.Run(ctx) })
	running.Go(func() { p.ListenQueue(ctx, func() {}) })
	storetest.Eventually(t, "it reads", func() bool { return b.Status().Reading })
	const sessions = `SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'koji-relay'
			AND query LIKE '%pg_sequence_last_value%'`
	before := ""
	storetest.Eventually(t, "both sessions have looked", func() bool {
		before = query[string](t, conn, "SELECT coalesce(("+sessions+"), '')")
		return strings.Count(before, " ") == 1
	})
	db, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(db)
	for began := time.Now(); time.Since(began) < 3*p.silence; <-time.After(100 * time.Millisecond) {
		for _, payload := range []string{"", notifyQueue, notifyOutbox} {
			if _, err := db.Exec(t.Context(), "SELECT pg_notify($1, $2)", channel, payload); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := query[string](t, conn, sessions); after != before {
		t.Errorf("the sessions were %s and are %s", before, after)
	}
	cancel()
	running.Wait()
	p.Close()
	if text.Len() > 0 {
		t.Errorf("the log has:\n%s", text.String())
	}
}

func TestPoolerInTransactionModeIsRefusedByName(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pooled := as(relayRole, pgtest.Pooler(t, as(relayRole, conn), "transaction"))
	s, err := Open(t.Context(), Options{ConnString: pooled})
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, errPooler) || !strings.Contains(err.Error(), "pool by session") {
		t.Errorf("opening gave %v, want the pooler by name and the remedy", err)
	}
	r, err := Probe(t.Context(), pooled)
	if err != nil || r.Pooler != "transaction" || !strings.Contains(r.Remedy(), "pool by session") {
		t.Errorf("the probe gave %+v, %v", r, err)
	}
	// The sessions belong to others as well: nothing of ours may stay in them.
	if path := query[string](t, pooled+" default_query_exec_mode=simple_protocol",
		"SHOW search_path"); path != `"$user", public` {
		t.Errorf("the search_path of a pooled session is %s", path)
	}
}

func TestPoolerInSessionModeIsUsed(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pooled := pgtest.Pooler(t, as(relayRole, conn), "session")
	s := open(t, pooled, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); len(got) != 2 {
		t.Errorf("drained %v, want 1 and 2", got)
	}
	if r, err := Probe(t.Context(), as(relayRole, pooled)); err != nil || r.Pooler != "session" ||
		r.Remedy() != "" {
		t.Errorf("the probe gave %+v, %v", r, err)
	}
}

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

func TestUsedUpNumbersMakeTheStoreUnusableByName(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]string{
		"the sequence": `ALTER SEQUENCE proton_queue_id_seq RESTART WITH 2147483646`,
		"the column": `ALTER SEQUENCE proton_queue_id_seq AS bigint MAXVALUE 9223372036854775807 RESTART WITH ` +
			`2147483646`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := hubDatabase(t)
			pgtest.SQL(t, conn, plant)
			s := open(t, conn, queue.Limits{})
			storetest.Put(t, s, storetest.Unsent(1, 2)...)
			_, err := s.Put(t.Context(), storetest.Unsent(3, 5), nil)
			if !errors.Is(err, errUsedUp) || !strings.Contains(err.Error(), "RESTART") {
				t.Errorf("put gave %v, want that the numbers are used up, and the remedy", err)
			}
			if dead := storetest.List(t, s, inspect.DeadBox, inspect.ListOptions{}); len(dead) != 0 {
				t.Errorf("%d messages became dead letters", len(dead))
			}
			pgtest.SQL(t, conn, `ALTER SEQUENCE proton_queue_id_seq RESTART`)
			storetest.Put(t, s, storetest.Unsent(3, 5)...)
			if got := storetest.Numbers(storetest.Drained(t, s)); len(got) != 5 {
				t.Errorf("drained %v, want 1 to 5", got)
			}
		})
	}
}

func TestRowsWithTimesWithoutAFormAreListed(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	pgtest.SQL(t, conn, `INSERT INTO proton_queue (created_ts, address, props, body) VALUES
		('infinity', 'a', '{}', '1'), ('-infinity', 'a', '{}', '1'), (NULL, 'a', '{}', '1'),
		('20000-01-01', 'a', '{}', '1'), ('4000-01-01 BC', 'a', '{}', '1')`)
	if got := storetest.Drained(t, s); len(got) != 6 {
		t.Fatalf("drained %d messages, want 6", len(got))
	}
	pgtest.SQL(t, conn, `INSERT INTO koji_relay.dead_letter (message_id, died, body, reason)
		SELECT md5(n::text), d::timestamptz, '1', ''
		FROM generate_series(1, 400) n, unnest(ARRAY['infinity', '-infinity', 'now']) WITH ORDINALITY AS v(d, i)
			WHERE n % 3 = i - 1;
		INSERT INTO koji_relay.outbox (commit, event, created, callback, kwargs)
		VALUES ('`+commitID(1)+`', 0, '-infinity', 'postTag', '{}'),
			('`+commitID(2)+`', 0, 'infinity', 'postTag', '{}')`)
	for _, newest := range []bool{false, true} {
		if got := storetest.List(t, s, inspect.QueueBox, inspect.ListOptions{Newest: newest}); len(got) != 6 {
			t.Errorf("the list has %d items, want 6", len(got))
		}
		if got := storetest.List(t, s, inspect.DeadBox, inspect.ListOptions{Newest: newest}); len(got) != 400 {
			t.Errorf("the list has %d dead letters, want 400", len(got))
		}
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Depth != 6 {
		t.Errorf("stats %+v, %v", st, err)
	}
	defer func() { // the two that are older than any age
		pass, err := s.BeginDrain(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer pass.End(true)
		if done, err := pass.Expire(t.Context(), queue.Expiry{MaxAge: time.Hour}); err != nil ||
			done.Messages["a"] != 2 {
			t.Errorf("expired %v, %v; want 2", done.Messages, err)
		}
	}()
	var text bytes.Buffer
	if err := queue.Export(t.Context(), s, &text); err != nil || strings.Count(text.String(), "\n") != 406 {
		t.Errorf("the export has %d lines, %v; want 406", strings.Count(text.String(), "\n"), err)
	}
}

func TestProbeNoticesThatNothingCanBeWritten(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	name := query[string](t, conn, "SELECT current_database()")
	for plant, repair := range map[string]string{
		"ALTER DATABASE " + name +
			" SET default_transaction_read_only = on": "ALTER DATABASE " + name +
			" RESET default_transaction_read_only",
		"ALTER SEQUENCE proton_queue_id_seq RESTART WITH 2147483647; " +
			"SELECT nextval('proton_queue_id_seq')": "ALTER SEQUENCE proton_queue_id_seq RESTART",
		fmt.Sprintf("REVOKE INSERT ON proton_queue FROM %q",
			relayRole): fmt.Sprintf("GRANT INSERT ON proton_queue TO %q", relayRole),
	} {
		pgtest.SQL(t, conn, plant)
		s.pool.Reset() // new sessions
		if err := s.Probe(t.Context()); err == nil {
			t.Errorf("%s: the probe found nothing", plant)
		}
		pgtest.SQL(t, conn+" options='-c default_transaction_read_only=off'", repair)
		s.pool.Reset()
		if err := s.Probe(t.Context()); err != nil {
			t.Errorf("%s: after %s the probe gave %v", plant, repair, err)
		}
	}
}

// The status page asks every second or two: that must cost no more the longer the queue is.
func TestLongQueueIsNotCountedAllTheTime(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	count := func() inspect.Statistics {
		t.Helper()
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	fill(t, conn, 1, 10, "NULL")
	first := count()
	fill(t, conn, 11, statsLong, "NULL")
	if st := count(); first.Depth != 10 || st.Depth != statsLong {
		t.Fatalf("a short queue is counted as %d, a long one then as %d", first.Depth, st.Depth)
	}
	s.counted.note(count(), time.Now(), time.Hour) // as if that had taken long
	fill(t, conn, statsLong+1, statsLong+5, "NULL")
	if st := count(); st.Depth != statsLong {
		t.Errorf("the count is %d, want the last one, of %d", st.Depth, statsLong)
	}
	if _, err := s.Drop(t.Context(), inspect.QueueBox, inspect.Selection{IDs: []string{"none"}}); err != nil {
		t.Fatal(err)
	}
	if st := count(); st.Depth != statsLong+5 {
		t.Errorf("after an administrator's change the count is %d, want a new one, %d", st.Depth, statsLong+5)
	}
}
