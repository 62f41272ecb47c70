package storetest

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// List gives all items of box.
func List(tb testing.TB, s queue.Inspector, box inspect.Box, o inspect.ListOptions) []queue.Item {
	tb.Helper()
	var items []queue.Item
	if err := s.List(tb.Context(), box, o, func(it queue.Item) error {
		items = append(items, it)
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	return items
}

func events(items []queue.Item) []int {
	numbers := []int{}
	for _, it := range items {
		numbers = append(numbers, it.Message.Event)
	}
	return numbers
}

// filled has 1 fresh, 2 set aside for an hour, 3 a dead message, 4 a dead event, 5 a dead message that cannot
// be stored.
func filled(t *testing.T, open Opener) Store {
	t.Helper()
	s := open(t, queue.Limits{})
	other := Message(2)
	other.Address = "task.open"
	five := Message(5)
	five.Body = "\xff"
	Put(t, s, Unsent(1, 1)[0], message.Unsent{Message: other}, after(Message(3), message.Dead, "too large"),
		message.Unsent{Message: five})
	Settle(t, s, queue.Settlement{ID: other.ID, Action: queue.SetAside, Attempts: 2, Tries: 3, Delay: time.Hour,
		Reason: "no binding"})
	_, err := s.Put(t.Context(), nil, []message.Undeliverable{
		{ID: "id-4", Commit: "c", Event: 4, Callback: "postTag", Kwargs: []byte(`{"x": 1}`), Reason: "no address"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func statsCountTheQueue(t *testing.T, open Opener) {
	s := filled(t, open)
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	size := int64(Unsent(1, 1)[0].Message.Size())
	want := inspect.Statistics{
		Depth: 2, Bytes: 2 * size, SetAside: 1, AsideReason: "no binding", AsideFor: 1, DeadLetters: 3,
		ByTopic: []inspect.Topic{{Address: "build.tag", Depth: 1, Bytes: size},
			{Address: "task.open", Depth: 1, Bytes: size}},
		DeadLettersByReason: map[string]int64{"rejected by b1:5672: too large": 1, "no address": 1,
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
}

func listNarrowsAndKeepsOrder(t *testing.T, open Opener) {
	s := filled(t, open)
	if got := events(List(t, s, inspect.QueueBox, inspect.ListOptions{})); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("queue holds %v, want 1, 2", got)
	}
	if got := events(List(t, s, inspect.QueueBox, inspect.ListOptions{Address: "task.open"})); !slices.Equal(got,
		[]int{2}) {
		t.Errorf("task.open holds %v, want 2", got)
	}
	if got := len(List(t, s, inspect.DeadBox, inspect.ListOptions{Limit: 2})); got != 2 {
		t.Errorf("2 of the dead letters asked for, got %d", got)
	}
	if got := events(List(t, s, inspect.DeadBox, inspect.ListOptions{Newest: true, Limit: 1})); !slices.Equal(
		got, []int{4}) {
		t.Errorf("the newest dead letter is %v, want 4", got)
	}
	Put(t, s, Unsent(10, 10+2*queue.ListChunk)...)
	newest := events(List(t, s, inspect.QueueBox, inspect.ListOptions{Newest: true}))
	slices.Reverse(newest)
	if len(newest) != 2*queue.ListChunk+3 || !slices.IsSorted(newest) {
		t.Errorf("the list of the newest has %d items, want %d in falling order", len(newest), 2*queue.ListChunk+3)
	}
	if got := events(List(t, s, inspect.QueueBox, inspect.ListOptions{})); len(got) != 2*queue.ListChunk+3 ||
		!slices.IsSorted(got) {
		t.Errorf("a long list has %d items, want %d in order", len(got), 2*queue.ListChunk+3)
	}
}

func showGivesBodyPropsAndReason(t *testing.T, open Opener) {
	s := filled(t, open)
	it, err := s.Show(t.Context(), inspect.QueueBox, Message(2).ID)
	if err != nil {
		t.Fatal(err)
	}
	if string(it.Body) != Message(2).Body || it.Props != `{"type": "Tag", "n": 2}` ||
		it.Reason != "no binding" ||
		it.Attempts != 2 || it.Tries != 3 || it.NextAttempt.IsZero() {
		t.Errorf("show gave %+v", it)
	}
	if it, err = s.Show(t.Context(), inspect.DeadBox, Message(5).ID); err != nil || string(it.Body) != "\xff" ||
		it.Event {
		t.Errorf("show of a dead message gave %+v, %v", it, err)
	}
	if it, err = s.Show(t.Context(), inspect.DeadBox, "id-4"); err != nil || string(it.Body) != `{"x": 1}` ||
		!it.Event {
		t.Errorf("show of a dead event gave %+v, %v", it, err)
	}
	if _, err = s.Show(t.Context(), inspect.QueueBox, "id-4"); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("show of an unknown id gave %v, want ErrNotFound", err)
	}
}

func retryMakesMessagesDueNow(t *testing.T, open Opener) {
	s := filled(t, open)
	Drained(t, s)
	changed, err := s.Retry(t.Context(), inspect.QueueBox,
		inspect.Selection{IDs: []string{Message(1).ID, Message(2).ID, "unknown"}})
	if err != nil || changed.Count != 2 || !slices.Equal(changed.Missing, []string{"unknown"}) {
		t.Errorf("retry gave %+v, %v", changed, err)
	}
	got := Drained(t, s)
	if n := Numbers(got); !slices.Equal(n, []int{1, 2}) || got[1].Attempts != 0 {
		t.Errorf("after retry the drain gets %v, want 1, still fresh, and 2 without attempts", n)
	}
}

func retryOfAllDeadLettersLeavesWhatIsNoMessage(t *testing.T, open Opener) {
	s := filled(t, open)
	changed, err := s.Retry(t.Context(), inspect.DeadBox, inspect.Selection{All: true})
	if err != nil || changed.Count != 1 {
		t.Errorf("retry gave %+v, %v; want 1", changed, err)
	}
	changed, err = s.Retry(t.Context(), inspect.DeadBox, inspect.Selection{IDs: []string{"id-4", Message(5).ID}})
	if err != nil || changed.Count != 0 || len(changed.Missing) != 2 {
		t.Errorf("retry of an event and an unusable message gave %+v, %v", changed, err)
	}
	if got := Numbers(Drained(t, s)); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("the drain gets %v, want 1 and 3", got)
	}
	if got := len(List(t, s, inspect.DeadBox, inspect.ListOptions{})); got != 2 {
		t.Errorf("%d dead letters are left, want 2", got)
	}
}

func dropDeletes(t *testing.T, open Opener) {
	s := filled(t, open)
	changed, err := s.Drop(t.Context(), inspect.QueueBox,
		inspect.Selection{IDs: []string{Message(1).ID, "unknown"}})
	if err != nil || changed.Count != 1 || len(changed.Missing) != 1 {
		t.Errorf("drop gave %+v, %v", changed, err)
	}
	if got := events(List(t, s, inspect.QueueBox, inspect.ListOptions{})); !slices.Equal(got, []int{2}) {
		t.Errorf("queue holds %v after drop of 1", got)
	}
	changed, err = s.Drop(t.Context(), inspect.DeadBox, inspect.Selection{All: true})
	if err != nil || changed.Count != 3 {
		t.Errorf("drop of all dead letters gave %+v, %v", changed, err)
	}
}

func exportAndImportMoveAQueueBetweenStores(t *testing.T, open Opener) {
	from := filled(t, open)
	Put(t, from, message.Unsent{Message: aging(Message(6), 30*time.Hour)})
	var text bytes.Buffer
	if err := queue.Export(t.Context(), from, &text); err != nil {
		t.Fatal(err)
	}
	to := open(t, queue.Limits{})
	for _, want := range []inspect.Imported{{Stored: 6}, {Present: 6}} {
		got, err := queue.Import(t.Context(), to, strings.NewReader(text.String()))
		if err != nil || got != want {
			t.Errorf("import gave %+v, %v; want %+v", got, err, want)
		}
	}
	almost := cmpopts.EquateApproxTime(2 * time.Second)
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		for _, it := range List(t, from, box, inspect.ListOptions{}) {
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
	ids := []string{"no such id"}
	for _, it := range List(t, to, inspect.QueueBox, inspect.ListOptions{}) {
		ids = append(ids, it.Message.ID)
	}
	if n, err := to.Holds(t.Context(), ids); err != nil || n != len(ids)-1 || n == 0 {
		t.Errorf("of %d ids the queue holds %d, error %v", len(ids), n, err)
	}
	if done := expire(t, to, queue.Expiry{MaxAge: 24 * time.Hour}); done.Messages["build.tag"] != 1 {
		t.Errorf("expired %v after the move, want the one that was old before", done.Messages)
	}
}

func importNamesTheLineThatItCannotRead(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	for _, test := range []struct{ text, want string }{
		{"{", "line 1"},
		{`{"kind":"message","message_id":"a","address":"a","props":"{}","body":"1"}` + "\n" + `{"kind":"letter"}`,
			`line 2 of the import: unknown kind "letter"`},
		{`{"kind":"message"}`, "message_id is missing"},
	} {
		if _, err := queue.Import(t.Context(), s, strings.NewReader(test.text)); err == nil ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("import of %q gave %v, want %q", test.text, err, test.want)
		}
	}
}

func deadLettersAgeOut(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	old := queue.Item{Message: Message(1), Props: "{}", Body: []byte("1"),
		Queued: time.Now().Add(-31 * 24 * time.Hour), Reason: "r"}
	young := queue.Item{Message: Message(2), Props: "{}", Body: []byte("1"),
		Queued: time.Now().Add(-29 * 24 * time.Hour), Reason: "r"}
	if n, err := s.Add(t.Context(), inspect.DeadBox, []queue.Item{old, young}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if done := expire(t, s, queue.Expiry{DeadMaxAge: 30 * 24 * time.Hour}); done.Dead != 1 {
		t.Errorf("%d dead letters aged out, want 1", done.Dead)
	}
	if got := events(List(t, s, inspect.DeadBox, inspect.ListOptions{})); !slices.Equal(got, []int{2}) {
		t.Errorf("left %v, want 2", got)
	}
}
