package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// badColumns has each column of the tables of history and replays.
var badColumns = map[string][]pgtest.BadColumn{
	"history_message.at":         {{"'infinity'", "no partition"}, {"NULL", "no partition"}},
	"history_message.settled":    {{"'infinity'", same}, {"'-infinity'", same}, {"'20000-01-01'", same}},
	"history_message.message_id": {{"'00000000-0000-0000-0000-000000000000'", "show: not in the history"}},
	"history_message.commit":     {{"NULL", same}},
	"history_message.event":      {{"-5", "-5 dead"}},
	"history_message.size":       {{"-1", same}, {"2147483647", same}},
	"history_message.task":       {{"-1", same}, {"9223372036854775807", same}},
	"history_message.fate":       {{"''", same}, {"'nonsense'", same}},
	"history_message.via":        {{"''", same}, {"repeat('x', 100000)", same}},
	"history_message.callback":   {{"''", same}, {"'a' || chr(10)", same}},
	"history_message.address":    {{"''", "1 done 2+0: [2 3]"}, {"'elsewhere'", same}},
	"history_message.package":    {{"''", same}, {"'a' || chr(10)", same}},
	"history_message.build":      {{"''", same}, {"repeat('x', 1000)", same}},
	"history_message.tag":        {{"''", same}, {"'*'", same}},
	"history_message.username":   {{"''", same}, {"'*'", same}},
	"history_message.broker":     {{"''", same}, {"chr(27)", same}},
	"history_message.reason":     {{"''", same}, {"repeat('x', 100000)", same}},
	"history_message.content": {{"'\\xff00'", damaged}, {"''", damaged}, {"'\\x01'", damaged},
		{"NULL", "1 done 2+1: [2 3]"}},

	"history_step.at":         {{"'-infinity'", "no partition"}, {"NULL", "no partition"}},
	"history_step.handed":     {{"'infinity'", same}, {"'-infinity'", same}, {"'20000-01-01'", same}},
	"history_step.message_id": {{"'00000000-0000-0000-0000-000000000000'", "1 accepted"}},
	"history_step.kind":       {{"''", "show: "}, {"'nonsense'", "1 nonsense"}},
	"history_step.broker":     {{"''", same}},
	"history_step.reason":     {{"repeat('x', 100000)", same}},

	"history_open.message_id": {{"'00000000-0000-0000-0000-000000000000'", same}},
	"history_open.handed":     {{"'infinity'", same}, {"'-infinity'", same}, {"'20000-01-01'", same}},

	"history_word.kind": {{"'nonsense'", same}, {"NULL", notNull}},
	"history_word.word": {{"''", same}, {"'['", same}, {"NULL", notNull}},
	"history_word.seen": {{"'infinity'", same}, {"'-infinity'", same}},

	"history_gap.began":    {{"'-infinity'", "gap 0001-1-01 away"}, {"'infinity'", "gap"}},
	"history_gap.ended":    {{"'infinity'", "away 9999-12-31"}, {"'-infinity'", "gap"}},
	"history_gap.messages": {{"-1", "gap"}, {"2147483647", "gap"}},
	"history_gap.reason":   {{"''", "gap"}, {"chr(27)", "gap"}},
	"history_gap.writer":   {{"''", "gap"}},

	"history_writer.name":    {{"NULL", notNull}, {"''", "begin: killed false"}},
	"history_writer.alive":   {{"'infinity'", "begin: killed true"}, {"'-infinity'", "begin: killed false"}},
	"history_writer.stopped": {{"true", "begin: killed false"}, {"NULL", notNull}},

	"replay.id":      {{"-1", "can only be updated to DEFAULT"}},
	"replay.running": {{"false", "1 cancelled 0+0, running is false"}, {"NULL", notNull}},
	"replay.holder":  {{"'nobody'", allDone}, {"repeat('x', 100000)", allDone}},
	"replay.lease": {{"'infinity'", allDone}, {"'-infinity'", allDone},
		{"now() + interval '1 year'", allDone}},
	"replay.state": {{"'[]'", unreadable}, {"'null'", unreadable}, {"'{}'", unreadable},
		{`state || '{"rate": "x"}'`, unreadable}, {`state || '{"rate": -1}'`, "its rate is -1 messages a second"},
		{`state || '{"state": "done"}'`, allDone}, {`state || '{"created": "20000-01-01T00:00:00Z"}'`, unreadable},
		{`state || '{"query": {"tag": "["}}'`, "1 done 0+0"},
		{`state || '{"cursor": {"handed": "2020-01-01T00:00:00Z", "id": "no uuid"}}'`, "uuid"}},

	"replay_line.replay":  {{"-1", "foreign key"}},
	"replay_line.line":    {{"7", allDone}, {"-1", "2 done 1+0"}},
	"replay_line.message": {{"'[]'", "2 done 1+1"}, {"'null'", "2 done 1+1"}, {"'{}'", "2 done 1+1"}},
	"replay_line.content": {{"'\\xff'", "2 done 1+1"}, {"''", "2 done 1+1"}, {"NULL", notNull}},
}

// What comes of most that is wrong in a row.
const (
	same       = "show: 1 " // it is found and shown
	notNull    = "violates not-null"
	damaged    = "is damaged: unpack"
	unreadable = "1 unreadable"
	allDone    = "2 done 2+0"
)

// badRow chooses the row that is spoilt.
var badRow = map[string]string{
	"history_message": "event = 1", "history_step": "message_id = '" + storetest.ID(1) + "'",
	"history_open": "message_id = '" + storetest.ID(3) + "'", "history_word": "word = 'f41-build'",
	"history_gap": "reason = 'away'", "history_writer": "name = 'one'", "replay": "id = 1",
	"replay_line": "line = 1",
}

// TestEveryColumnHasABadCase: what is wrong in one row is refused by PostgreSQL or handled, and harms no
// neighbour.
func TestEveryColumnHasABadCase(t *testing.T) {
	t.Parallel()
	conn := pgtest.Database(t, schema(t))
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	rows, _ := c.Query(t.Context(), `SELECT c.relname || '.' || a.attname FROM pg_class c
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = 'koji_relay'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
			AND c.relname ~ '^(history|replay)'`)
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	pgtest.RunBadColumns(t, columns, badColumns, spoil)
}

// spoil sets a column of one row, and says what PostgreSQL has against it, or what comes of it.
func spoil(t *testing.T, column, value string) string {
	conn := pgtest.Database(t, schema(t))
	s := open(t, conn)
	at := time.Now().UTC().Add(-time.Minute).Truncate(time.Microsecond)
	b := history.Batch{Writer: "one", Gaps: []inspect.Gap{
		{Began: at, Ended: at, Reason: "away"}, {Began: at, Ended: at, Reason: "good"}}}
	var lines []history.Row
	for n, fate := range []inspect.StepKind{1: inspect.Accepted, 2: inspect.Accepted, 3: inspect.Queued} {
		if n == 0 {
			continue
		}
		m := storetest.Tagged(n, at.Add(time.Duration(n)*time.Second))
		row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: fate})
		if err != nil {
			t.Fatal(err)
		}
		b.Rows = append(b.Rows, row)
		if n < 3 {
			lines = append(lines, row)
			b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: m.Created,
				Step: inspect.Step{Time: m.Created.Add(time.Second), Kind: inspect.Dead, Reason: "why"}})
		}
	}
	if err := s.Append(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	for _, file := range []bool{false, true, false} {
		r := inspect.Replay{State: inspect.ReplayRuns, Rate: 1000, File: file, Created: at}
		if r.Query.Until = time.Now(); file {
			r.Query = inspect.HistoryQuery{}
		}
		if err := s.AddReplay(t.Context(), &r, lines[:len(lines)*map[bool]int{true: 1}[file]]); err != nil {
			t.Fatal(err)
		}
	}
	table, name, _ := strings.Cut(column, ".")
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(t.Context(), fmt.Sprintf("UPDATE koji_relay.%s SET %s = %s WHERE %s", table, name, value,
		badRow[table])); err != nil {
		return "refused: " + err.Error()
	}
	said := world(t, s)
	if strings.HasPrefix(table, "replay") || name == "content" || name == "address" {
		said += "; " + replayAll(t, s)
	}
	return said
}

// world says what a relay and its commands make of all that is there. Message 2 must come through it.
func world(t *testing.T, s *Store) string {
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	for name, q := range map[string]inspect.HistoryQuery{"all": {}, "tags": {Tag: "f4*"},
		"tag":  {Tag: "f42-build"},
		"dead": {Fate: inspect.Dead}, "user": {User: "user2"}, "build": {Build: "package-2"},
		"address": {Address: "build.*"}, "content": {Content: true, OldestFirst: true},
		"late": {Since: time.Now().Add(-time.Hour), Until: time.Now()}} {
		good := false
		err := history.Search(t.Context(), s, q, func(m *inspect.HistoryMessage) error {
			text, err := json.Marshal(m)
			say("%s: %d %s %.100s", name, m.Event, m.Fate, m.Unreadable)
			good = good || m.MessageID == storetest.ID(2) && m.Fate == inspect.Dead && len(text) > 0
			return err
		})
		if err != nil || !good {
			t.Errorf("%s: message 2 is found: %v, %v", name, good, err)
		}
	}
	err := history.Search(t.Context(), s, inspect.HistoryQuery{Fate: inspect.Queued},
		func(m *inspect.HistoryMessage) error { say("queued: %d", m.Event); return nil })
	if err != nil {
		t.Errorf("what is queued cannot be asked for: %v", err)
	}
	if shown, err := history.Show(t.Context(), s, storetest.ID(1)); err != nil {
		say("show: %v", err)
	} else {
		text, err := json.Marshal(shown)
		say("show: %d %s %.500s %v", shown.Event, shown.Fate, text, err)
	}
	gaps, err := s.Gaps(t.Context(), time.Time{}, time.Time{})
	_, jsonErr := json.Marshal(gaps)
	for _, g := range gaps {
		say("gap %s %s %s %d", g.Began.Format("2006-1-02"), g.Reason, g.Ended.Format("2006-1-02"), g.Messages)
	}
	if jsonErr != nil {
		t.Errorf("the gaps are no JSON: %v", jsonErr)
	}
	if !slices.ContainsFunc(gaps, func(g inspect.Gap) bool { return g.Reason == "good" }) {
		t.Errorf("the good gap is not told: %v, %v", gaps, err)
	}
	alive, err := s.Begin(t.Context(), "one")
	say("begin: killed %v %v", !alive.IsZero(), err)
	if err != nil || alive.After(time.Now().Add(time.Second)) {
		t.Errorf("a relay cannot begin: %v, %v", alive, err)
	}
	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(5, time.Now().UTC()))
	if _, err := s.Tidy(t.Context(), 24*time.Hour, 1<<40); err != nil {
		t.Errorf("no day can be dropped: %v", err)
	}
	return strings.Join(said, "; ")
}

// heap takes what replays send.
type heap struct {
	mu   sync.Mutex // guards sent
	sent []int
}

func (h *heap) Send(_ context.Context, _ *inspect.Replay, ms []message.Message) (int, int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range ms {
		h.sent = append(h.sent, ms[i].Event)
	}
	return len(ms), 0, nil
}

func (*heap) Waiting(context.Context, []string) (int, error) { return 0, nil }
func (*heap) Close()                                         {}

// replayAll lets a relay work on the replays until the good one is done, and the others as far as they can
// be. It says what became of each, and cancels what is left.
func replayAll(t *testing.T, s *Store) string {
	var mu sync.Mutex // guards heaps
	heaps := map[int64]*heap{}
	r := history.NewReplayer(s, history.ReplayerOptions{Writer: "test", Logger: slog.New(slog.DiscardHandler),
		Note: func(string, time.Time, inspect.Step) {},
		Open: func(_ context.Context, r *inspect.Replay) (history.Sink, error) {
			mu.Lock()
			defer mu.Unlock()
			heaps[r.ID] = &heap{}
			return heaps[r.ID], nil
		}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var all []inspect.Replay
	for deadline := time.Now().Add(time.Minute); ; {
		var err error
		if all, err = s.Replays(ctx); err != nil || time.Now().After(deadline) {
			t.Fatalf("the replays do not end: %+v, %v", all, err)
		}
		if !slices.ContainsFunc(all, func(r inspect.Replay) bool {
			return r.State == inspect.ReplayRuns && r.Error == ""
		}) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	var said []string
	for _, r := range all {
		text := fmt.Sprintf("%d %s %d+%d", r.ID, r.State, r.Done, r.Skipped)
		if r.Error != "" {
			text += ", " + r.Error
		}
		if mu.Lock(); heaps[r.ID] != nil {
			text += fmt.Sprintf(": %v", heaps[r.ID].sent)
		}
		mu.Unlock()
		said = append(said, text)
		if r.State == inspect.ReplayRuns || r.State == inspect.ReplayUnreadable {
			if ran, err := s.CancelReplay(t.Context(), r.ID); err != nil || !ran {
				t.Errorf("replay %d cannot be cancelled: %v, %v", r.ID, ran, err)
			}
		}
	}
	if all[2].State != inspect.ReplayDone || !slices.Contains(heaps[3].sent, 2) {
		t.Errorf("the good replay is %+v, and sent %v", all[2], heaps[3])
	}
	all, err := s.Replays(t.Context())
	for _, r := range all {
		if r.State == inspect.ReplayRuns || r.State == inspect.ReplayUnreadable {
			t.Errorf("cancelled, and yet %+v, %v", r, err)
		}
	}
	return strings.Join(said, "; ")
}
