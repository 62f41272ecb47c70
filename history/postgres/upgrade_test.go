package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
	queue "koji-relay/queue/postgres"
	steps "koji-relay/queue/schema"
)

// schemaOf is schema koji_relay as it was in an older version, with the grants that were needed then.
func schemaOf(version int) string {
	var b strings.Builder
	b.WriteString(`DO $$ BEGIN CREATE ROLE ` + relayRole +
		` LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
		CREATE TABLE proton_queue (id serial PRIMARY KEY, created_ts timestamptz, address text, props json,
			body json);
		CREATE SCHEMA koji_relay;`)
	for i, step := range steps.Steps[:version] {
		fmt.Fprintf(&b, "%s; INSERT INTO koji_relay.version (version) VALUES (%d);", step, i+1)
	}
	fmt.Fprintf(&b, `GRANT USAGE ON SCHEMA koji_relay TO %[1]s;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA koji_relay TO %[1]s;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA koji_relay TO %[1]s;`, relayRole)
	return b.String()
}

func connect(t *testing.T, conn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func number(t *testing.T, c *pgx.Conn, sql string) (n int) {
	t.Helper()
	if err := c.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The upgrade to version 9 has worked through the days that are over before it waits for those who record,
// or they for it. Afterwards each day has the indexes of a new one.
func TestUpgradeHoldsUpRecordingForTodayOnly(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schemaOf(8))
	s := open(t, conn)
	storetest.Fill(t, 2000, func(b *history.Batch) error { return s.Append(t.Context(), b) })
	look := connect(t, conn)
	past := number(t, look, `SELECT count(*) FROM koji_relay.history_day
		WHERE day < (now() AT TIME ZONE 'UTC')::date`)

	recording, err := connect(t, conn).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = recording.Exec(t.Context(), "LOCK TABLE ONLY koji_relay.history_message IN ROW EXCLUSIVE MODE")
	if err != nil {
		t.Fatal(err)
	}
	upgrade, err := queue.OpenSchema(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer upgrade.Close()
	upgraded := make(chan error, 1)
	go func() {
		from, to, err := upgrade.Upgrade(t.Context())
		if err == nil && (from != 8 || to != steps.Version()) {
			err = fmt.Errorf("upgraded from %d to %d", from, to)
		}
		upgraded <- err
	}()
	for deadline := time.Now().Add(time.Minute); number(t, look, `SELECT count(*) FROM pg_locks
		WHERE NOT granted AND relation = 'koji_relay.history_message'::regclass`) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the upgrade does not wait for who records")
		}
	}
	built := number(t, look, `SELECT count(DISTINCT relation) FROM pg_locks
		WHERE granted AND mode = 'ShareLock' AND relation::regclass::text LIKE 'koji_relay.history_message_2%'`)
	if past < 6 || built != past {
		t.Errorf("it waits, and has begun with %d days of %d", built, past)
	}
	if err := recording.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-upgraded; err != nil {
		t.Fatal(err)
	}

	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(1, time.Now().Add(96*time.Hour))) // a new day
	kinds := number(t, look, `SELECT count(DISTINCT indexes) FROM (
		SELECT array_agg(columns ORDER BY columns) AS indexes
		FROM pg_index JOIN pg_inherits ON inhrelid = indrelid,
			regexp_replace(pg_get_indexdef(indexrelid), '^.* USING', '') AS columns
		WHERE inhparent = 'koji_relay.history_message'::regclass AND indisvalid GROUP BY indrelid) days`)
	if kinds != 1 {
		t.Errorf("the days have %d different sets of indexes", kinds)
	}
	found := 0
	err = history.Search(t.Context(), s, inspect.HistoryQuery{Build: "package-0", Tag: "f*"},
		func(*inspect.HistoryMessage) error { found++; return nil })
	if err != nil || found == 0 {
		t.Errorf("found %d messages, %v", found, err)
	}
}

// Two conditions that each hold for a twelfth of the messages, and together for none, are compared in an
// index.
func TestConditionsThatNeverMeetReadNoRows(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	const rows = 12_000
	appendTwelfths(t, s, rows)
	pgtest.SQL(t, conn, "VACUUM ANALYZE")
	c := connect(t, conn+" user="+relayRole)
	if _, err := c.Exec(t.Context(), sessionSettings); err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]history.Query{
		"build and tag":     {HistoryQuery: inspect.HistoryQuery{Build: "package-1"}, Tags: []string{"f42"}},
		"build and tags":    {HistoryQuery: inspect.HistoryQuery{Build: "package-1"}, Tags: []string{"f42", "f43"}},
		"user and tag":      {HistoryQuery: inspect.HistoryQuery{User: "user-1"}, Tags: []string{"f42"}},
		"skipped and build": {HistoryQuery: inspect.HistoryQuery{Build: "package-1", Fate: inspect.Skipped}},
		"skipped and tag":   {HistoryQuery: inspect.HistoryQuery{Fate: inspect.Skipped}, Tags: []string{"f41"}},
		"skipped and user":  {HistoryQuery: inspect.HistoryQuery{User: "user-1", Fate: inspect.Skipped}},
	} {
		plan, text := explain(t, c, &q, false)
		if read := plan.removed(); read > rows/100 || plan.Rows != 0 {
			t.Errorf("%s: %v rows were read for nothing, %v found:\n%s", name, read, plan.Rows, text)
		}
	}
}

// appendTwelfths stores messages with twelve packages, tags and users, each with one of the others. Those
// of one of them are skipped. Four have the same time.
func appendTwelfths(t *testing.T, s *Store, rows int) {
	t.Helper()
	b := &history.Batch{Writer: "test"}
	for i := range rows {
		m := storetest.Tagged(i, time.Now().Add(-time.Duration(rows-i/4)*time.Second))
		row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Accepted})
		if err != nil {
			t.Fatal(err)
		}
		n := i % 12
		if n == 2 {
			row.First.Kind = inspect.Skipped
		}
		row.Keys = history.Keys{Package: fmt.Sprintf("package-%d", n), Build: fmt.Sprintf("package-%d-1-%d", n, i),
			Tag: fmt.Sprintf("f%d", 40+n), User: fmt.Sprintf("user-%d", n)}
		b.Rows = append(b.Rows, row)
	}
	if err := s.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func explain(t *testing.T, c *pgx.Conn, q *history.Query, sortsAll bool) (plan *planNode, text []byte) {
	t.Helper()
	sql, args := findSQL(q, history.Ref{}, 51, sortsAll)
	err := c.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+sql, args...).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal(text, &plans); err != nil || len(plans) != 1 {
		t.Fatal(err, plans)
	}
	return &plans[0].Plan, text
}

type planNode struct {
	Rows     float64    `json:"Actual Rows"`
	Removed  float64    `json:"Rows Removed by Filter"`
	Fetches  *float64   `json:"Heap Fetches"` // of a scan of the index only
	Children []planNode `json:"Plans"`
}

// removed is how many rows of the table a plan read, and did not give.
func (p *planNode) removed() float64 {
	n := p.Removed
	if p.Fetches != nil {
		n = *p.Fetches
	}
	for i := range p.Children {
		n += p.Children[i].removed()
	}
	return n
}

// most is how many rows the largest part of a plan gave.
func (p *planNode) most() float64 {
	n := p.Rows
	for i := range p.Children {
		n = max(n, p.Children[i].most())
	}
	return n
}

// PostgreSQL 12 reads the messages of some times, and gives what later ones do.
func TestServerThatSortsAllReadsFew(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	const rows = 12_000
	appendTwelfths(t, s, rows)
	pgtest.SQL(t, conn, "VACUUM ANALYZE")
	c := connect(t, conn+" user="+relayRole)
	// With so few rows one pass over all is as good as a thousand looks into an index.
	_, err := c.Exec(t.Context(), sessionSettings+`; SELECT set_config(name, 'off', false)
		FROM pg_settings WHERE name IN ('enable_incremental_sort', 'enable_hashjoin', 'enable_mergejoin')`,
		pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]history.Query{
		"newest":   {},
		"oldest":   {HistoryQuery: inspect.HistoryQuery{OldestFirst: true}},
		"tag":      {Tags: []string{"f41"}},
		"tags":     {Tags: []string{"f41", "f42"}},
		"user":     {HistoryQuery: inspect.HistoryQuery{User: "user-1"}, Tags: []string{"f41", "f50"}},
		"build":    {HistoryQuery: inspect.HistoryQuery{Build: "package-3"}},
		"skipped":  {HistoryQuery: inspect.HistoryQuery{Fate: inspect.Skipped}},
		"dead":     {HistoryQuery: inspect.HistoryQuery{Fate: inspect.Dead}},
		"accepted": {HistoryQuery: inspect.HistoryQuery{Fate: inspect.Accepted}, Addresses: []string{"build.tag"}},
	} {
		if plan, text := explain(t, c, &q, true); plan.most() > 2*nearby {
			t.Errorf("%s: %v rows were read:\n%s", name, plan.most(), text)
		}
		var after history.Ref
		for range 3 { // pages end within the four messages of a time
			var pages [2][]history.Ref
			for i, sortsAll := range []bool{false, true} {
				sql, args := findSQL(&q, after, 51, sortsAll)
				rows, _ := c.Query(t.Context(), sql, args...)
				if pages[i], err = pgx.CollectRows(rows, pgx.RowToStructByPos[history.Ref]); err != nil {
					t.Fatal(name, err)
				}
			}
			if !slices.Equal(pages[0], pages[1]) || name != "dead" && len(pages[0]) != 51 {
				t.Errorf("%s: %d messages, want %d", name, len(pages[1]), len(pages[0]))
			}
			if len(pages[0]) > 0 {
				after = pages[0][len(pages[0])-1]
			}
		}
	}
}
