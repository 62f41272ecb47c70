package history_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/history"
	"koji-relay/history/file"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
)

// line is one of history --json, with one field changed; "" takes it out.
func line(field, value string) []byte {
	const id = "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55"
	fields := map[string]any{"message_id": id, "event": 1, "time": "2026-11-26T14:00:00Z",
		"address": "build.tag", "callback": "postTag", "size": 2, "fate": "accepted",
		"props": map[string]string{"type": "Tag"}, "body": "{}"}
	if fields[field] = json.RawMessage(value); value == "" {
		delete(fields, field)
	}
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return text
}

func TestLineThatNoHistoryWroteIsRefusedWithItsValue(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(25 * time.Hour).Format(time.RFC3339)
	for _, c := range []struct{ field, value, want string }{
		{"size", `-1`, "size -1"}, {"size", `77`, "size 77, and its body has 2 bytes"},
		{"size", `1.5`, "size: unexpected number 1.5"}, {"body", `{}`, "body: unexpected object"},
		{"body", `"{"`, "not JSON"}, {"body", "", "take the line out"}, {"unreadable", `"damaged"`, `"damaged"`},
		{"event", `-5`, "event -5"}, {"event", `4294967296`, "event 4294967296"},
		{"time", "", "time 0001-01-01"}, {"time", `"1969-12-31T00:00:00Z"`, "time 1969"},
		{"time", fmt.Sprintf("%q", later), "has not come"}, {"time", `"9999-12-31T00:00:00Z"`, "time 9999"},
		{"address", `"a\u0000b"`, "U+0000"}, {"callback", `"a\u0000b"`, "U+0000"},
		{"message_id", `"7F3C2A10-5b1e-4c6f-9d2a-0e8b6a4c1f55"`, `"7F3C2A10`},
		{"message_id", `"{7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55}"`, "not a UUID"},
	} {
		row, err := history.FromJSON(line(c.field, c.value))
		if err == nil || row.ID != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s gives %v, want %q", c.field, c.value, err, c.want)
		}
	}
	for _, c := range []struct{ field, value string }{{"size", "2"}, {"size", ""}, {"event", ""},
		{"commit", `"c"`}, {"fate", `"of a later version"`}, {"props", `{"tag": "a\u0000b"}`},
		{"address", `"bü ild/ta#g*"`}, {"unknown", "1"}} {
		if row, err := history.FromJSON(line(c.field, c.value)); err != nil || row.ID == "" {
			t.Errorf("%s %s gives %+v, %v", c.field, c.value, row, err)
		}
	}
	for _, c := range []struct{ field, value string }{{"address", ""}, {"fate", `"skipped"`}} {
		if row, err := history.FromJSON(line(c.field, c.value)); err != nil || row.ID != "" {
			t.Errorf("an event that made no message, %s %s, gives %+v, %v", c.field, c.value, row, err)
		}
	}
}

// An administrator copies ids from logs and tickets.
func TestMessageIDIsFoundHoweverItIsWritten(t *testing.T) {
	t.Parallel()
	store, err := file.Open(filepath.Join(t.TempDir(), "history"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	m := storetest.Tagged(1, time.Now())
	storetest.Append(t, store, inspect.Accepted, m)
	for _, id := range []string{m.ID, strings.ToUpper(m.ID), " " + m.ID + "\n", "{" + m.ID + "}",
		"urn:uuid:" + m.ID} {
		found := 0
		err := history.Search(t.Context(), store, inspect.HistoryQuery{ID: id},
			func(*inspect.HistoryMessage) error { found++; return nil })
		if err != nil || found != 1 {
			t.Errorf("--id %q finds %d messages, %v", id, found, err)
		}
		if shown, err := history.Show(t.Context(), store, id); err != nil || shown.MessageID != m.ID {
			t.Errorf("show %q gives %v", id, err)
		}
	}
}
