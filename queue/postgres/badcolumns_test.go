package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// badColumns has each column of the tables of the queue.
var badColumns = map[string][]pgtest.BadColumn{
	"proton_queue.id":         {{"-1", adopted}, {"NULL", notNull}},
	"proton_queue.created_ts": {{"NULL", adopted}, {"'-infinity'", adopted}},
	"proton_queue.address":    {{"''", same}, {"'a' || chr(10) || 'b'", same}, {"NULL", notNull}},
	"proton_queue.props":      {{"'[]'", `"read the properties: not a JSON object"`}, {"NULL", notNull}},
	"proton_queue.body":       {{"'null'", same}, {"NULL", notNull}, {"'x'", "type json"}},

	"delivery.message_id":   {{"''", `drained 1  ""`}, {"'no uuid'", "drained 1 no uuid"}, {"NULL", notNull}},
	"delivery.queue_id":     {{"-7", adopted}, {"(SELECT max(queue_id) FROM koji_relay.delivery)", adopted}},
	"delivery.created_ts":   {{"NULL", adopted}, {"'infinity'", adopted}},
	"delivery.created":      {{"'infinity'", same}, {"'-infinity'", same}},
	"delivery.commit":       {{"'no uuid'", same}},
	"delivery.event":        {{"-5", "drained -5 b9042d04"}},
	"delivery.callback":     {{"'nonsense'", same}},
	"delivery.address":      {{"''", same}, {"'elsewhere'", same}},
	"delivery.size":         {{"-1", same}, {"9223372036854775807", same}},
	"delivery.attempts":     {{"2147483647", same}},
	"delivery.tries":        {{"2147483647", same}},
	"delivery.next_attempt": {{"'-infinity'", same}, {"'infinity'", "drained after a retry 1"}},
	"delivery.last_error":   {{"repeat('x', 100000)", "xxxxxx"}},

	"dead_letter.message_id": {{"''", `still dead: ,`}, {"'no uuid'", "drained 3 no uuid"}},
	"dead_letter.died":       {{"'infinity'", comesAgain}},
	"dead_letter.created":    {{"'infinity'", comesAgain}},
	"dead_letter.commit":     {{"'no uuid'", comesAgain}},
	"dead_letter.event":      {{"-5", "drained -5 a4002d90"}},
	"dead_letter.callback":   {{"''", comesAgain}},
	"dead_letter.address":    {{"NULL", stillDead}, {"''", comesAgain}},
	"dead_letter.props":      {{"NULL", stillDead}, {"'[]'", stillDead}, {"'\\xff00'", stillDead}},
	"dead_letter.body":       {{"'\\xff00'", stillDead}, {"''", stillDead}},
	"dead_letter.attempts":   {{"-1", comesAgain}},
	"dead_letter.reason":     {{"''", comesAgain}, {"repeat('x', 100000)", comesAgain}},

	"outbox.id":       {{"-1", bothTaken}},
	"outbox.commit":   {{"'00000000-0000-0000-0000-000000000000'", bothTaken}, {"'no uuid'", "type uuid"}},
	"outbox.event":    {{"-1", "/-1"}},
	"outbox.created":  {{"'infinity'", bothTaken}},
	"outbox.callback": {{"''", bothTaken}, {"repeat('x', 100000)", bothTaken}},
	"outbox.kwargs":   {{"'[1]'", bothTaken}, {"'null'", bothTaken}, {"'{'", "type json"}},
	"outbox.fallback": {{"repeat('x', 100000)", bothTaken}},

	"outbox_taken.id":     {{"-1", bothTaken}},
	"outbox_taken.reader": {{"'nobody'", bothTaken}},
	"outbox_taken.commit": {{"'00000000-0000-0000-0000-000000000000'", bothTaken}},

	"reader.name":   {{"NULL", notNull}, {"repeat('x', 1000)", same}},
	"reader.events": {{"'['", `readers: ["["]`}, {"''", `readers: [""]`}},
	"reader.seen":   {{"'infinity'", bothTaken}},

	"version.version": {{"-1", "run 'koji-relay db upgrade'"}, {"2147483647", "install the newer one"}},
	"version.applied": {{"'infinity'", same}},
}

// What comes of most that is wrong in a row.
const (
	same       = "drained 1 b9042d04"   // the message comes as it would have
	adopted    = `{"n": 1,  "build"`    // as a row of protonmsg does: its body under another message-id
	notNull    = "violates not-null"    // PostgreSQL refuses it
	comesAgain = "drained 3 a4002d90"   // the dead letter does, after a retry
	stillDead  = "still dead: a4002d90" // it cannot be sent as it is, and stays
	bothTaken  = "2 events of the outbox"
)

// badRow chooses the row that is spoilt.
var badRow = map[string]string{
	"proton_queue": "id = (SELECT min(id) FROM proton_queue)",
	"delivery":     "queue_id = (SELECT min(queue_id) FROM koji_relay.delivery)",
	"dead_letter":  "reason LIKE '%first'",
	"outbox":       "id = (SELECT min(id) FROM koji_relay.outbox)",
	"outbox_taken": "true", "reader": "name = 'other'",
	"version": "version = (SELECT max(version) FROM koji_relay.version)",
}

// TestEveryColumnHasABadCase: what is wrong in one row is refused by PostgreSQL or handled, and harms no
// neighbour.
func TestEveryColumnHasABadCase(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	columns := strings.Fields(query[string](t, conn, `SELECT string_agg(table_name || '.' || column_name, ' ')
		FROM information_schema.columns WHERE (table_schema = 'koji_relay' OR table_name = 'proton_queue')
		AND table_name !~ '^(history|replay)'`)) // those are of history/postgres
	pgtest.RunBadColumns(t, columns, badColumns, spoil)
}

// spoil sets a column of one row, and says what PostgreSQL has against it, or what comes of it.
func spoil(t *testing.T, column, value string) string {
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	var dead []message.Unsent
	for n, reason := range []string{"first", "second"} {
		dead = append(dead, message.Unsent{Message: storetest.Message(3 + n),
			Outcome: message.Outcome{State: message.Rejected, Next: message.Dead, Reason: reason}})
	}
	storetest.Put(t, s, dead...)
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 1)+"; "+insertEvents(commitID(2), 0, 1)+`;
		INSERT INTO koji_relay.reader (name, events) VALUES ('other', '*');
		INSERT INTO koji_relay.outbox_taken
			SELECT id, 'other', commit FROM koji_relay.outbox ORDER BY id LIMIT 1`)
	table, name, _ := strings.Cut(column, ".")
	schema := "koji_relay."
	if table == "proton_queue" {
		schema = ""
	}
	if refusal := try(t, conn, fmt.Sprintf("UPDATE %s%s SET %s = %s WHERE %s", schema, table, name, value,
		badRow[table])); refusal != "" {
		return "refused: " + refusal
	}
	return world(t, conn)
}

// world says what a relay makes of all that is there. The good neighbours must come through it.
func world(t *testing.T, conn string) string {
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	s, err := Open(t.Context(), Options{ConnString: as(relayRole, conn)})
	if err != nil {
		return "open: " + err.Error()
	}
	defer s.Close()
	stats, err := s.Stats(t.Context())
	say("stats: %d, %d dead, %v", stats.Depth, stats.DeadLetters, err)
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		err := s.List(t.Context(), box, inspect.ListOptions{}, func(it queue.Item) error {
			say("%s: %s %q", box.Name(), it.Message.ID, it.Reason[:min(30, len(it.Reason))])
			return nil
		})
		say("list: %v", err)
	}
	if _, err := s.Retry(t.Context(), inspect.DeadBox, inspect.Selection{All: true}); err != nil {
		say("retry: %v", err)
	}
	err = s.List(t.Context(), inspect.DeadBox, inspect.ListOptions{}, func(it queue.Item) error {
		say("still dead: %s, %s", it.Message.ID, it.Reason[:min(30, len(it.Reason))])
		return nil
	})
	say("list: %v", err)
	good := false
	drain := func(when string) {
		for _, e := range storetest.Drained(t, s) {
			say("drained%s %d %s %q %s", when, e.Message.Event, e.Message.ID, e.Unreadable, e.Message.Body)
			good = good || e.Message.Body == storetest.Message(2).Body && e.Unreadable == ""
		}
	}
	drain("")
	if _, err := s.Retry(t.Context(), inspect.QueueBox, inspect.Selection{All: true}); err != nil {
		say("retry: %v", err)
	}
	drain(" after a retry")
	if !good {
		t.Errorf("message 2, which is good, does not come: %q", said)
	}
	publisher := &fakePublisher{}
	_, stop := readingAs(t, s, "", publisher)
	defer stop()
	storetest.Eventually(t, "the good event of the outbox is taken", func() bool {
		return slices.Contains(publisher.taken(), commitID(2)+"/0") && publisher.count() >= 2
	})
	say("%d events of the outbox %v", publisher.count(), publisher.taken())
	others, err := s.Announce(t.Context(), "", "*")
	say("readers: %.40q, %v", others, err)
	return strings.Join(said, "; ")
}

// try runs SQL as an administrator, and gives PostgreSQL's refusal.
func try(t *testing.T, conn, sql string) string {
	t.Helper()
	c, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(c)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Exec(ctx, sql); err != nil {
		return err.Error()
	}
	return ""
}
