package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func query[T any](tb testing.TB, connString, sql string, args ...any) T {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), connString)
	if err != nil {
		tb.Fatal(err)
	}
	defer closeConn(conn)
	var value T
	if err := conn.QueryRow(tb.Context(), sql, args...).Scan(&value); err != nil {
		tb.Fatal(err)
	}
	return value
}

// protonmsgInsert stores rows as the plugin does.
func protonmsgInsert(tb testing.TB, conn string, first, last int) {
	tb.Helper()
	pgtest.SQL(tb, conn, fmt.Sprintf(`INSERT INTO proton_queue (address, props, body)
		SELECT 'build.tag', format('{"type": "Tag", "n": %%s}', i)::json, format('{"n": %%s,  "f": 1.0}', i)::json
		FROM generate_series(%d, %d) i`, first, last))
}

func props(entries []queue.Entry) []int {
	list := []int{}
	for _, e := range entries {
		for _, p := range e.Message.Props {
			if p.Key == "n" {
				list = append(list, int(p.Value.(int64)))
			}
		}
	}
	return list
}

func TestRowsOfProtonmsgDrainAmongOurs(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	protonmsgInsert(t, conn, 1, 3)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(4, 5)...)
	protonmsgInsert(t, conn, 6, 7)
	got := storetest.Drained(t, s)
	if n := props(got); !slices.Equal(n, []int{1, 2, 3, 4, 5, 6, 7}) {
		t.Fatalf("drained %v, want 1 to 7", n)
	}
	first := got[0].Message
	if first.Body != `{"n": 1,  "f": 1.0}` || first.Address != "build.tag" || first.Created.IsZero() {
		t.Errorf("a row of protonmsg came as %+v", first)
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-`).MatchString(first.ID) {
		t.Errorf("its message-id %q is no UUIDv5", first.ID)
	}
	// Another process, later, must find the same ids.
	again := storetest.Drained(t, open(t, conn, queue.Limits{}))
	for i := range got {
		if got[i].Message.ID != again[i].Message.ID {
			t.Errorf("the id of row %d changed from %s to %s", i, got[i].Message.ID, again[i].Message.ID)
		}
	}
	for _, e := range got {
		storetest.Settle(t, s, queue.Settlement{ID: e.Message.ID, Action: queue.Forget})
	}
	if n := query[int](t, conn, "SELECT count(*) FROM proton_queue"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

func TestRowOfProtonmsgWithoutTimeDrains(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `INSERT INTO proton_queue (created_ts, address, props, body) VALUES
		(NULL, 'a', '{"n": 1}', '1'), ('infinity', 'a', '{"n": 2}', '1'), (now(), 'a', '[]', '1'),
		(now(), 'a', '{"n": 4}', '1')`)
	s := open(t, conn, queue.Limits{})
	got := storetest.Drained(t, s)
	if n := props(got); !slices.Equal(n, []int{1, 2, 4}) || got[2].Unreadable == "" {
		t.Fatalf("drained %+v, want 1, 2, an unreadable row, 4", got)
	}
	for _, e := range got {
		storetest.Settle(t, s, queue.Settlement{ID: e.Message.ID, Action: queue.Bury, Reason: e.Unreadable})
	}
	if n := len(storetest.List(t, s, inspect.DeadBox, inspect.ListOptions{})); n != 4 {
		t.Errorf("%d dead letters, want 4", n)
	}
}

// TestProtonmsgDrainsWhatWePut makes the plugin's own statements.
func TestProtonmsgDrainsWhatWePut(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	if body := query[string](t, conn,
		`SELECT body::text FROM proton_queue ORDER BY id LIMIT 1`); body != storetest.Message(1).Body {
		t.Errorf("protonmsg reads the body %q, want %q", body, storetest.Message(1).Body)
	}
	if n := query[int](t, conn, `SELECT (props->>'n')::int FROM proton_queue ORDER BY id LIMIT 1`); n != 1 {
		t.Errorf("protonmsg reads the property n as %d, want 1", n)
	}
	pgtest.SQL(t, conn, `DELETE FROM proton_queue WHERE id IN (SELECT min(id) FROM proton_queue)`)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{2}) {
		t.Errorf("drained %v after protonmsg drained 1, want 2", got)
	}
	if n := query[int](t, conn, `SELECT count(*) FROM koji_relay.delivery`); n != 1 {
		t.Errorf("%d rows of delivery are left, want 1: the orphan is swept", n)
	}
}

func TestRowCommittedLateIsDrained(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	slow, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(slow)
	tx, err := slow.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(),
		`INSERT INTO proton_queue (address, props, body) VALUES ('a', '{"n": 1}', '1')`); err != nil {
		t.Fatal(err)
	}
	storetest.Put(t, s, storetest.Unsent(2, 3)...)
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pass.Next(t.Context(), storetest.TestLimits); err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	storetest.Settle(t, s, queue.Settlement{ID: storetest.Message(2).ID, Action: queue.Forget},
		queue.Settlement{ID: storetest.Message(3).ID, Action: queue.Forget})
	pass.End(true)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := props(storetest.Drained(t, s)); !slices.Equal(got, []int{1}) {
		t.Errorf("drained %v, want 1, which was committed behind the cursor", got)
	}
}

func TestDrainLockIsTheOneOfProtonmsg(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	plugin, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(plugin)
	lock := func() bool {
		tx, err := plugin.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		var name string
		err = tx.QueryRow(t.Context(),
			`SELECT name FROM locks WHERE name = 'protonmsg-plugin' FOR UPDATE SKIP LOCKED`).Scan(&name)
		return err == nil
	}
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lock() {
		t.Error("protonmsg got the lock during our pass")
	}
	pass.End(true)
	if !lock() {
		t.Error("protonmsg does not get the lock after our pass")
	}
	if _, err := plugin.Exec(t.Context(),
		`BEGIN; SELECT name FROM locks WHERE name = 'protonmsg-plugin' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginDrain(t.Context()); !errors.Is(err, queue.ErrBusy) {
		t.Errorf("a pass during protonmsg's drain gave %v, want ErrBusy", err)
	}
}

func TestRelaysShareAnAdvisoryLockWhereKojiHasNone(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]string{
		"no table": relaySchema,
		"no row":   kojiTables + "; DELETE FROM locks;" + relaySchema,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.Database(t, setup)
			a, b := open(t, conn, queue.Limits{}), open(t, conn, queue.Limits{})
			pass, err := a.BeginDrain(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.BeginDrain(t.Context()); !errors.Is(err, queue.ErrBusy) {
				t.Errorf("the second relay got %v, want ErrBusy", err)
			}
			pass.End(true)
			if pass, err = b.BeginDrain(t.Context()); err != nil {
				t.Fatal(err)
			}
			pass.End(true)
		})
	}
}

func TestLockOutlivesAShortIdleTimeoutOfTheServer(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET `+
		`idle_in_transaction_session_timeout = ''100ms''', current_database()); END $$`)
	s := open(t, conn, queue.Limits{})
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pass.End(true)
	began := time.Now()
	var oldest float64
	storetest.Eventually(t, "the lock was renewed", func() bool {
		age := query[float64](t, conn, `SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8
			FROM pg_stat_activity
			WHERE application_name = 'koji-relay' AND datname = current_database()
				AND state LIKE 'idle in transaction%'`)
		oldest = max(oldest, age)
		return time.Since(began) > renewEvery+500*time.Millisecond
	})
	if !pass.Held() {
		t.Error("the lock was lost")
	}
	if oldest == 0 || oldest > 10 {
		t.Errorf("the lock's transaction grew %.1f s old, want more than 0 and at most 10", oldest)
	}
}

func TestKilledLockSessionIsNoticedAndFreesTheLock(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pgtest.SQL(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = 'koji-relay'
		AND datname = current_database()`)
	storetest.Eventually(t, "the pass noticed", func() bool { return !pass.Held() })
	pass.End(false)
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{1}) {
		t.Errorf("drained %v, want 1", got)
	}
}

func TestStoreWorksAgainAfterTheServerWasKilled(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	cluster.Kill()
	began := time.Now()
	if _, err := s.Put(t.Context(), storetest.Unsent(3, 3), nil); err == nil ||
		!strings.Contains(err.Error(), "put 1 message in") {
		t.Errorf("put without a server gave %v, want an error that names it", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("that took %v", took)
	}
	cluster.Start(t)
	storetest.Put(t, s, storetest.Unsent(3, 3)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("drained %v, want 1, 2, 3", got)
	}
	cluster.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.Put(ctx, storetest.Unsent(4, 4), nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "put 1 message in") {
		t.Errorf("put to a frozen server gave %v, want a deadline that names it", err)
	}
	cluster.Signal(syscall.SIGCONT)
	storetest.Put(t, s, storetest.Unsent(4, 4)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{1, 2, 3, 4}) {
		t.Errorf("drained %v, want 1 to 4", got)
	}
}

func TestPutSurvivesThatTheServerEndedTheSessions(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	for n := range 3 {
		storetest.Put(t, s, storetest.Unsent(n, n)...)
		pgtest.SQL(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = 'koji-relay'
			AND datname = current_database()`)
	}
	storetest.Put(t, s, storetest.Unsent(3, 3)...)
}

func TestServerThatIsDownAtStartIsNoError(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	cluster.Kill()
	s := open(t, conn, queue.Limits{})
	if _, err := s.Put(t.Context(), storetest.Unsent(1, 1), nil); err == nil {
		t.Error("put without a server gave no error")
	}
	cluster.Start(t)
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
}

func TestOpenRefusesWhatWaitingDoesNotMend(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	plain := pgtest.Database(t, "CREATE TABLE other ()")
	newer := pgtest.Database(t, kojiTables+relaySchema+"INSERT INTO koji_relay.version (version) VALUES (9999);")
	for name, test := range map[string]struct{ conn, want string }{
		"not a connection string": {"host=a password=secret sslmode=maybe", "sslmode is invalid"},
		"no schema":               {plain, "run 'koji-relay db init'"},
		"newer schema":            {newer, "made by a newer koji-relay"},
		"no such database":        {conn + " dbname=nosuch", "nosuch"},
		"no such role":            {conn + " user=nosuch password=secret", "nosuch"},
	} {
		s, err := Open(t.Context(), Options{ConnString: test.conn})
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
			continue
		}
		if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v; want %q and no password", name, err, test.want)
		}
	}
}

// TestPutDoesNotWaitForTheDrain puts during a pass: its lock is not on the rows.
func TestPutDoesNotWaitForTheDrain(t *testing.T) {
	t.Parallel()
	s := open(t, hubDatabase(t), queue.Limits{})
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pass.End(true)
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	if got, err := pass.Next(t.Context(), storetest.TestLimits); err != nil || len(got) != 1 {
		t.Errorf("the pass got %v, %v; want what was put during it", got, err)
	}
}

func TestListenerHearsPutsOfOthersOnly(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	a, b := open(t, conn, queue.Limits{}), open(t, conn, queue.Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard, done := make(chan bool, 100), make(chan bool)
	go func() {
		defer close(done)
		a.ListenQueue(ctx, func() { heard <- true })
	}()
	<-heard // connected
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 2)+"; SELECT pg_notify('koji_relay', '')")
	storetest.Put(t, b, storetest.Unsent(1, 1)...)
	<-heard
	cancel()
	<-done
	if n := len(heard); n != 0 {
		t.Errorf("heard %d more: an insert into the outbox is no put", n)
	}
}

func TestRowsOfProtonmsgFoundBehindOursAreDrained(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	fill(t, conn, 1, 3*adoptWindow, "now() + interval '1 hour'") // more than one step of the walk
	protonmsgInsert(t, conn, 1, 150)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(200, 210)...)
	got := props(storetest.Drained(t, s))
	if len(got) != 161 || !slices.Equal(got[:11], []int{200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210}) {
		t.Errorf("drained %d messages beginning with %v, want ours at once and all 161", len(got),
			got[:min(11, len(got))])
	}
	// That pass was incomplete; the next one finds them in their place.
	if got := props(storetest.Drained(t, s)); len(got) != 161 || got[0] != 1 {
		t.Errorf("the second pass drained %d messages beginning with %v, want 161 from 1", len(got),
			got[:min(3, len(got))])
	}
}
