package history

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// FuzzReplayLine: whatever line a file of replay --from has, it is refused or is a message that can be sent.
// What the history would tell of that message is a line of the same message.
func FuzzReplayLine(f *testing.F) {
	const id = "2b53e448-91ec-5132-8b6f-8078aa6cb1a3"
	for _, line := range []string{
		`{"message_id": "` + id + `", "time": "2026-11-26T14:00:00Z", "via": "socket", "commit": "c", ` +
			`"event": 1, "callback": "postTag", "address": "build.tag", "fate": "accepted", "props": ` +
			`{"type": "Tag", "id": 1, ` +
			`"f": 1.50, "n": null, "b": true, "deep": {"x": [1]}, "huge": 92233720368547758080}, ` +
			`"body": "{\"a\": \"é\"}"}`,
		`{"message_id": "` + id + `", "callback": "preTag", "fate": "skipped"}`,
		`{"message_id": "` + id + `", "address": "a", "body": "\"\ud800\"", "props": {}, ` +
			`"time": "2026-11-26T14:00:00Z"}`,
		`{"message_id": "x", "address": "a", "body": "1", "time": "2026-11-26T14:00:00Z", "props": {}}`,
		`{"message_id": "` + id + `", "address": "a", "body": "1", "time": "2026-11-26T14:00:00Z", "props": []}`,
		`{"message_id": "` + id + `", "address": "a", "body": "1", "time": "2026-11-26T14:00:00Z"}`,
		`{}`, `null`, `[`, "\xff", "",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		row, err := FromJSON(line)
		if err != nil {
			if row.ID != "" {
				t.Fatalf("beside the error %v came message %s", err, row.ID)
			}
			return
		}
		if row.ID == "" {
			return // an event that made no message
		}
		m, ok := again(&row)
		if !ok {
			t.Fatalf("%q is taken, and never sent", line)
		}
		if y := m.Created.Year(); y < 0 || y > 9999 {
			return // JSON has no form for it
		}
		props, err := message.EncodeProps(m.Props)
		if err != nil {
			t.Fatalf("the properties of %q: %v", line, err)
		}
		var told bytes.Buffer
		lines := json.NewEncoder(&told)
		lines.SetEscapeHTML(false) // as history --json
		err = lines.Encode(inspect.HistoryMessage{MessageID: m.ID, Time: m.Created, Commit: m.Commit,
			Event: m.Event, Callback: m.Callback, Address: m.Address, Props: props, Body: m.Body})
		if err != nil {
			t.Fatal(err)
		}
		row, err = FromJSON(told.Bytes())
		if err != nil {
			t.Fatalf("%q, told again as %s: %v", line, &told, err)
		}
		same, ok := again(&row)
		encoded, err := message.EncodeProps(same.Props)
		if !ok || err != nil || compact(t, props) != compact(t, encoded) || !same.Created.Equal(m.Created) {
			t.Fatalf("%q became %+v, and then %+v (%v)", line, m, same, err)
		}
		same.Created, same.Props, m.Props = m.Created, nil, nil
		if diff := cmp.Diff(m, same); diff != "" {
			t.Fatalf("%q changed:\n%s", line, diff)
		}
	})
}

// compact is JSON without its spaces: a value that AMQP cannot carry is kept as its text.
func compact(t *testing.T, text []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return b.String()
}
