// Package storetest is the contract of history.Store as a suite of tests, which every store runs.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"koji-relay/history"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// Run runs the contract. open gives an empty store and may be called once in each test.
func Run(t *testing.T, open func(t *testing.T) history.Store) {
	for name, test := range map[string]func(*testing.T, history.Store){
		"each condition finds what it means":           testConditions,
		"a message comes back to the byte":             testContent,
		"the last step is the fate":                    testFates,
		"pages leave nothing out":                      testPages,
		"a message handed over twice is one":           testTwice,
		"a message found in the queue begins its own":  testFound,
		"gaps are told":                                testGaps,
		"a writer that did not end was killed":         testWriters,
		"days go whole, the oldest first":              testDays,
		"days are dropped while others work":           testDropsUnderSearches,
		"replays outlive their relay":                  testReplays,
		"hostile texts are kept as far as they can be": testHostile,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

var commit = uuid.MustParse("7f3c1f60-58e5-4c7b-8a0e-0d3a2e3f9b10")

// ID is the message-id of the nth test message.
func ID(n int) string { return uuid.NewSHA1(commit, fmt.Append(nil, n)).String() }

// Tagged is the nth test message: a build of one of ten packages goes into one of four tags.
func Tagged(n int, at time.Time) message.Message {
	return message.Message{
		ID: ID(n), Commit: commit.String(), Event: n, Callback: "postTag", Address: "build.tag", Created: at,
		Props: []message.Prop{{Key: "type", Value: "Tag"}, {Key: "tag", Value: fmt.Sprintf("f%d-build",
			40+n%4)},
			{Key: "name", Value: fmt.Sprintf("package-%d", n%10)}, {Key: "version", Value: "1.0"},
			{Key: "release", Value: fmt.Sprintf("%d.fc40", n)}, {Key: "user", Value: fmt.Sprintf("user%d",
				n%3)}},
		Body: fmt.Sprintf(`{"tag": {"name": "f%d-build"}, "build": {"name": "caf\u00e9"},  "n": %d}`,
			40+n%4, n),
	}
}

// Task is a test message about a task.
func Task(n int, at time.Time) message.Message {
	return message.Message{
		ID: ID(n), Commit: commit.String(), Event: n, Callback: "postTaskStateChange",
		Address: "task.closed", Created: at,
		Props: []message.Prop{{Key: "type", Value: "TaskStateChange"}, {Key: "id", Value: int64(1000 + n)}},
		Body:  `{}`,
	}
}

// Append stores messages with their first fates.
func Append(tb testing.TB, s history.Store, fate inspect.StepKind, messages ...message.Message) {
	tb.Helper()
	b := history.Batch{Writer: "test"}
	for i := range messages {
		row, err := history.NewRow(&messages[i], inspect.ViaSocket,
			inspect.Step{Time: messages[i].Created.Add(time.Millisecond), Kind: fate, Broker: "b1:5672"})
		if err != nil {
			tb.Fatal(err)
		}
		b.Rows = append(b.Rows, row)
	}
	must(tb, s.Append(tb.Context(), &b))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// happen stores steps of one message.
func happen(tb testing.TB, s history.Store, m *message.Message, kinds ...inspect.StepKind) {
	tb.Helper()
	b := history.Batch{Writer: "test"}
	for i, k := range kinds {
		b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: m.Created,
			Step: inspect.Step{Time: m.Created.Add(time.Duration(i+1) * time.Second), Kind: k,
				Reason: "reason"}})
	}
	must(tb, s.Append(tb.Context(), &b))
}

// events gives the numbers of what a query finds, in its order.
func events(tb testing.TB, s history.Store, q inspect.HistoryQuery) []int {
	tb.Helper()
	found := []int{}
	err := history.Search(tb.Context(), s, q, func(m *inspect.HistoryMessage) error {
		found = append(found, m.Event)
		return nil
	})
	must(tb, err)
	return found
}

// noon is a time of yesterday, in microseconds.
func noon() time.Time { return time.Now().UTC().Truncate(24 * time.Hour).Add(-12 * time.Hour) }

func testConditions(t *testing.T, s history.Store) {
	at := noon()
	var all []message.Message
	for n := range 20 {
		all = append(all, Tagged(n, at.Add(time.Duration(n)*time.Second)))
	}
	all = append(all, Task(20, at.Add(20*time.Second)))
	Append(t, s, inspect.Accepted, all...)
	dashes := Tagged(21, at.Add(-time.Second)) // a name that looks like NAME-VERSION-RELEASE
	dashes.Props[2].Value, dashes.Props[1].Value = "perl-Test-Simple", "f39-perl"
	Append(t, s, inspect.Skipped, dashes)
	for name, test := range map[string]struct {
		q    inspect.HistoryQuery
		want []int
	}{
		"package":           {inspect.HistoryQuery{Build: "package-3"}, []int{13, 3}},
		"build":             {inspect.HistoryQuery{Build: "package-3-1.0-13.fc40"}, []int{13}},
		"no such build":     {inspect.HistoryQuery{Build: "package-3-1.0-14.fc40"}, []int{}},
		"name with dashes":  {inspect.HistoryQuery{Build: "perl-Test-Simple"}, []int{21}},
		"build with dashes": {inspect.HistoryQuery{Build: "perl-Test-Simple-1.0-21.fc40"}, []int{21}},
		"no such name":      {inspect.HistoryQuery{Build: "perl-Test"}, []int{}},
		"package, oldest first": {inspect.HistoryQuery{Build: "package-3", OldestFirst: true},
			[]int{3, 13}},
		"package and tag":   {inspect.HistoryQuery{Build: "package-3", Tag: "f43-build"}, []int{3}},
		"package and tags":  {inspect.HistoryQuery{Build: "package-3", Tag: "f4*"}, []int{13, 3}},
		"package and fate":  {inspect.HistoryQuery{Build: "perl-Test-Simple", Fate: inspect.Skipped}, []int{21}},
		"package, not dead": {inspect.HistoryQuery{Build: "package-3", Fate: inspect.Dead}, []int{}},
		"skipped, of tags":  {inspect.HistoryQuery{Tag: "f*", Fate: inspect.Skipped}, []int{21}},
		"skipped, by a user": {inspect.HistoryQuery{User: "user0", Fate: inspect.Skipped, Address: "build.tag"},
			[]int{21}},
		"tag and user": {inspect.HistoryQuery{Tag: "f41-build", User: "user2"}, []int{17, 5}},
		"tag and user, at most many": {inspect.HistoryQuery{Tag: "f41-build", User: "user2", Limit: math.MaxInt},
			[]int{17, 5}},
		"tag and user, oldest first": {inspect.HistoryQuery{Tag: "f41-build", User: "user2", OldestFirst: true},
			[]int{5, 17}},
		"tag, user and address": {inspect.HistoryQuery{Tag: "f41-build", User: "user2", Address: "build.tag",
			Limit: 1}, []int{17}},
		"tag and user, in a time": {inspect.HistoryQuery{Tag: "f41-build", User: "user2",
			Since: at.Add(6 * time.Second), Until: at.Add(18 * time.Second)}, []int{17}},
		"tag and nobody": {inspect.HistoryQuery{Tag: "f41-build", User: "user9"}, []int{}},
		"tag":            {inspect.HistoryQuery{Tag: "f43-build", Limit: 2}, []int{19, 15}},
		"tags":           {inspect.HistoryQuery{Tag: "f4[12]-*", Limit: 4}, []int{18, 17, 14, 13}},
		"no such tags":   {inspect.HistoryQuery{Tag: "el*"}, []int{}},
		"task":           {inspect.HistoryQuery{Task: 1020}, []int{20}},
		"user":           {inspect.HistoryQuery{User: "user2", Limit: 2}, []int{17, 14}},
		"address":        {inspect.HistoryQuery{Address: "task.*"}, []int{20}},
		"id":             {inspect.HistoryQuery{ID: ID(7)}, []int{7}},
		"not an id":      {inspect.HistoryQuery{ID: "7"}, []int{}},
		"since":          {inspect.HistoryQuery{Since: at.Add(19 * time.Second)}, []int{20, 19}},
		"until":          {inspect.HistoryQuery{Until: at.Add(2 * time.Second)}, []int{1, 0, 21}},
		"oldest first":   {inspect.HistoryQuery{OldestFirst: true, Limit: 3}, []int{21, 0, 1}},
		"together": {inspect.HistoryQuery{Tag: "f4?-build", User: "user1", Build: "package-4",
			Since: at}, []int{4}},
		"tag and fate": {inspect.HistoryQuery{Tag: "f43-build", Fate: inspect.Dead}, []int{}},
		"accepted":     {inspect.HistoryQuery{Fate: inspect.Accepted, Limit: 1}, []int{20}},
	} {
		if got := events(t, s, test.q); !slices.Equal(got, test.want) {
			t.Errorf("%s: found %v, want %v", name, got, test.want)
		}
	}
}

func testContent(t *testing.T, s history.Store) {
	m := Tagged(1, noon())
	m.Props = append(m.Props, message.Prop{Key: "float", Value: 1.0}, message.Prop{Key: "none"},
		message.Prop{Key: "n", Value: int64(1)})
	m.Body = `{"spaces":   "caf\u00e9", "big": 12345678901234567890, "tail": [1,2 ]}` + strings.Repeat(" ",
		3000)
	Append(t, s, inspect.Accepted, m)
	got, err := history.Show(t.Context(), s, m.ID)
	must(t, err)
	if got.Body != m.Body {
		t.Errorf("body is %q", got.Body)
	}
	props, err := message.DecodeProps(got.Props)
	must(t, err)
	if diff := cmp.Diff(m.Props, props); diff != "" {
		t.Error(diff)
	}
	if !got.Time.Equal(m.Created) || got.Broker != "b1:5672" || got.Build != "package-1-1.0-1.fc40" ||
		got.Size != len(m.Body) {
		t.Errorf("got %+v", got)
	}
	if _, err := history.Show(t.Context(), s, ID(2)); !errors.Is(err, history.ErrNotFound) {
		t.Errorf("a message that is not there gives %v", err)
	}
}

func testFates(t *testing.T, s history.Store) {
	at := noon()
	var m []message.Message
	for n := range 7 {
		m = append(m, Tagged(n, at.Add(time.Duration(n)*time.Minute)))
	}
	Append(t, s, inspect.Queued, m[:5]...)
	Append(t, s, inspect.Dropped, m[5])
	Append(t, s, inspect.Skipped, m[6])
	happen(t, s, &m[1], inspect.Attempt, inspect.Accepted)
	happen(t, s, &m[2], inspect.Attempt, inspect.Dead)
	happen(t, s, &m[3], inspect.Dead, inspect.Queued, inspect.Accepted, inspect.Replayed)
	m[4].Created = time.Time{} // who records this does not know
	must(t, s.Append(t.Context(), &history.Batch{Writer: "test", Steps: []history.Step{{ID: m[4].ID,
		Step: inspect.Step{Time: at.Add(time.Hour), Kind: inspect.Expired}}}}))
	for fate, want := range map[inspect.StepKind][]int{inspect.Queued: {0}, inspect.Accepted: {3, 1},
		inspect.Dead:    {2},
		inspect.Expired: {4}, inspect.Dropped: {5}, inspect.Skipped: {6}, inspect.Refused: {}} {
		if got := events(t, s, inspect.HistoryQuery{Fate: fate}); !slices.Equal(got, want) {
			t.Errorf("%s: found %v, want %v", fate, got, want)
		}
		if got := events(t, s, inspect.HistoryQuery{Fate: fate, Tag: "f4?-build",
			User: "user*"}); len(got) != 0 {
			t.Errorf("%s: a user is no pattern, and yet found %v", fate, got)
		}
	}
	shown, err := history.Show(t.Context(), s, m[3].ID)
	must(t, err)
	var kinds []inspect.StepKind
	for _, step := range shown.Steps {
		kinds = append(kinds, step.Kind)
	}
	want := []inspect.StepKind{inspect.HandedOver, inspect.Queued, inspect.Dead, inspect.Queued,
		inspect.Accepted, inspect.Replayed}
	if !slices.Equal(kinds, want) {
		t.Errorf("the steps are %v, want %v", kinds, want)
	}
	if skipped, err := history.Show(t.Context(), s, m[6].ID); err != nil || skipped.Body != "" {
		t.Errorf("an event that made no message has the body %q, error %v", skipped.Body, err)
	}
}

func testPages(t *testing.T, s history.Store) {
	at := noon()
	var all []message.Message
	for n := range 1300 { // more than a page, and all of one commit at the same time
		all = append(all, Tagged(n, at.Add(time.Duration(n/400)*time.Second)))
	}
	Append(t, s, inspect.Queued, all...)
	for _, q := range []inspect.HistoryQuery{{}, {OldestFirst: true}, {Tag: "f4*"}, {Fate: inspect.Queued},
		{Address: "build.tag", OldestFirst: true}} {
		got := events(t, s, q)
		slices.Sort(got)
		if len(got) != len(all) || len(slices.Compact(got)) != len(all) {
			t.Errorf("%+v found %d messages of %d", q, len(got), len(all))
		}
	}
	stop := errors.New("stop")
	if err := history.Search(t.Context(), s, inspect.HistoryQuery{},
		func(*inspect.HistoryMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the error of each came back as %v", err)
	}
}

func testTwice(t *testing.T, s history.Store) {
	at := noon()
	m := Tagged(1, at)
	Append(t, s, inspect.Refused, m)
	again := m
	again.Created = at.Add(25 * time.Hour) // in another day
	if again.Created.After(time.Now()) {
		again.Created = at.Add(11 * time.Hour)
	}
	Append(t, s, inspect.Accepted, again)
	if got := events(t, s, inspect.HistoryQuery{}); !slices.Equal(got, []int{1}) {
		t.Errorf("found %v", got)
	}
	if got := events(t, s, inspect.HistoryQuery{Since: at.Add(time.Hour)}); !slices.Equal(got, []int{1}) {
		t.Errorf("since the first time found %v", got)
	}
	if got := events(t, s, inspect.HistoryQuery{Fate: inspect.Refused}); len(got) != 0 {
		t.Errorf("refused at first, and yet found %v", got)
	}
	shown, err := history.Show(t.Context(), s, m.ID)
	must(t, err)
	if shown.Fate != inspect.Accepted || len(shown.Steps) != 4 || !shown.Time.Equal(m.Created) {
		t.Errorf("got %+v", shown)
	}
}

func testFound(t *testing.T, s history.Store) {
	at := noon()
	known, unknown := Tagged(1, at), Tagged(2, at)
	Append(t, s, inspect.Queued, known)
	b := history.Batch{Writer: "test"}
	for _, m := range []*message.Message{&known, &unknown} {
		b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: m.Created, Message: m,
			Step: inspect.Step{Time: at.Add(time.Minute), Kind: inspect.Accepted}})
	}
	must(t, s.Append(t.Context(), &b))
	for _, m := range []*message.Message{&known, &unknown} {
		shown, err := history.Show(t.Context(), s, m.ID)
		must(t, err)
		via := inspect.ViaSocket
		if m == &unknown {
			via = inspect.ViaQueue
		}
		if shown.Via != via || shown.Fate != inspect.Accepted || shown.Body != m.Body {
			t.Errorf("got %+v", shown)
		}
	}
}

func testGaps(t *testing.T, s history.Store) {
	at := noon()
	gaps := []inspect.Gap{{Began: at, Ended: at.Add(time.Second), Messages: 7, Reason: "away",
		Writer: "test"},
		{Began: at.Add(time.Hour), Ended: at.Add(2 * time.Hour), Reason: "killed", Writer: "other"}}
	must(t, s.Append(t.Context(), &history.Batch{Writer: "test", Gaps: gaps}))
	got, err := s.Gaps(t.Context(), at.Add(-time.Hour), time.Time{})
	must(t, err)
	same := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	if diff := cmp.Diff(gaps, got, same); diff != "" {
		t.Error(diff)
	}
	if got, err = s.Gaps(t.Context(), at.Add(time.Minute), at.Add(3*time.Hour)); err != nil || len(got) != 1 {
		t.Errorf("got %v, error %v", got, err)
	}
}

func testWriters(t *testing.T, s history.Store) {
	alive, err := s.Begin(t.Context(), "one")
	if must(t, err); !alive.IsZero() {
		t.Errorf("a new writer was alive at %v", alive)
	}
	before := time.Now().Add(-time.Second)
	must(t, s.Append(t.Context(), &history.Batch{Writer: "one"}))
	if alive, err = s.Begin(t.Context(), "one"); err != nil || alive.Before(before) {
		t.Errorf("the killed writer was alive at %v, error %v", alive, err)
	}
	must(t, s.End(t.Context(), "one"))
	if alive, err = s.Begin(t.Context(), "one"); err != nil || !alive.IsZero() {
		t.Errorf("the writer that ended was alive at %v, error %v", alive, err)
	}
}

func testDays(t *testing.T, s history.Store) {
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for n := range 5 {
		Append(t, s, inspect.Accepted, Tagged(n, today.Add(-time.Duration(n)*24*time.Hour)))
	}
	usage, err := s.Tidy(t.Context(), 3*24*time.Hour, 1<<40)
	must(t, err)
	if len(usage.Dropped) != 1 || usage.Bytes <= 0 || !usage.Oldest.Equal(today.Add(-3*24*time.Hour)) {
		t.Errorf("usage is %+v", usage)
	}
	if got := events(t, s, inspect.HistoryQuery{}); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("found %v", got)
	}
	usage, err = s.Tidy(t.Context(), 30*24*time.Hour, usage.Bytes-1)
	must(t, err)
	if len(usage.Dropped) == 0 || slices.Contains(events(t, s, inspect.HistoryQuery{}), 3) {
		t.Errorf("above max_bytes the oldest day stays: %+v", usage)
	}
	usage, err = s.Tidy(t.Context(), 30*24*time.Hour, 1)
	must(t, err)
	if got := events(t, s, inspect.HistoryQuery{}); !slices.Equal(got, []int{0}) {
		t.Errorf("today is left, and yet found %v; %+v", got, usage)
	}
	m := Tagged(9, today)
	row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: today, Kind: inspect.Accepted})
	must(t, err)
	if err := s.Append(t.Context(), &history.Batch{Rows: []history.Row{row}}); !errors.Is(err,
		history.ErrFull) {
		t.Errorf("a day above max_bytes gives %v", err)
	}
	_, err = s.Tidy(t.Context(), 30*24*time.Hour, 1<<40)
	must(t, err)
	Append(t, s, inspect.Accepted, m)
}

func testHostile(t *testing.T, s history.Store) {
	m := Tagged(1, noon())
	m.Address, m.Callback = "other.\xff\x00", "post\x00"
	m.Props[1].Value = "tag\x00"
	m.Props = append(m.Props, message.Prop{Key: "long", Value: strings.Repeat("x", 100_000)})
	m.Body = "not \x00 JSON \xff"
	m.Commit = "not a UUID"
	row, err := history.NewRow(&m, inspect.ViaOutbox, inspect.Step{Time: m.Created, Kind: inspect.Dead,
		Reason: "why \x00\xff"})
	must(t, err)
	must(t, s.Append(t.Context(), &history.Batch{Rows: []history.Row{row}}))
	shown, err := history.Show(t.Context(), s, m.ID)
	must(t, err)
	if shown.Body != "not \x00 JSON \uFFFD" || !strings.HasPrefix(shown.Reason, "why ") {
		t.Errorf("got %+v", shown)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Append(ctx, &history.Batch{Rows: []history.Row{row}}); err == nil {
		t.Error("an ended context did not end Append")
	}
}
