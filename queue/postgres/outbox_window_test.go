package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// builds says that a commit is about the builds in the kwargs of its events: {"about": "1 2"}.
func builds(c message.Commit) []string {
	var all []string
	for _, e := range c.Events {
		_, text, _ := strings.Cut(string(e.Kwargs), `"about": "`)
		text, _, _ = strings.Cut(text, `"`)
		all = append(all, strings.Fields(text)...)
	}
	return all
}

func insertAbout(commit, about string) string {
	return fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES ('%s', 0, `+
		`'postTag', '{"about": "%s"}');`,
		commit, about)
}

// reads runs a reader with options until the test ends, or until the function that it gives is called.
func reads(t *testing.T, p *Store, publisher Publisher, o OutboxOptions) (stop func()) {
	t.Helper()
	b := NewOutbox(p, publisher, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestCommitsAboutDifferentBuildsAreTakenAtOnce(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	var sql strings.Builder
	for n := range 3 * mostUnderWay {
		sql.WriteString(insertAbout(commitID(n), fmt.Sprint(n)))
	}
	pgtest.SQL(t, conn, sql.String())
	var under, peak atomic.Int64
	all := make(chan struct{})
	reached := sync.OnceFunc(func() { close(all) })
	publisher := &fakePublisher{hold: func(message.Commit) {
		n := under.Add(1)
		defer under.Add(-1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		if n == mostUnderWay {
			reached()
		}
		<-all // which takes as many at once
	}}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
		Subjects: builds})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if peak.Load() != mostUnderWay {
		t.Errorf("%d commits were taken at once, want %d", peak.Load(), mostUnderWay)
	}
}

// The hub waits for the queue, too: what the outbox puts there must not stand in its way.
func TestFewCommitsAreQueuedAtOnce(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	var sql strings.Builder
	for n := range 5 * mostUnderWay {
		sql.WriteString(insertAbout(commitID(n), fmt.Sprint(n)))
	}
	pgtest.SQL(t, conn, sql.String())
	var mu sync.Mutex
	under, taken, peak := 0, 0, 0
	publisher := &fakePublisher{queued: true, hold: func(message.Commit) {
		mu.Lock()
		under++
		taken++
		if taken > 2*mostUnderWay { // it has learned
			peak = max(peak, under)
		}
		mu.Unlock()
		<-time.After(time.Millisecond)
		mu.Lock()
		under--
		mu.Unlock()
	}}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
		Subjects: builds})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if peak > mostIntoQueue {
		t.Errorf("%d commits were put at once, want at most %d", peak, mostIntoQueue)
	}
}

func TestCommitsAboutOneBuildKeepTheirOrder(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	const commits, builtThings = 600, 12
	var sql strings.Builder
	want := map[string][]string{} // by build
	for n := range commits {
		about := []string{fmt.Sprint(rand.IntN(builtThings))}
		if n%5 == 0 {
			about = append(about, fmt.Sprint(rand.IntN(builtThings)))
		}
		slices.Sort(about)
		about = slices.Compact(about)
		for _, b := range about {
			want[b] = append(want[b], commitID(n))
		}
		sql.WriteString(insertAbout(commitID(n), strings.Join(about, " ")))
	}
	pgtest.SQL(t, conn, sql.String())
	var mu sync.Mutex
	under := map[string]string{} // by build: the commit that is being taken
	began := map[string][]string{}
	publisher := &fakePublisher{hold: func(c message.Commit) {
		mu.Lock()
		for _, b := range builds(c) {
			if other := under[b]; other != "" {
				t.Errorf("%s was begun while %s, about the same build %s, was not over", c.ID, other, b)
			}
			under[b] = c.ID
			began[b] = append(began[b], c.ID)
		}
		mu.Unlock()
		<-time.After(rand.N(3 * time.Millisecond))
		mu.Lock()
		for _, b := range builds(c) {
			under[b] = ""
		}
		mu.Unlock()
	}}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
		Subjects: builds})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	for b, commits := range want {
		if !slices.Equal(began[b], commits) {
			t.Errorf("of build %s the commits came as\n%v, want\n%v", b, began[b], commits)
		}
	}
}

// What stands behind a commit that was held back must not overtake it, and what was done is not done again.
func TestCommitHeldBackStopsThoseAboutTheSameBuildOnly(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, insertAbout(commitID(1), "1")+insertAbout(commitID(2), "1")+
		insertAbout(commitID(3), "3"))
	var refused atomic.Int64
	publisher := &fakePublisher{}
	publisher.refuse = func(c message.Commit) []int {
		if c.ID == commitID(1) && refused.Add(1) <= 2 {
			return []int{0}
		}
		return nil
	}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
		Subjects: builds})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	got := publisher.taken()
	first := slices.Index(got, commitID(2)+"/0")
	tries := 0
	for _, id := range got[:max(0, first)] {
		if id == commitID(1)+"/0" {
			tries++
		}
	}
	if tries != 3 || len(got) != 5 {
		t.Errorf("taken %v, want the first commit three times before the second, and the others once", got)
	}
}

// A commit of 20,000 events is no reason to repeat any of them, or to wait for the last before the first is
// deleted.
func TestHugeCommitIsTakenInPiecesWhoseProgressIsKept(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	const events = 20_000
	pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT '%s', e, 'postTag', '{}' FROM generate_series(0, %d) e;`,
		commitID(1), events-1)+insertEvents(commitID(2), 0, 1))
	publisher := &fakePublisher{}
	most, refused := 0, 0
	publisher.refuse = func(c message.Commit) []int {
		most = max(most, len(c.Events))
		if n := len(publisher.commits); n == 30 || n == 60 { // the store is full for a moment
			publisher.commits[n-1].Events = nil // it counts what is taken
			var all []int
			for _, e := range c.Events {
				all = append(all, e.Number)
			}
			refused += len(all)
			return all
		}
		return nil
	}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	got := publisher.taken()
	var want []string
	for n := range events {
		want = append(want, fmt.Sprintf("%s/%d", commitID(1), n))
	}
	if want = append(want, commitID(2)+"/0"); !slices.Equal(got, want) {
		t.Errorf("%d events were taken and not refused, want all %d in order, each once", len(got), len(want))
	}
	if most > pieceEvents || refused == 0 {
		t.Errorf("pieces had up to %d events, want at most %d; %d were refused", most, pieceEvents, refused)
	}
}

func TestEventsInHandAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT md5(c::text)::uuid, 0, 'postTag', json_build_object('about', c::text, 'log', repeat('x', 10000))
		FROM generate_series(1, 200) c`)
	var mu sync.Mutex
	bytes, peak := 0, 0
	publisher := &fakePublisher{hold: func(c message.Commit) {
		n := len(c.Events[0].Kwargs)
		mu.Lock()
		bytes += n
		peak = max(peak, bytes)
		mu.Unlock()
		<-time.After(time.Millisecond)
		mu.Lock()
		bytes -= n
		mu.Unlock()
	}}
	reads(t, open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
		MaxBytes: 50_000,
		Subjects: func(c message.Commit) []string { return []string{c.ID} }})
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if peak > 50_000 || publisher.count() != 200 {
		t.Errorf("%d bytes were in hand at once, want at most 50000; %d events were taken", peak, publisher.count())
	}
}
