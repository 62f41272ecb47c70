package audit

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/fnmatch"
	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pgtest.Stop()
	os.Exit(code)
}

const auditRole = "koji_relay_test_audit"

// kojiTables are the columns of a hub's tables that audit reads, as Koji 1.35 has them.
const kojiTables = `
	CREATE TABLE events (id serial PRIMARY KEY, time timestamptz NOT NULL);
	CREATE TABLE package (id integer PRIMARY KEY, name text);
	CREATE TABLE tag (id integer PRIMARY KEY, name text);
	CREATE TABLE tag_config (tag_id integer, create_event integer, revoke_event integer);
	CREATE TABLE build (id integer PRIMARY KEY, pkg_id integer, version text, release text, state integer,
		completion_time timestamptz, promotion_time timestamptz);
	CREATE TABLE tag_listing (build_id integer, tag_id integer, create_event integer, revoke_event integer);
	CREATE TABLE task (id integer PRIMARY KEY, state integer, create_time timestamptz,
		completion_time timestamptz);
	CREATE TABLE repo (id integer PRIMARY KEY, state integer,
		creation_time timestamptz, state_time timestamptz);
	INSERT INTO events (time) SELECT now() - (1000 - n) * interval '1 minute'
		FROM generate_series(1, 1000) n; -- id n
	INSERT INTO package VALUES (1, 'bash'), (2, 'vim');
	INSERT INTO tag VALUES (1, 'f40'), (2, 'f40-rebuild'), (3, 'gone');
	INSERT INTO build VALUES (1, 1, '5.2', '1.fc40', 1, now() - interval '100 minutes', NULL),
		(2, 2, '9', '1', 3, now() - interval '90 minutes', NULL), (3, 2, '9', '2', 0, NULL, NULL),
		(4, 2, '9', '3', 2, now() - interval '30 days', NULL),
		(5, 1, '6', '1', 1, now() - interval '80 minutes', now());
	INSERT INTO tag_listing VALUES
		(1, 1, 900, 950), -- bash into f40 and out of it
		(1, 2, 901, NULL), -- into a tag that is excluded
		(1, 1, 960, 970), (1, 1, 970, NULL), -- tagged anew by force
		(5, 2, 975, 975), -- into a tag and out of it in one transaction
		(4, 1, 100, 980), -- the build was deleted
		(1, 3, 100, 981), -- the tag was deleted
		(2, 1, 100, 101); -- long ago
	INSERT INTO tag_config VALUES (3, 1, 981);
	INSERT INTO task SELECT n, CASE WHEN n = 1000 THEN 1 WHEN n % 3 = 0 THEN 5 ELSE 2 END,
		now() - (1000 - n) * interval '1 minute',
		now() - (1000 - n) * interval '1 minute' + interval '5 seconds' FROM generate_series(1, 1000) n;
	INSERT INTO repo VALUES (7, 1, now() - interval '50 minutes', now() - interval '40 minutes'),
		(8, 0, now() - interval '10 minutes', now());`

func facts(t *testing.T, setup string) []Fact {
	t.Helper()
	conn := pgtest.Database(t, setup+`;
		DO $$ BEGIN CREATE ROLE `+auditRole+` LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation
		THEN NULL; END $$;`+
		Grants(auditRole))
	hub, err := Open(t.Context(), conn+" user="+auditRole)
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	now := time.Now()
	all, err := hub.Facts(t.Context(), now.Add(-2*time.Hour), now)
	if err != nil {
		t.Fatal(err)
	}
	if begins, err := hub.Begins(t.Context()); err != nil || !begins.IsZero() {
		t.Errorf("without schema koji_relay the history begins %v, %v", begins, err)
	}
	return all
}

func count(all []Fact) map[string]int {
	n := map[string]int{}
	for _, f := range all {
		n[f.Kind.Callback]++
		if f.Silent != "" {
			n[f.Silent]++
		}
	}
	return n
}

func TestFactsAreThoseOfTheHubsTables(t *testing.T) {
	t.Parallel()
	all := facts(t, kojiTables)
	got := count(all)
	want := map[string]int{"postTag": 5, "postUntag": 5, "the build was deleted": 1,
		"it was tagged anew at once": 1,
		"the tag was deleted":        1, "postBuildStateChange": 3, "postRepoInit": 2, "postRepoDone": 1}
	for what, n := range want {
		if got[what] != n {
			t.Errorf("%s: %d, want %d", what, got[what], n)
		}
	}
	if n := got["postTaskStateChange"]; n < 118 || n > 121 {
		t.Errorf("%d tasks of 120 minutes, one each minute", n)
	}
	for _, f := range all {
		if f.Kind == Build && strings.HasPrefix(f.Build, "bash-6") && f.Draft != "bash-6-1,draft_5" {
			t.Errorf("the promoted build was %q before", f.Draft)
		}
	}
}

func TestAnOlderHubHasNoTimesOfRepos(t *testing.T) {
	t.Parallel()
	rename := strings.NewReplacer("creation_time timestamptz, state_time timestamptz",
		"x timestamptz, y timestamptz", "promotion_time timestamptz", "z timestamptz")
	old := rename.Replace(kojiTables)
	if got := count(facts(t, old)); got["postRepoInit"] != 0 || got["postTag"] != 5 {
		t.Errorf("got %v", got)
	}
}

func TestANewHubHasNoFacts(t *testing.T) {
	t.Parallel()
	tables, _, _ := strings.Cut(kojiTables, "INSERT")
	if all := facts(t, tables); len(all) != 0 {
		t.Errorf("got %v", all)
	}
}

// PostgreSQL knows nothing of the newest events: it counts a table anew when a tenth of it has changed. It
// must not take the newest for none, and then read tag_listing once for each of them: on a hub of 459,000
// events that took minutes.
func TestStatisticsThatAreOldDoNotMakeItSlow(t *testing.T) {
	t.Parallel()
	const taggings = 20_000
	for name, then := range map[string]string{"old": "ANALYZE", "none": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := pgtest.Database(t, `
				CREATE TABLE events (id serial PRIMARY KEY, time timestamptz NOT NULL) WITH (autovacuum_enabled = off);
				CREATE TABLE package (id integer PRIMARY KEY, name text) WITH (autovacuum_enabled = off);
				CREATE TABLE tag (id integer PRIMARY KEY, name text) WITH (autovacuum_enabled = off);
				CREATE TABLE tag_config (tag_id integer, create_event integer, revoke_event integer);
				CREATE TABLE build (id integer PRIMARY KEY, pkg_id integer, version text, release text, state integer,
					completion_time timestamptz, promotion_time timestamptz) WITH (autovacuum_enabled = off);
				CREATE TABLE tag_listing (build_id integer, tag_id integer, create_event integer, revoke_event integer,
					PRIMARY KEY (create_event, build_id, tag_id)) WITH (autovacuum_enabled = off);
				CREATE TABLE task (id integer PRIMARY KEY, state integer, create_time timestamptz,
					completion_time timestamptz);
				CREATE TABLE repo (id integer PRIMARY KEY, state integer,
					creation_time timestamptz, state_time timestamptz);
				INSERT INTO package VALUES (1, 'bash'); INSERT INTO tag VALUES (1, 'f40');
				INSERT INTO build SELECT n, 1, '5.2', n::text, 1, now() - interval '9 days'
					FROM generate_series(1, 1000) n;
				INSERT INTO events SELECT n, now() - interval '9 days' + n * interval '1 second'
					FROM generate_series(1, 200000) n;
				INSERT INTO tag_listing SELECT 1 + n % 1000, 1, n, n + 1 FROM generate_series(1, 20000) n;`+
				then+`;
				INSERT INTO events SELECT 200000 + n, now() - interval '23 hours' + n * interval '1 second'
					FROM generate_series(1, 40000) n;
				INSERT INTO tag_listing SELECT 1 + n % 1000, 1, 200000 + n, 200001 + n FROM generate_series(1, 20000) n;`)
			hub, err := Open(t.Context(), conn+" options='-c max_parallel_workers_per_gather=0'")
			if err != nil {
				t.Fatal(err)
			}
			defer hub.Close()
			// Within a transaction PostgreSQL counts for this session alone.
			if _, err := hub.conn.Exec(t.Context(), "BEGIN"); err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			all, err := hub.Facts(t.Context(), now.Add(-24*time.Hour), now)
			if err != nil || len(all) != 2*taggings {
				t.Fatalf("%d facts, %v", len(all), err)
			}
			for _, row := range []struct {
				table string
				most  int64
			}{{"tag_listing", 4 * 2 * 2 * taggings}, {"events", 3 * 2 * taggings}} {
				var read int64
				if err := hub.conn.QueryRow(t.Context(), `SELECT pg_stat_get_xact_tuples_returned($1::text::regclass)
					+ pg_stat_get_xact_tuples_fetched($1::text::regclass)`, row.table).Scan(&read); err != nil {
					t.Fatal(err)
				}
				if read > row.most {
					t.Errorf("%d rows of %s were read, at most %d should be", read, row.table, row.most)
				}
			}
		})
	}
}

func TestWhoMayNotReadIsToldWhatToGrant(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, kojiTables+`;
		DO $$ BEGIN CREATE ROLE koji_relay_test_nobody LOGIN; EXCEPTION WHEN duplicate_object OR
		unique_violation THEN NULL; END $$;`)
	hub, err := Open(t.Context(), conn+" user=koji_relay_test_nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	if _, err := hub.Facts(t.Context(), time.Now().Add(-time.Hour), time.Now()); err == nil ||
		!strings.Contains(err.Error(), "--audit") {
		t.Errorf("got %v", err)
	}
}

func TestAKillExplainsAbsencesOfWhatCameOverTheSocket(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for via, holes := range map[string]int{inspect.ViaSocket: 0, inspect.ViaOutbox: 1} {
		c := NewComparison(Rules{Wanted: func(string) bool { return true }}, []inspect.Gap{{Began: now,
			Ended: now, Reason: inspect.Killed}}, nil)
		c.Add(&inspect.HistoryMessage{Via: via, Time: now, Callback: "postTaskStateChange",
			Address: "task.closed", Task: 1})
		accounts := c.Judge([]Fact{{Kind: Task, Time: now, Number: 2}})
		if got := len(accounts[3].Holes); got != holes {
			t.Errorf("with messages by the %s there are %d holes, want %d", via, got, holes)
		}
	}
}

// The whole account, with one hole planted for each kind that can have one.
func TestHolesAreToldApartFromWhatIsExplained(t *testing.T) {
	t.Parallel()
	excluded, err := fnmatch.Compile("*-rebuild")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	at := func(minutes int) time.Time { return now.Add(-time.Duration(minutes) * time.Minute) }
	c := NewComparison(Rules{
		Wanted:   func(callback string) bool { return callback != "postRepoInit" },
		Excluded: excluded.Match,
	}, []inspect.Gap{{Began: at(31), Ended: at(29), Messages: 5},
		{Began: at(6), Ended: at(4), Reason: inspect.Killed}},
		map[string][]time.Time{"postUntag": {at(30)}})
	tell := func(minutes int, callback, address, build, tag string, task int64, fate inspect.StepKind) {
		c.Add(&inspect.HistoryMessage{Time: at(minutes), Callback: callback, Address: address, Build: build,
			Tag: tag, Task: task,
			Fate: fate, Reason: "why", Props: fmt.Appendf(nil, `{"repo_id": %d}`, task)})
	}
	tell(100, "postTag", "build.tag", "a-1-1", "t", 0, inspect.Accepted)
	tell(90, "preTag", "pre.build.tag", "a-1-1", "t", 0,
		inspect.Accepted) // news, no announcement
	tell(80, "postBuildStateChange", "", "b-1-1", "", 0,
		inspect.Skipped) // another attribute
	tell(79, "postBuildStateChange", "build.complete", "b-1-1,draft_5", "", 0,
		inspect.Accepted) // a draft then
	tell(70, "postTaskStateChange", "task.closed", "", "", 5, inspect.Queued)
	tell(60, "postTaskStateChange", "task.closed", "", "", 6, inspect.Expired)
	tell(50, "postRepoDone", "repo.done", "", "t", 7, inspect.Accepted)
	accounts := c.Judge([]Fact{
		{Kind: Tagging, Time: at(101), Build: "a-1-1", Tag: "t"},
		{Kind: Tagging, Time: at(20), Build: "a-1-1", Tag: "t"},
		// tagged again: the message above was for the first
		{Kind: Tagging, Time: at(101), Build: "a-1-1", Tag: "t-rebuild"},
		{Kind: Untagging, Time: at(30), Build: "a-1-1", Tag: "t"},
		// waits in the outbox
		{Kind: Untagging, Time: at(30), Build: "a-1-1", Tag: "t"},
		// in the gap
		{Kind: Untagging, Time: at(15), Build: "a-1-1", Tag: "t", Silent: "the build was deleted"},
		// told by nobody
		{Kind: Build, Time: at(80), Build: "b-1-1", Draft: "b-1-1,draft_5"},
		{Kind: Build, Time: at(10), Build: "c-1-1"},
		{Kind: Task, Time: at(70), Number: 5}, {Kind: Task, Time: at(61), Number: 6}, {Kind: Task,
			Time: at(5), Number: 9},
		{Kind: RepoInit, Time: at(51), Number: 7}, {Kind: RepoDone, Time: at(50), Number: 7},
		{Kind: RepoDone, Time: at(5), Number: 8},
	})
	var got []string
	for _, a := range accounts {
		explained := 0
		for _, n := range a.Explained {
			explained += n
		}
		line := fmt.Sprintf("%s: %d happened, %d announced, %d waiting, %d explained", a.Kind, a.Happened,
			a.Announced, a.Waiting, explained)
		for _, h := range a.Holes {
			line += ", hole: " + h.What
		}
		got = append(got, line)
	}
	want := []string{
		"taggings: 3 happened, 1 announced, 0 waiting, 1 explained, hole: a-1-1 was tagged into t",
		"untaggings: 3 happened, 0 announced, 1 waiting, 2 explained",
		"finished builds: 2 happened, 1 announced, 0 waiting, 0 explained, hole: build c-1-1 finished",
		"finished tasks: 3 happened, 0 announced, 1 waiting, 1 explained, hole: task 9 finished",
		"new repos: 1 happened, 0 announced, 0 waiting, 1 explained",
		"finished repos: 2 happened, 1 announced, 0 waiting, 0 explained, hole: repo 8: postRepoDone",
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}

// The same build goes into the same tag again and again, in an hour of Koji's. One announcement is missing:
// the hole is the one that it belongs to.
func TestOfEqualFactsTheHoleIsTheOneWithoutItsMessage(t *testing.T) {
	t.Parallel()
	begin := time.Now().Add(-time.Hour)
	all := []time.Duration{0, 20 * time.Second, 30 * time.Minute, 40 * time.Minute}
	for name, delay := range map[string]time.Duration{"at once": 5 * time.Millisecond, "late": 15 * time.Second,
		"by a clock that is slow": -500 * time.Millisecond} {
		for missing := range all {
			c := NewComparison(Rules{Wanted: func(string) bool { return true },
				Excluded: func(string) bool { return false }}, nil, nil)
			var facts []Fact
			for i, at := range all {
				facts = append(facts, Fact{Kind: Tagging, Time: begin.Add(at), Build: "a-1-1", Tag: "t"},
					Fact{Kind: Tagging, Time: begin.Add(at), Build: "b-1-1", Tag: "t"}) // nothing misses
				for _, build := range []string{"a-1-1", "b-1-1"} {
					if i != missing || build != "a-1-1" {
						c.Add(&inspect.HistoryMessage{Time: begin.Add(at + delay), Callback: "postTag",
							Address: "build.tag", Build: build, Tag: "t", Fate: inspect.Accepted})
					}
				}
			}
			a := c.Judge(facts)[0]
			if a.Announced != 7 || len(a.Holes) != 1 || !a.Holes[0].Time.Equal(begin.Add(all[missing])) {
				t.Errorf("told %s, without number %d: %d announced, holes %+v", name, missing, a.Announced, a.Holes)
			}
		}
	}
}

// A message that came hours late, after an outage, stands for its fact still. An untagging that Koji
// announces to nobody takes no message from one that it does announce.
func TestEveryMessageStandsForAFact(t *testing.T) {
	t.Parallel()
	begin := time.Now().Add(-10 * time.Hour)
	c := NewComparison(Rules{Wanted: func(string) bool { return true },
		Excluded: func(string) bool { return false }}, nil, nil)
	var facts []Fact
	for i := range 5 {
		at := begin.Add(time.Duration(i) * time.Minute)
		facts = append(facts, Fact{Kind: Untagging, Time: at, Build: "a-1-1", Tag: "t"},
			Fact{Kind: Untagging, Time: at.Add(time.Millisecond), Build: "a-1-1", Tag: "t",
				Silent: "the tag was deleted"})
		c.Add(&inspect.HistoryMessage{Time: begin.Add(5*time.Hour + time.Duration(i)), Callback: "postUntag",
			Address: "build.untag", Build: "a-1-1", Tag: "t", Fate: inspect.Accepted})
	}
	if a := c.Judge(facts)[1]; a.Announced != 5 || len(a.Holes) != 0 || len(a.Explained) != 1 {
		t.Errorf("got %+v", a)
	}
}

// One event waits in the outbox, and another one is lost: the one that waits is not the hole.
func TestWhatWaitsInTheOutboxIsPairedByItsTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for waits := range 3 {
		at := func(i int) time.Time { return now.Add(time.Duration(i-5) * time.Minute) }
		c := NewComparison(Rules{Wanted: func(string) bool { return true }}, nil,
			map[string][]time.Time{"postTaskStateChange": {at(waits)}})
		var facts []Fact
		for i := range 3 {
			facts = append(facts, Fact{Kind: Task, Time: at(i), Number: int64(i)})
		}
		a := c.Judge(facts)[3]
		if a.Waiting != 1 || len(a.Holes) != 2 {
			t.Fatalf("got %+v", a)
		}
		for _, h := range a.Holes {
			if h.Time.Equal(at(waits)) {
				t.Errorf("the one that waits is a hole: %+v", h)
			}
		}
	}
}

// A kill explains what is missing of the outbox's events only where the history was behind.
func TestAKillWhileTheHistoryWasBehindExplainsAbsences(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for reason, holes := range map[string]int{inspect.Killed: 1, inspect.KilledBehind: 0} {
		c := NewComparison(Rules{Wanted: func(string) bool { return true }},
			[]inspect.Gap{{Began: now.Add(-time.Hour), Ended: now, Reason: reason}}, nil)
		a := c.Judge([]Fact{{Kind: Task, Time: now.Add(-time.Minute), Number: 2}})[3]
		if len(a.Holes) != holes {
			t.Errorf("%q: the holes are %+v", reason, a.Holes)
		}
	}
}
