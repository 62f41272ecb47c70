package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestOldConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	s := open(t, hubDatabase(t), queue.Limits{})
	if life := s.pool.Config().MaxConnLifetime; life <= 0 || life > 10*time.Minute {
		t.Errorf("connections live for %v", life)
	}
}

// At max_connections, or a limit of the role, a put takes its turn on a connection that is there.
func TestPutWaitsForAConnectionWhereTheServerHasNoRoomForMore(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	held, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	pgtest.SQL(t, conn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 1', current_database());
		END $$`)
	put := make(chan error, 1)
	go func() {
		_, err := s.Put(t.Context(), storetest.Unsent(0, 1), nil)
		put <- err
	}()
	select {
	case err := <-put:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(10 * longPause):
	}
	held.Release()
	if err := <-put; err != nil {
		t.Errorf("with a free connection: %v", err)
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
	s.counted.note(count(), statsLong, time.Now(), time.Hour) // as if that had taken long
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
