package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
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
	// On a busy machine the first session of a new database takes its time.
	s, err := Open(Options{ConnString: conn + " connect_timeout=60 user=" + relayRole})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// One text that the encoding of the database cannot hold costs no record of other messages, nor of its own.
func TestDatabaseOfAnotherEncodingHoldsTheHistory(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.EncodedDatabase(t, "LATIN1", schema(t)))
	b := history.Batch{Writer: "one",
		Gaps: []inspect.Gap{{Began: time.Now(), Ended: time.Now(), Reason: "日本"}}}
	for n := range 2 {
		m := storetest.Tagged(n, time.Now())
		if n == 0 {
			for i := range m.Props {
				if m.Props[i].Key == "tag" {
					m.Props[i].Value = "f42-日本"
				}
			}
		}
		row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Queued,
			Reason: "für “immer”"})
		if err != nil {
			t.Fatal(err)
		}
		b.Rows = append(b.Rows, row)
		b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: m.Created,
			Step: inspect.Step{Time: m.Created, Kind: inspect.Accepted, Reason: "“ja”"}})
	}
	if err := s.Append(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	query := inspect.HistoryQuery{Content: true}
	err := history.Search(t.Context(), s, query, func(m *inspect.HistoryMessage) error {
		found[m.MessageID] = m.Fate == inspect.Accepted && m.Unreadable == ""
		return nil
	})
	if err != nil || !found[b.Rows[0].ID] || !found[b.Rows[1].ID] {
		t.Errorf("found %v, %v", found, err)
	}
	if b.Rows[0].Keys.Tag != "f42-日本" || b.Steps[0].Reason != "“ja”" {
		t.Errorf("the batch was changed: %+v %+v", b.Rows[0].Keys, b.Steps[0])
	}
}

func TestHistoryWorksWhateverTheDatabaseIsSetTo(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	pgtest.AlterDatabase(t, conn, "client_encoding = 'LATIN1'", "standard_conforming_strings = off",
		"DateStyle = 'German'", "TimeZone = 'Asia/Kolkata'", "default_transaction_isolation = 'serializable'",
		"work_mem = '64kB'", "temp_file_limit = 0", "lock_timeout = '1ms'")
	s := open(t, conn)
	m := storetest.Tagged(1, time.Now())
	row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Accepted,
		Reason: "für immer"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), &history.Batch{Writer: "one", Rows: []history.Row{row}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tidy(t.Context(), time.Hour, 1<<30); err != nil {
		t.Error(err)
	}
	var isolation string
	if err := s.pool.QueryRow(t.Context(), "SHOW transaction_isolation").Scan(&isolation); err != nil ||
		isolation != "read committed" {
		t.Errorf("the isolation is %s, %v", isolation, err)
	}
	n := 0
	err = history.Search(t.Context(), s, inspect.HistoryQuery{}, func(m *inspect.HistoryMessage) error {
		n++
		if last := m.Steps[len(m.Steps)-1]; last.Reason != "für immer" {
			t.Errorf("its last step is %+v", last)
		}
		return nil
	})
	if err != nil || n != 1 {
		t.Errorf("found %d messages, %v", n, err)
	}
}

func TestOneRelayOfAFleetWorksOnAReplay(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Database(t, schema(t)))
	var ids []int64
	add := func() inspect.Replay {
		r := inspect.Replay{State: inspect.ReplayRuns}
		if err := s.AddReplay(t.Context(), &r, nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
		return r
	}
	first := add()
	add()
	claims := func(writer string, lease time.Duration, want ...int64) {
		t.Helper()
		claimed, err := s.ClaimReplays(t.Context(), writer, lease)
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for i := range claimed {
			got = append(got, claimed[i].ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s claimed %v, want %v", writer, got, want)
		}
	}
	claims("one", time.Minute, ids...)
	claims("two", time.Minute)
	claims("one", time.Minute, ids...)
	add()
	claims("two", time.Minute, ids[2]) // what nobody has
	claims("one", -time.Second, ids[:2]...)
	claims("two", time.Minute, ids...) // and what the other one has lost
	claims("one", time.Minute)
	if runs, err := s.SaveReplay(t.Context(), &first, "one"); err != nil || runs {
		t.Errorf("a relay that lost its replay may save it: %v, %v", runs, err)
	}
	first.State = inspect.ReplayDone
	if runs, err := s.SaveReplay(t.Context(), &first, "two"); err != nil || !runs {
		t.Errorf("the relay that has it may not save it: %v, %v", runs, err)
	}
	claims("two", time.Minute, ids[1:]...)
}

// Three relays claim and save at once.
func TestNoReplayIsClaimedByTwoRelays(t *testing.T) {
	t.Parallel()
	s := open(t, pgtest.Database(t, schema(t)))
	const replays, rounds = 20, 30
	for range replays {
		if err := s.AddReplay(t.Context(), &inspect.Replay{State: inspect.ReplayRuns}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex // guards has
	has := map[int64]string{}
	var relays sync.WaitGroup
	for _, writer := range []string{"one", "two", "three"} {
		relays.Go(func() {
			for range rounds {
				claimed, err := s.ClaimReplays(t.Context(), writer, time.Hour)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range claimed {
					id := claimed[i].ID
					mu.Lock()
					if has[id] != "" && has[id] != writer {
						t.Errorf("replay %d is claimed by %s and %s", id, has[id], writer)
					}
					has[id] = writer
					mu.Unlock()
					if runs, err := s.SaveReplay(t.Context(), &claimed[i], writer); err != nil || !runs {
						t.Errorf("%s saves replay %d: %v, %v", writer, id, runs, err)
					}
				}
			}
		})
	}
	relays.Wait()
	if len(has) != replays {
		t.Errorf("%d of %d replays were claimed", len(has), replays)
	}
}

// A connection that broke is tried once more; what the first try left must not be taken for a replay.
func TestNoReplayIsClaimedAfterAConnectionBroke(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	if got, err := s.ClaimReplays(t.Context(), "one", time.Minute); len(got) != 0 || err != nil {
		t.Fatalf("claimed %v, %v although there is no replay", got, err)
	}
	pgtest.SQL(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND usename = '`+relayRole+`'`)
	if got, err := s.ClaimReplays(t.Context(), "one", time.Minute); len(got) != 0 || err != nil {
		t.Errorf("claimed %v, %v although there is no replay", got, err)
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) history.Store { return open(t, pgtest.Database(t, schema(t))) })
}

// A standby, and a database that an administrator made read-only, can be searched. What they refuse is said
// with what to do.
func TestAServerThatTakesNoChanges(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	m := storetest.Tagged(1, time.Now().UTC().Truncate(time.Second))
	storetest.Append(t, s, inspect.Accepted, m)
	r := inspect.Replay{State: inspect.ReplayRuns}
	if err := s.AddReplay(t.Context(), &r, nil); err != nil {
		t.Fatal(err)
	}
	pgtest.SQL(t, conn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',
		current_database()); END $$; SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND usename = '`+relayRole+`'`)
	ctx := t.Context()
	for what, call := range map[string]func() error{
		"Append":       func() error { return s.Append(ctx, &history.Batch{Writer: "one"}) },
		"Begin":        func() error { _, err := s.Begin(ctx, "one"); return err },
		"End":          func() error { return s.End(ctx, "one") },
		"Tidy":         func() error { _, err := s.Tidy(ctx, time.Hour, 1); return err },
		"AddReplay":    func() error { return s.AddReplay(ctx, &r, nil) },
		"ClaimReplays": func() error { _, err := s.ClaimReplays(ctx, "one", time.Minute); return err },
		"SaveReplay":   func() error { _, err := s.SaveReplay(ctx, &r, "one"); return err },
		"CancelReplay": func() error { _, err := s.CancelReplay(ctx, r.ID); return err },
	} {
		err := call()
		if !errors.Is(err, libpq.ErrReadOnly) || !strings.Contains(err.Error(), "connect to the primary") {
			t.Errorf("%s says %v", what, err)
		}
	}
	if shown, err := history.Show(ctx, s, m.ID); err != nil || shown.MessageID != m.ID {
		t.Errorf("Show gives %v", err)
	}
	if all, err := s.Replays(ctx); err != nil || len(all) != 1 {
		t.Errorf("Replays gives %v, %v", all, err)
	}
	if _, err := s.Gaps(ctx, time.Time{}, time.Time{}); err != nil {
		t.Errorf("Gaps gives %v", err)
	}
}

// A query on the oldest day that does not end holds up neither the tidying nor those who write and search.
func TestDayIsNotDroppedUnderAQuery(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(1, today.Add(-10*24*time.Hour)),
		storetest.Tagged(2, today))
	reader, err := pgx.Connect(t.Context(), conn+" user="+relayRole)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close(context.Background())
	tx, err := reader.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT count(*) FROM koji_relay.history_message"); err != nil {
		t.Fatal(err)
	}
	usage, err := s.Tidy(t.Context(), 7*24*time.Hour, 1<<40)
	if code(err) != "55P03" || len(usage.Dropped) != 0 { // lock_not_available
		t.Fatalf("under a query it dropped %v, error %v", usage.Dropped, err)
	}
	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(3, today)) // nobody waits for the reader
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if usage, err = s.Tidy(t.Context(), 7*24*time.Hour, 1<<40); err != nil || len(usage.Dropped) != 1 {
		t.Errorf("after the query it dropped %v, error %v", usage.Dropped, err)
	}
}

// An administrator asks the view for days: other tables of the database are no days.
func TestDaysCanBeAskedFor(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t)+`
		CREATE TABLE public.koji_task_2026113 (n integer); CREATE TABLE public.koji_task_20269999 (n integer);
		CREATE TABLE koji_relay.history_message_kept PARTITION OF koji_relay.history_message
			FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');`)
	s := open(t, conn)
	if _, err := s.Tidy(t.Context(), 24*time.Hour, 1<<40); err != nil { // makes two days
		t.Fatal(err)
	}
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for condition, want := range map[string]int{"true": 2, "day = (now() AT TIME ZONE 'UTC')::date": 1,
		"day > (now() AT TIME ZONE 'UTC')::date": 1, "day < '2026-01-01'": 0, "bytes < 0": 0} {
		var n int
		err := c.QueryRow(t.Context(), "SELECT count(*) FROM koji_relay.history_day WHERE "+condition).Scan(&n)
		if err != nil || n != want {
			t.Errorf("days where %s: %d, %v; want %d", condition, n, err, want)
		}
	}
}

// Of several words the newest messages are looked through first; what is not enough there is found by the
// index of each word. Both ways give the same messages, and a page goes on where the last one ended.
func TestSeveralWordsAreFoundNearAndFar(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	storetest.Fill(t, 6*nearby, func(b *history.Batch) error { return s.Append(t.Context(), b) })
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for name, choice := range map[string]string{
		"everywhere": "SELECT DISTINCT tag FROM koji_relay.history_message WHERE tag LIKE 'f4%'",
		"seldom":     "SELECT DISTINCT tag FROM koji_relay.history_message WHERE tag LIKE 'f40-%7'",
		"only long ago": `SELECT tag FROM koji_relay.history_message WHERE tag <> '' GROUP BY tag
			HAVING max(at) < (SELECT min(at) + (max(at) - min(at)) * 0.7 FROM koji_relay.history_message)`,
	} {
		rows, _ := c.Query(t.Context(), choice)
		words, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(words) < 2 {
			t.Fatalf("%s: %d words, %v", name, len(words), err)
		}
		for i, user := range []string{"", "", "user-0", "user-0", "user-400", "user-400"} {
			oldest := i%2 == 1
			q := &history.Query{HistoryQuery: inspect.HistoryQuery{OldestFirst: oldest, User: user}, Tags: words}
			rows, _ := c.Query(t.Context(), `SELECT at, message_id::text FROM koji_relay.history_message m
				WHERE tag = ANY($1) AND ($2 = '' OR username = $2) `+order(q, "at"), words, user)
			want, err := pgx.CollectRows(rows, pgx.RowToStructByPos[history.Ref])
			if err != nil {
				t.Fatal(err)
			}
			var got []history.Ref
			var after history.Ref
			for {
				page, err := s.Find(t.Context(), q, after, 200)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
				if len(page) < 200 {
					break
				}
				after = page[len(page)-1]
			}
			if !slices.Equal(got, want) || user == "" && len(want) == 0 {
				t.Errorf("%s, %s, oldest first %v: %d messages, want %d", name, user, oldest, len(got), len(want))
			}
		}
	}
}
