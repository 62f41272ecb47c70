package queue

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"koji-relay/internal/message"
)

// inspected is a Store with its administrator's side.
type inspected interface {
	Store
	Inspector
}

func list(tb testing.TB, s Inspector, box Box, o ListOptions) []Item {
	tb.Helper()
	var items []Item
	if err := s.List(tb.Context(), box, o, func(it Item) error {
		items = append(items, it)
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return items
}

func events(items []Item) []int {
	numbers := []int{}
	for _, it := range items {
		numbers = append(numbers, it.Message.Event)
	}
	return numbers
}

// filled has 1 fresh, 2 set aside for an hour, 3 a dead message, 4 a dead event, 5 a dead message that cannot be stored.
func filled(t *testing.T, open func(Limits) Store) inspected {
	t.Helper()
	s := open(Limits{}).(inspected)
	other := aMessage(2)
	other.Address = "task.open"
	five := aMessage(5)
	five.Body = "\xff"
	put(t, s, unsent(1, 1)[0], message.Unsent{Message: other}, after(aMessage(3), message.Dead, "too large"), message.Unsent{Message: five})
	mustSettle(t, s, Settlement{ID: other.ID, Action: SetAside, Attempts: 2, Tries: 3, Delay: time.Hour, Reason: "no binding"})
	err := s.Put(t.Context(), nil, []message.Undeliverable{
		{ID: "id-4", Commit: "c", Event: 4, Callback: "postTag", Kwargs: []byte(`{"x": 1}`), Reason: "no address"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatsCountTheQueue(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		size := int64(unsent(1, 1)[0].Message.Size())
		want := Stats{
			Depth: 2, Bytes: 2 * size, SetAside: 1, Dead: 3,
			Topics: []TopicStats{{Address: "build.tag", Depth: 1, Bytes: size}, {Address: "task.open", Depth: 1, Bytes: size}},
			DeadReasons: map[string]int64{"rejected by b1:5672: too large": 1, "no address": 1,
				"cannot be stored: the body is not UTF-8": 1},
		}
		if diff := cmp.Diff(want, st, cmpopts.IgnoreTypes(time.Time{})); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
		if age := time.Since(st.Oldest); age < 0 || age > time.Minute {
			t.Errorf("the oldest message is %v old", age)
		}
		if next := time.Until(st.NextAttempt); next < 50*time.Minute || next > 61*time.Minute {
			t.Errorf("the next attempt is in %v, want about an hour", next)
		}
	})
}

func TestListNarrowsAndKeepsOrder(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		if got := events(list(t, s, Queue, ListOptions{})); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("queue holds %v, want 1, 2", got)
		}
		if got := events(list(t, s, Queue, ListOptions{Address: "task.open"})); !slices.Equal(got, []int{2}) {
			t.Errorf("task.open holds %v, want 2", got)
		}
		if got := len(list(t, s, Dead, ListOptions{Limit: 2})); got != 2 {
			t.Errorf("2 of the dead letters asked for, got %d", got)
		}
		if got := events(list(t, s, Dead, ListOptions{Newest: true, Limit: 1})); !slices.Equal(got, []int{4}) {
			t.Errorf("the newest dead letter is %v, want 4", got)
		}
		put(t, s, unsent(10, 10+2*listChunk)...)
		newest := events(list(t, s, Queue, ListOptions{Newest: true}))
		slices.Reverse(newest)
		if len(newest) != 2*listChunk+3 || !slices.IsSorted(newest) {
			t.Errorf("the list of the newest has %d items, want %d in falling order", len(newest), 2*listChunk+3)
		}
		if got := events(list(t, s, Queue, ListOptions{})); len(got) != 2*listChunk+3 || !slices.IsSorted(got) {
			t.Errorf("a long list has %d items, want %d in order", len(got), 2*listChunk+3)
		}
	})
}

func TestShowGivesBodyPropsAndReason(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		it, err := s.Show(t.Context(), Queue, aMessage(2).ID)
		if err != nil {
			t.Fatal(err)
		}
		if string(it.Body) != aMessage(2).Body || it.Props != `{"type": "Tag", "n": 2}` || it.Reason != "no binding" ||
			it.Attempts != 2 || it.Tries != 3 || it.NextAttempt.IsZero() {
			t.Errorf("show gave %+v", it)
		}
		if it, err = s.Show(t.Context(), Dead, aMessage(5).ID); err != nil || string(it.Body) != "\xff" || it.Event {
			t.Errorf("show of a dead message gave %+v, %v", it, err)
		}
		if it, err = s.Show(t.Context(), Dead, "id-4"); err != nil || string(it.Body) != `{"x": 1}` || !it.Event {
			t.Errorf("show of a dead event gave %+v, %v", it, err)
		}
		if _, err = s.Show(t.Context(), Queue, "id-4"); !errors.Is(err, ErrNotFound) {
			t.Errorf("show of an unknown id gave %v, want ErrNotFound", err)
		}
	})
}

func TestRetryMakesMessagesDueNow(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		drained(t, s)
		changed, err := s.Retry(t.Context(), Queue, Selection{IDs: []string{aMessage(1).ID, aMessage(2).ID, "unknown"}})
		if err != nil || changed.Count != 2 || !slices.Equal(changed.Missing, []string{"unknown"}) {
			t.Errorf("retry gave %+v, %v", changed, err)
		}
		got := drained(t, s)
		if n := numbers(got); !slices.Equal(n, []int{1, 2}) || got[1].Attempts != 0 {
			t.Errorf("after retry the drain gets %v, want 1, still fresh, and 2 without attempts", n)
		}
	})
}

func TestRetryOfAllDeadLettersLeavesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		changed, err := s.Retry(t.Context(), Dead, Selection{All: true})
		if err != nil || changed.Count != 1 {
			t.Errorf("retry gave %+v, %v; want 1", changed, err)
		}
		changed, err = s.Retry(t.Context(), Dead, Selection{IDs: []string{"id-4", aMessage(5).ID}})
		if err != nil || changed.Count != 0 || len(changed.Missing) != 2 {
			t.Errorf("retry of an event and an unusable message gave %+v, %v", changed, err)
		}
		if got := numbers(drained(t, s)); !slices.Equal(got, []int{1, 3}) {
			t.Errorf("the drain gets %v, want 1 and 3", got)
		}
		if got := len(list(t, s, Dead, ListOptions{})); got != 2 {
			t.Errorf("%d dead letters are left, want 2", got)
		}
	})
}

func TestDropDeletes(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := filled(t, open)
		changed, err := s.Drop(t.Context(), Queue, Selection{IDs: []string{aMessage(1).ID, "unknown"}})
		if err != nil || changed.Count != 1 || len(changed.Missing) != 1 {
			t.Errorf("drop gave %+v, %v", changed, err)
		}
		if got := events(list(t, s, Queue, ListOptions{})); !slices.Equal(got, []int{2}) {
			t.Errorf("queue holds %v after drop of 1", got)
		}
		changed, err = s.Drop(t.Context(), Dead, Selection{All: true})
		if err != nil || changed.Count != 3 {
			t.Errorf("drop of all dead letters gave %+v, %v", changed, err)
		}
	})
}

func TestExportAndImportMoveAQueueBetweenStores(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		from := filled(t, open)
		put(t, from, message.Unsent{Message: aging(aMessage(6), 30*time.Hour)})
		var text bytes.Buffer
		if err := Export(t.Context(), from, &text); err != nil {
			t.Fatal(err)
		}
		to := openFile(t, t.TempDir()+"/other.db", Limits{})
		for _, want := range []Imported{{Stored: 6}, {Present: 6}} {
			got, err := Import(t.Context(), to, strings.NewReader(text.String()))
			if err != nil || got != want {
				t.Errorf("import gave %+v, %v; want %+v", got, err, want)
			}
		}
		almost := cmpopts.EquateApproxTime(2 * time.Second)
		for _, box := range []Box{Queue, Dead} {
			for _, it := range list(t, from, box, ListOptions{}) {
				want, err := from.Show(t.Context(), box, it.Message.ID)
				if err != nil {
					t.Fatal(err)
				}
				got, err := to.Show(t.Context(), box, it.Message.ID)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, almost); diff != "" {
					t.Errorf("%s changed (-exported +imported):\n%s", it.Message.ID, diff)
				}
			}
		}
		if done := expire(t, to, Expiry{MaxAge: 24 * time.Hour}); done.Messages["build.tag"] != 1 {
			t.Errorf("expired %v after the move, want the one that was old before", done.Messages)
		}
	})
}

func TestImportNamesTheLineThatItCannotRead(t *testing.T) {
	t.Parallel()
	s := openFile(t, t.TempDir()+"/queue.db", Limits{})
	for _, test := range []struct{ text, want string }{
		{"{", "line 1"},
		{`{"kind":"message","message_id":"a","address":"a","props":"{}","body":"1"}` + "\n" + `{"kind":"letter"}`, `line 2 of the import: unknown kind "letter"`},
		{`{"kind":"message"}`, "message_id is missing"},
	} {
		if _, err := Import(t.Context(), s, strings.NewReader(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("import of %q gave %v, want %q", test.text, err, test.want)
		}
	}
}

func TestDeadLettersAgeOut(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, open func(Limits) Store) {
		s := open(Limits{}).(inspected)
		old := Item{Message: aMessage(1), Props: "{}", Body: []byte("1"), Queued: time.Now().Add(-31 * 24 * time.Hour), Reason: "r"}
		young := Item{Message: aMessage(2), Props: "{}", Body: []byte("1"), Queued: time.Now().Add(-29 * 24 * time.Hour), Reason: "r"}
		if n, err := s.Add(t.Context(), Dead, []Item{old, young}); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if done := expire(t, s, Expiry{DeadMaxAge: 30 * 24 * time.Hour}); done.Dead != 1 {
			t.Errorf("%d dead letters aged out, want 1", done.Dead)
		}
		if got := events(list(t, s, Dead, ListOptions{})); !slices.Equal(got, []int{2}) {
			t.Errorf("left %v, want 2", got)
		}
	})
}
