package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"koji-relay/internal/inspect"
)

// heap keeps what is imported, as a store would.
type heap struct {
	Inspector
	items map[inspect.Box][]Item
}

func (h *heap) Add(_ context.Context, box inspect.Box, items []Item) (int, error) {
	h.items[box] = append(h.items[box], items...)
	return len(items), nil
}

// FuzzImport: an import of whatever text stores whole items or names the line, and what it stored exports to
// lines that import to the same items.
func FuzzImport(f *testing.F) {
	const line = `{"kind": "message", "message_id": "2b53e448-91ec-5132-8b6f-8078aa6cb1a3", ` +
		`"address": "build.tag", ` +
		`"props": "{}", "body": "{\"a\": \"é\"}", "created": "2026-01-02T03:04:05Z", ` +
		`"queued": "2026-01-02T03:04:05Z"}`
	for _, text := range []string{line, line + "\n" + line,
		`{"kind": "dead_event", "message_id": "x", "body_base64": "AAE="}`,
		`{"kind": "dead_message", "message_id": "x", "reason": "no", "attempts": -1}`, `{"kind": "other"}`,
		line[:50], "", "null", `{"kind": "message", "message_id": ""}`, "[]", "\xff"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h := &heap{items: make(map[inspect.Box][]Item)}
		done, err := Import(context.Background(), h, bytes.NewReader(text))
		if stored := len(h.items[inspect.QueueBox]) + len(h.items[inspect.DeadBox]); stored != done.Stored {
			t.Fatalf("%d items were stored, and it says %d (%v)", stored, done.Stored, err)
		}
		for box, items := range h.items {
			for _, it := range items {
				if it.Message.ID == "" {
					t.Fatalf("an item without an id was stored: %+v", it)
				}
				again(t, box, it)
			}
		}
	})
}

// again checks that the line of an item is read as the same item.
func again(t *testing.T, box inspect.Box, it Item) {
	t.Helper()
	for _, at := range []time.Time{it.Message.Created, it.Queued, it.NextAttempt} {
		if y := at.Year(); y < 0 || y > 9999 {
			return // JSON has no form for it
		}
	}
	line, err := json.Marshal(recordOf(box, it))
	if err != nil {
		t.Fatalf("%+v has no line: %v", it, err)
	}
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		t.Fatalf("the line %s: %v", line, err)
	}
	box2, it2, err := r.item()
	m, m2 := it.Message, it2.Message
	if err != nil || box2 != box || !bytes.Equal(it.Body, it2.Body) ||
		m.ID != m2.ID || m.Address != m2.Address ||
		it.Props != it2.Props || !it.Message.Created.Equal(it2.Message.Created) || it.Reason != it2.Reason {
		t.Fatalf("%+v came back as %+v (%v)", it, it2, err)
	}
}
