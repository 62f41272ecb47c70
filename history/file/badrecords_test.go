package file

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
)

// badRecords has each bucket of the files, with values that a damaged disk or an older program may have left
// in the first record, and part of what comes of it.
var badRecords = map[string]map[string]string{
	"row": {"": "unreadable: the record of this message is damaged", "{": "is damaged", "null": "show: dead",
		`{"f":{"time":"20000-01-01T00:00:00Z"}}`: "is damaged"},
	"content": {"": "show: dead, what the history has of message", "\x01\xff": "is damaged: unpack"},
	"step":    {"": "the record of this step is damaged", "[]": "is damaged", "null": "show: "},
	"id":      {"": "the record of this message is damaged", "abc": "is damaged"},
	"index":   {"x": fine}, "word": {"x": fine}, "open": {"x": fine},
	"gap":    {"": "the record of this gap is damaged", "[": "is damaged", "null": "gap"},
	"writer": {"": "killed: false", "[]": "killed: false", `{"alive":"20000-01-01T00:00:00Z"}`: "killed: false"},
	"replay": {"": unreadable, "[]": unreadable, "null": unreadable, `{"state": "x"}`: `its state is "x"`,
		`{"rate": "x"}`: unreadable},
	"line": {"": "line: 2 [false true]", "[]": "line: 2 [false true]"},
}

const (
	fine       = "show: dead,"
	unreadable = "end it with 'koji-relay replay cancel 1'"
)

// TestEveryRecordHasABadCase: a record that is damaged says so, and harms no neighbour.
func TestEveryRecordHasABadCase(t *testing.T) {
	t.Parallel()
	for _, bucket := range append(slices.Clone(dayBuckets), "gap", "writer", "open", "replay", "line") {
		if len(badRecords[bucket]) == 0 {
			t.Errorf("the bucket %s has no bad case in this table", bucket)
		}
	}
	for bucket, cases := range badRecords {
		for value, want := range cases {
			t.Run(bucket+" "+value, func(t *testing.T) {
				t.Parallel()
				said := damage(t, bucket, []byte(value))
				t.Log(said)
				if !strings.Contains(said, want) {
					t.Errorf("it says %q, not %q", said, want)
				}
			})
		}
	}
}

// damage sets the first record of a bucket, and says what comes of it. Message 2 and replay 2 must come
// through it.
func damage(t *testing.T, bucket string, value []byte) string {
	s := open(t, t.TempDir())
	at := time.Now().UTC().Add(-time.Second).Truncate(time.Microsecond)
	b := history.Batch{Writer: "one", Gaps: []inspect.Gap{{Began: at, Ended: at, Reason: "away"},
		{Began: at.Add(time.Second), Ended: at.Add(time.Second), Reason: "good"}}}
	for n := range 2 {
		m := storetest.Tagged(n+1, at.Add(time.Duration(n)*time.Millisecond))
		row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Queued})
		if err != nil {
			t.Fatal(err)
		}
		b.Rows = append(b.Rows, row)
		b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: m.Created,
			Step: inspect.Step{Time: m.Created.Add(time.Second), Kind: inspect.Dead, Reason: "why"}})
	}
	queued := storetest.Tagged(3, at.Add(10*time.Millisecond))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Append(t.Context(), &b))
	storetest.Append(t, s, inspect.Queued, queued)
	for range 2 {
		must(s.AddReplay(t.Context(), &inspect.Replay{State: inspect.ReplayRuns, File: true}, b.Rows))
	}
	db := s.state
	if slices.Contains(dayBuckets, bucket) {
		db = s.days[at.Format(dayFormat)]
	}
	must(db.Update(func(tx *bbolt.Tx) error {
		records := tx.Bucket([]byte(bucket))
		first, _ := records.Cursor().First()
		if bucket == "step" || bucket == "id" {
			first, _ = records.Cursor().Seek(idKey(storetest.ID(1)))
		}
		return records.Put(bytes.Clone(first), value)
	}))
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	for name, q := range map[string]inspect.HistoryQuery{"all": {},
		"content": {Content: true, OldestFirst: true},
		"tags":    {Tag: "f4*"}, "dead": {Fate: inspect.Dead}, "user": {User: "user2"}} {
		good := false
		must(history.Search(t.Context(), s, q, func(m *inspect.HistoryMessage) error {
			good = good || m.MessageID == storetest.ID(2) && m.Fate == inspect.Dead
			_, err := json.Marshal(m)
			return err
		}))
		if !good {
			t.Errorf("%s: message 2 is not found", name)
		}
	}
	shown, err := history.Show(t.Context(), s, storetest.ID(1))
	must(err)
	reasons := []string{string(shown.Fate)}
	if shown.Unreadable != "" {
		reasons[0] += ", " + shown.Unreadable
	}
	for _, st := range shown.Steps {
		reasons = append(reasons, string(st.Kind)+": "+st.Reason)
	}
	say("show: %s", strings.Join(reasons, ", "))
	gaps, err := s.Gaps(t.Context(), time.Time{}, time.Time{})
	must(err)
	for _, g := range gaps {
		say("gap %s", g.Reason)
	}
	if !slices.ContainsFunc(gaps, func(g inspect.Gap) bool { return g.Reason == "good" }) {
		t.Errorf("the good gap is not told: %v", gaps)
	}
	alive, err := s.Begin(t.Context(), "one")
	must(err)
	say("killed: %v", !alive.IsZero())
	lines, last, err := s.Lines(t.Context(), 1, 0, 10)
	must(err)
	have := []bool{}
	for i := range lines {
		have = append(have, lines[i].ID != "")
	}
	say("line: %d %v", last, have)
	claimed, err := s.ClaimReplays(t.Context(), "one", time.Minute)
	must(err)
	if !slices.ContainsFunc(claimed, func(r inspect.Replay) bool { return r.ID == 2 }) {
		t.Errorf("the good replay is not claimed: %+v", claimed)
	}
	all, err := s.Replays(t.Context())
	must(err)
	for _, r := range all {
		say("replay %d %s %s", r.ID, r.State, r.Error)
	}
	for id := range int64(2) {
		if ran, err := s.CancelReplay(t.Context(), id+1); err != nil || !ran {
			t.Errorf("replay %d cannot be cancelled: %v, %v", id+1, ran, err)
		}
	}
	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(9, time.Now().UTC()))
	_, err = s.Tidy(t.Context(), time.Hour, 1<<40)
	must(err)
	return strings.Join(said, "; ")
}
