package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// blockPuts has all puts wait until the function that it gives is called.
func blockPuts(t *testing.T, conn string) (release func()) {
	return uncommitted(t, conn, "LOCK TABLE koji_relay.delivery IN SHARE MODE")
}

// await waits until n puts have begun or wait for others.
func (g *together) await(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		g.mu.Lock()
		now := g.running + len(g.waiting)
		g.mu.Unlock()
		if now == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d puts are there, want %d", now, n)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// transactions is how many put what is in the queue.
func transactions(t *testing.T, conn string) int {
	t.Helper()
	return query[int](t, conn, "SELECT count(DISTINCT xmin::text)::int FROM proton_queue")
}

type putResult struct {
	stored queue.Stored
	err    error
}

// puts has one put for each list under way, in their order, once those before it wait.
func puts(t *testing.T, ctx context.Context, p *Store, lists ...[]message.Unsent) []chan putResult {
	t.Helper()
	var results []chan putResult
	for i, list := range lists {
		result := make(chan putResult, 1)
		results = append(results, result)
		go func() {
			stored, err := p.Put(ctx, list, nil)
			result <- putResult{stored, err}
		}()
		p.together.await(t, i+1)
	}
	return results
}

func singles(first, last int) (lists [][]message.Unsent) {
	for n := first; n <= last; n++ {
		lists = append(lists, storetest.Unsent(n, n))
	}
	return lists
}

func TestPutsThatComeDuringOthersShareATransaction(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	release := blockPuts(t, conn)
	results := puts(t, t.Context(), p, singles(1, 20)...)
	release()
	for i, result := range results {
		if r := <-result; r.err != nil || len(r.stored.Dead) > 0 {
			t.Errorf("put %d: %+v", i+1, r)
		}
	}
	if n := transactions(t, conn); n != putsAtOnce+1 {
		t.Errorf("20 puts were committed by %d transactions, want %d", n, putsAtOnce+1)
	}
	order := query[[]int](t, conn, `SELECT array_agg(event ORDER BY queue_id) FROM koji_relay.delivery
		WHERE event > $1`, putsAtOnce)
	if !slices.IsSorted(order) {
		t.Errorf("messages are not in the order of their puts: %v", order)
	}
}

// What the server refuses becomes a dead letter of its own put, and a full queue or a put whose time is over
// costs no other.
func TestPutPaysForNoOther(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET max_stack_depth = ''200kB''', current_database()); END $$`)
	p := open(t, conn, queue.Limits{})
	release := blockPuts(t, conn)
	lists := singles(1, 9)
	lists[4][0].Message.Body = strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	results := puts(t, t.Context(), p, lists...)
	short, cancel := context.WithCancel(t.Context())
	late := make(chan error, 1)
	go func() {
		_, err := p.Put(short, storetest.Unsent(10, 10), nil)
		late <- err
	}()
	p.together.await(t, 10)
	cancel()
	if err := <-late; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 message") {
		t.Errorf("the put whose time is over: %v", err)
	}
	p.together.await(t, 9)
	release()
	for i, result := range results {
		want := 0
		if i == 4 {
			want = 1
		}
		if r := <-result; r.err != nil || len(r.stored.Dead) != want {
			t.Errorf("put %d: %+v", i+1, r)
		}
	}
	if n := query[int](t, conn, "SELECT count(*)::int FROM proton_queue"); n != 8 {
		t.Errorf("%d messages are queued, want 8", n)
	}
}

// The first of those who wait may have no time left when it is its turn: the others have.
func TestPutsGoOnWithoutTheOneThatWasToLead(t *testing.T) {
	t.Parallel()
	g := &together{running: putsAtOnce}
	one := queue.Incoming{Rows: make([]queue.Row, 1)}
	first, second := &share{in: one, lead: make(chan []*share, 1)}, &share{in: one, done: make(chan bool, 1)}
	g.begin(first)
	g.begin(second)
	g.end()
	g.leave(first)
	if stored := <-second.done; stored {
		t.Error("the other one is told that it is stored")
	}
	if g.end(); g.running != 0 {
		t.Errorf("%d are under way", g.running)
	}
}
