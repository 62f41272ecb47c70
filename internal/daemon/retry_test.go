package daemon

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"koji-relay/callbacks"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue/file"
)

const deadCommit = "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55"

// deadEvents gives a store with two events as dead letters. Today's rules understand only the
// first.
func deadEvents(t *testing.T) (queueControl, []string) {
	t.Helper()
	store, err := file.Open(filepath.Join(t.TempDir(), "queue.db"), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	var ids []string
	var bad []message.Undeliverable
	for n, kwargs := range []string{`{"build": {"name": "bash"}}`, `{"broken`} {
		id, err := callbacks.MessageID(deadCommit, n)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		bad = append(bad, message.Undeliverable{ID: id, Commit: deadCommit, Event: n, Callback: "postNew",
			Kwargs: []byte(kwargs), Reason: "an older relay did not know it"})
	}
	if _, err := store.Put(t.Context(), nil, bad); err != nil {
		t.Fatal(err)
	}
	rules, err := callbacks.New(callbacks.Options{Events: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
	return queueControl{store: store, translate: rules.Translate,
		log: slog.New(slog.NewTextHandler(t.Output(), nil)), wake: func() {}, history: noHistory{}}, ids
}

func boxIDs(t *testing.T, q queueControl, b inspect.Box) (ids []string) {
	t.Helper()
	if err := q.List(t.Context(), b, inspect.ListOptions{}, func(it inspect.Item) error {
		ids = append(ids, it.MessageID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestRetriedDeadEventIsTranslatedAgain(t *testing.T) {
	t.Parallel()
	for name, all := range map[string]bool{"by name": false, "all": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q, ids := deadEvents(t)
			which := inspect.Selection{IDs: ids}
			if all {
				which = inspect.Selection{All: true}
			}
			changed, err := q.Retry(t.Context(), inspect.DeadBox, which)
			if err != nil || changed.Count != 1 {
				t.Fatalf("changed %+v, %v; want 1", changed, err)
			}
			if !slices.Equal(changed.Missing, ids[1:]) {
				t.Errorf("missing %v, want the event that still gives no message", changed.Missing)
			}
			if got := boxIDs(t, q, inspect.QueueBox); !slices.Equal(got, ids[:1]) {
				t.Errorf("queue holds %v, want %v: the id it always had", got, ids[:1])
			}
			if got := boxIDs(t, q, inspect.DeadBox); !slices.Equal(got, ids[1:]) {
				t.Errorf("dead letters are %v, want %v", got, ids[1:])
			}
			it, err := q.Show(t.Context(), inspect.QueueBox, ids[0])
			if err != nil || it.Address == "" || it.Body != `{"build": {"name": "bash"}}` {
				t.Errorf("the message is %+v, %v", it, err)
			}
		})
	}
}
