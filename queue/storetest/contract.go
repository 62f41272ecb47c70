package storetest

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

func messageComesBackAsItWasPut(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	m := Message(1)
	m.Props = []message.Prop{
		{Key: "zz", Value: "first stays first"}, {Key: "float", Value: 1.0}, {Key: "long", Value: int64(1)},
		{Key: "min", Value: int64(math.MinInt64)}, {Key: "max", Value: int64(math.MaxInt64)},
		{Key: "big", Value: Raw("9223372036854775808")}, {Key: "tiny", Value: 5e-324},
		{Key: "zero", Value: math.Copysign(0, -1)}, {Key: "null", Value: nil}, {Key: "yes", Value: true},
		{Key: "no", Value: false}, {Key: "nul", Value: "a\x00b"}, {Key: "lone", Value: Raw(`"\ud800"`)},
		{Key: "pair", Value: "\U0001F600<>&"}, {Key: "list", Value: Raw(`[1,  {"a": 1.50}]`)},
	}
	m.Body = "{\"a\" :\t[1.0, 1e400, \"\\u0000 \\ud83d\\ude00 \\ud800 \x7f/\"],\"a\":2}"
	Put(t, s, message.Unsent{Message: m})
	got := Drained(t, s)
	if len(got) != 1 {
		t.Fatalf("got %d messages, want 1", len(got))
	}
	if diff := cmp.Diff(m, got[0].Message); diff != "" {
		t.Errorf("the message changed (-put +drained):\n%s", diff)
	}
}

func putKeepsTheOrderOfTheCommit(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	Put(t, s, Unsent(1, 150)...)
	Put(t, s, Unsent(151, 160)...)
	got := Numbers(Drained(t, s))
	if len(got) != 160 || !slices.IsSorted(got) {
		t.Errorf("drained %v, want 1 to 160 in order", got)
	}
}

func putIsIdempotentOnMessageID(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	Put(t, s, Unsent(1, 3)...)
	Put(t, s, Unsent(2, 5)...)
	Put(t, s, append(Unsent(6, 6), Unsent(6, 6)...)...)
	if got := Numbers(Drained(t, s)); !slices.Equal(got, []int{1, 2, 3, 4, 5, 6}) {
		t.Errorf("drained %v, want 1 to 6 once each", got)
	}
}

func concurrentPutsOfTheSameMessagesStoreThemOnce(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			list := Unsent(1, 40)
			if i%2 == 1 {
				slices.Reverse(list)
			}
			if _, err := s.Put(t.Context(), list, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := Numbers(Drained(t, s))
	slices.Sort(got)
	if len(got) != 40 || len(slices.Compact(got)) != 40 {
		t.Errorf("drained %d messages, want 40", len(got))
	}
}

func messageIsGoneOnlyAfterForget(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	Put(t, s, Unsent(1, 3)...)
	Drained(t, s)
	Settle(t, s, queue.Settlement{ID: Message(2).ID, Action: queue.Forget},
		queue.Settlement{ID: "unknown", Action: queue.Forget})
	if got := Numbers(Drained(t, s)); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("drained %v, want 1 and 3", got)
	}
	Put(t, s, Unsent(2, 2)...)
	if got := Numbers(Drained(t, s)); !slices.Equal(got, []int{1, 3, 2}) {
		t.Errorf("drained %v, want 2 again, behind the others", got)
	}
}

func messageSetAsideIsPassedOverUntilDue(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	Put(t, s, Unsent(1, 4)...)
	Settle(t, s,
		queue.Settlement{ID: Message(1).ID, Action: queue.SetAside, Attempts: 3, Tries: 5, Delay: time.Hour,
			Reason: "no binding"},
		queue.Settlement{ID: Message(2).ID, Action: queue.SetAside, Attempts: 1, Tries: 2, Delay: -time.Second,
			Reason: "busy \xff\x00"})
	got := Drained(t, s)
	if n := Numbers(got); !slices.Equal(n, []int{3, 4, 2}) {
		t.Fatalf("drained %v, want the fresh 3, 4 and then 2, which is due", n)
	}
	if e := got[2]; e.Attempts != 1 || e.Tries != 2 {
		t.Errorf("counts came back as %d attempts, %d tries; want 1 and 2", e.Attempts, e.Tries)
	}
	if b := Backlog(t, s); !b.Queue {
		t.Error("no backlog while messages were never attempted")
	}
	Settle(t, s, queue.Settlement{ID: Message(3).ID, Action: queue.Forget},
		queue.Settlement{ID: Message(4).ID, Action: queue.Forget})
	if b := Backlog(t, s); b.Any() {
		t.Error("messages set aside count as backlog")
	}
}

func outcomeOfPublishDecidesWherePutStores(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	Put(t, s,
		after(Message(1), message.Wait, ""),
		after(Message(2), message.Later, "no binding"),
		after(Message(3), message.Count, "not allowed"),
		after(Message(4), message.Dead, "too large"),
		after(Message(5), message.Done, ""))
	if got := Numbers(Drained(t, s)); !slices.Equal(got, []int{1}) {
		t.Errorf("drained %v at once, want only 1, which was not attempted", got)
	}
}

func batchKeepsItsLimits(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	var list []message.Unsent
	for n := 1; n <= 12; n++ {
		m := Message(n)
		m.Body = `"` + strings.Repeat("x", 1000) + `"`
		if n == 5 {
			m.Body = `"` + strings.Repeat("x", 100_000) + `"`
		}
		list = append(list, message.Unsent{Message: m})
	}
	Put(t, s, list...)
	pass, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pass.End(true)
	var sizes []int
	for {
		batch, err := pass.Next(t.Context(), queue.BatchLimits{Messages: 4, Bytes: 5000})
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			break
		}
		sizes = append(sizes, len(batch))
	}
	if !slices.Equal(sizes, []int{3, 1, 1, 3, 3, 1}) {
		t.Errorf("batches of %v, want 3,1 (three fit 5000 bytes), the large one alone, 3,3,1", sizes)
	}
}

func unstorableMessageIsADeadLetterAndItsNeighboursAreQueued(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	broken := func(n int, body string, props ...message.Prop) message.Unsent {
		m := Message(n)
		m.Body, m.Props = body, props
		return message.Unsent{Message: m}
	}
	address := Message(8)
	address.Address = "build.\x00"
	deep := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	list := []message.Unsent{
		Unsent(1, 1)[0],
		broken(2, "\"\xff\""), broken(3, "\"\x00\""), broken(4, `{"a": NaN}`), broken(5, ""),
		broken(6, "{}", message.Prop{Key: "f", Value: math.NaN()}),
		broken(7, "{}", message.Prop{Key: "s", Value: "\xff"}), {Message: address}, broken(9, deep),
		Unsent(10, 10)[0],
	}
	undeliverable := []message.Undeliverable{
		{ID: "event-11", Commit: "c", Event: 11, Callback: "postTag", Kwargs: []byte("\x00\xff not json"),
			Reason: "no address"},
	}
	for range 2 { // the second time changes nothing
		if _, err := s.Put(t.Context(), list, undeliverable); err != nil {
			t.Fatal(err)
		}
	}
	got := Numbers(Drained(t, s))
	// The file can hold what is nested deeply; PostgreSQL cannot.
	if !slices.Equal(got, []int{1, 10}) && !slices.Equal(got, []int{1, 9, 10}) {
		t.Errorf("drained %v, want the neighbours 1 and 10", got)
	}
}

func largeBodyIsStored(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	m := Message(1)
	m.Body = `{"log": "` + strings.Repeat(`0123456789\u00e9`, 10<<20/16) + `"}`
	Put(t, s, append(Unsent(2, 2), message.Unsent{Message: m})...)
	got := Drained(t, s)
	if len(got) != 2 || got[1].Message.Body != m.Body {
		t.Error("a body of 10 MB did not come back to the byte")
	}
}

func fullQueueRefusesAndTakesAgainAfterDrain(t *testing.T, open Opener) {
	s := open(t, queue.Limits{MaxBytes: int64(10*Unsent(1, 1)[0].Message.Size() + 100)})
	Put(t, s, Unsent(1, 9)...)
	if _, err := s.Put(t.Context(), Unsent(10, 12), nil); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("put above max_bytes gave %v, want ErrFull", err)
	}
	if got := Numbers(Drained(t, s)); len(got) != 9 {
		t.Errorf("%d messages queued after a refused put, want 9", len(got))
	}
	Settle(t, s, queue.Settlement{ID: Message(1).ID, Action: queue.Forget},
		queue.Settlement{ID: Message(2).ID, Action: queue.Bury})
	Put(t, s, Unsent(10, 12)...)
}

func secondDrainIsRefusedUntilTheFirstEnds(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	first, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !first.Held() {
		t.Error("a new pass is not exclusive")
	}
	if _, err := s.BeginDrain(t.Context()); !errors.Is(err, queue.ErrBusy) {
		t.Errorf("a second pass gave %v, want ErrBusy", err)
	}
	first.End(true)
	second, err := s.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second.End(true)
}

func endedContextIsAnErrorThatNamesTheOperation(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	_, err := s.Put(canceled(), Unsent(1, 2), nil)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "put 2 messages") {
		t.Errorf("put gave %v, want one that names the put and wraps context.Canceled", err)
	}
}

func oldMessagesExpire(t *testing.T, open Opener) {
	hour := time.Hour
	for _, test := range []struct {
		name    string
		expiry  queue.Expiry
		left    []int
		expired map[string]int
	}{
		{"no limit keeps all", queue.Expiry{}, []int{1, 2, 3, 4}, map[string]int{}},
		{"older ones are dropped", queue.Expiry{MaxAge: 24 * hour}, []int{3, 4},
			map[string]int{"build.tag": 1, "task.open": 1}},
		{"older ones become dead letters", queue.Expiry{MaxAge: 24 * hour, ToDead: true}, []int{3, 4},
			map[string]int{"build.tag": 1, "task.open": 1}},
		{"all are old", queue.Expiry{MaxAge: time.Minute}, []int{4},
			map[string]int{"build.tag": 2, "task.open": 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, queue.Limits{})
			second := aging(Message(2), 30*hour)
			second.Address = "task.open"
			Put(t, s,
				message.Unsent{Message: aging(Message(1), 25*hour)},
				after(second, message.Later, "no binding"), // set aside messages expire as well
				message.Unsent{Message: aging(Message(3), 23*hour)},
				message.Unsent{Message: Message(4)})
			Settle(t, s, queue.Settlement{ID: second.ID, Action: queue.SetAside, Delay: -time.Second})
			each := 0
			test.expiry.Each = func(id string, created time.Time) {
				each++
				if id == second.ID && !created.Equal(second.Created) {
					t.Errorf("%s was created at %v, and not at %v", id, second.Created, created)
				}
			}
			done := expire(t, s, test.expiry)
			if each != 4-len(test.left) {
				t.Errorf("told of %d messages, want %d", each, 4-len(test.left))
			}
			if diff := cmp.Diff(test.expired, done.Messages); diff != "" {
				t.Errorf("expired by address (-want +got):\n%s", diff)
			}
			got := Numbers(Drained(t, s))
			slices.Sort(got)
			want := test.left
			if !slices.Equal(got, want) {
				t.Errorf("left %v, want %v", got, want)
			}
		})
	}
}

// putSaysWhatItDid has what a put makes a dead letter of, whether its outcome says so, its attempts are used
// up, the store cannot hold it, or there is no message at all.
func putSaysWhatItDid(t *testing.T, open Opener) {
	s := open(t, queue.Limits{MaxAttempts: 1})
	broken := Message(4)
	broken.Body = "not JSON"
	deep := Message(5)
	deep.Body = strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	list := []message.Unsent{
		after(Message(1), message.Wait, ""), after(Message(2), message.Later, "busy"),
		after(Message(3), message.Count, "not allowed"), {Message: broken}, {Message: deep},
		after(Message(6), message.Dead, "too large"), after(Message(7), message.Done, ""),
	}
	bad := []message.Undeliverable{{ID: "event-8", Commit: "c", Event: 8, Callback: "postTag",
		Kwargs: []byte("{}"), Reason: "no address"}}
	for range 2 { // the second time changes nothing, and says the same
		got, err := s.Put(t.Context(), list, bad)
		if err != nil {
			t.Fatal(err)
		}
		for id, reason := range map[string]string{Message(3).ID: "not allowed", broken.ID: "not JSON",
			Message(6).ID: "too large", "event-8": "no address"} {
			if !strings.Contains(got.Dead[id], reason) {
				t.Errorf("the put says of %s that it is dead for %q, want %q", id, got.Dead[id], reason)
			}
		}
		// one store can hold the deep one
		if held := got.Queued + len(got.Dead); held != 7 || got.Queued < 2 || got.Queued > 3 {
			t.Errorf("the put says %d queued and %d dead, want 7 together", got.Queued, len(got.Dead))
		}
		queued, dead := List(t, s, inspect.QueueBox, inspect.ListOptions{}),
			List(t, s, inspect.DeadBox, inspect.ListOptions{})
		if len(queued) != got.Queued || len(dead) != len(got.Dead) {
			t.Errorf("the store holds %d and %d dead, and the put says %d and %d", len(queued), len(dead), got.Queued,
				len(got.Dead))
		}
	}
}

func probeWritesAndLeavesNothing(t *testing.T, open Opener) {
	s := open(t, queue.Limits{})
	for range 3 {
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Depth+st.DeadLetters+st.Bytes != 0 {
		t.Errorf("after the probes the store has %+v, %v", st, err)
	}
	if got := Drained(t, s); len(got) != 0 {
		t.Errorf("the drain gets %d messages of the probes", len(got))
	}
	if err := s.Probe(canceled()); !errors.Is(err, context.Canceled) {
		t.Errorf("a probe without time gave %v", err)
	}
}
