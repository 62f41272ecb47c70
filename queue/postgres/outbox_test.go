package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func commitID(n int) string {
	return uuid.NewSHA1(storetest.TestCommit, fmt.Append(nil, "commit", n)).String()
}

// insertEvents is what the hub inserts for one commit: events first to last-1.
func insertEvents(commit string, first, last int) string {
	var values []string
	for n := first; n < last; n++ {
		values = append(values, fmt.Sprintf(`('%s', %d, 'postTag', '{"n" :  %d, "f": 1.0}')`, commit, n, n))
	}
	return "INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES " + strings.Join(values, ", ")
}

// fakePublisher takes everything, unless told otherwise.
type fakePublisher struct {
	// mu guards the fields below.
	mu      sync.Mutex
	commits []message.Commit
	refuse  func(message.Commit) []int
	during  func()
	hold    func(message.Commit) // not under mu
	queued  bool                 // nothing is sent, all is queued
}

func (f *fakePublisher) Publish(_ context.Context, c message.Commit) message.Receipt {
	if f.hold != nil {
		f.hold(c)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.during != nil {
		f.during()
	}
	f.commits = append(f.commits, c)
	r := message.Receipt{Sent: len(c.Events)}
	if f.queued {
		r = message.Receipt{Queued: len(c.Events)}
	}
	if f.refuse != nil {
		r.NotTaken = f.refuse(c)
		r.Reason = "the queue is full"
	}
	return r
}

// count is the number of events taken.
func (f *fakePublisher) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.commits {
		n += len(c.Events)
	}
	return n
}

func (f *fakePublisher) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, c := range f.commits {
		for _, e := range c.Events {
			list = append(list, fmt.Sprintf("%s/%d", c.ID, e.Number))
		}
	}
	return list
}

// readingOutbox runs a reader until the test ends.
func readingOutbox(tb testing.TB, p *Store, publisher Publisher) *Outbox {
	tb.Helper()
	b := NewOutbox(p, publisher, OutboxOptions{Interval: time.Minute})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return b
}

func outboxLeft(tb testing.TB, conn string) int {
	tb.Helper()
	return query[int](tb, conn, "SELECT count(*) FROM koji_relay.outbox")
}

func TestOutboxIsTakenByWholeCommitsInOrder(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	var want []string
	for n := range 60 {
		size := 1 + n*7%50 // some pages end inside a commit
		pgtest.SQL(t, conn, insertEvents(commitID(n), 0, size))
		want = append(want, commitID(n))
	}
	publisher := &fakePublisher{}
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	var got []string
	for _, c := range publisher.commits {
		got = append(got, c.ID)
		for i, e := range c.Events {
			if e.Number != i || e.Callback != "postTag" ||
				string(e.Kwargs) != fmt.Sprintf(`{"n" :  %d, "f": 1.0}`, i) {
				t.Fatalf("event %d of %s came as %+v %s", i, c.ID, e, e.Kwargs)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("commits were taken in the order\n%v, want\n%v", got, want)
	}
}

func TestOutboxIsReadOnNotificationWithoutDelay(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	publisher := &fakePublisher{}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "it reads", func() bool { return reader.Status().Reading })
	pgtest.SQL(t, conn, "BEGIN;"+insertEvents(commitID(1), 0, 1)+"; SELECT pg_notify('koji_relay', ''); COMMIT")
	began := time.Now()
	storetest.Eventually(t, "the event was taken", func() bool { return publisher.count() == 1 })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v; the interval is a minute", took)
	}
}

// The reader of the test looks once a minute by itself, and nobody notifies it.
func TestOutboxLooksAtOnceAndAsOftenAsANewIntervalSays(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	publisher := &fakePublisher{}
	b := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "it is the reader", func() bool { return b.Status().Reading })
	b.SetInterval(time.Hour)
	b.SetInterval(50 * time.Millisecond)
	for n := range 3 {
		pgtest.SQL(t, conn, insertEvents(commitID(n), 0, 1))
		storetest.Eventually(t, "the commit is taken", func() bool { return publisher.count() == n+1 })
	}
}

func TestEventsNotTakenStayAndAreTriedAgain(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 4)+";"+insertEvents(commitID(2), 0, 1))
	publisher := &fakePublisher{}
	tries := 0
	publisher.refuse = func(message.Commit) []int {
		if tries++; tries == 1 {
			return []int{1, 3}
		}
		return nil
	}
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	c1, c2 := commitID(1), commitID(2)
	want := []string{c1 + "/0", c1 + "/1", c1 + "/2", c1 + "/3", c1 + "/1", c1 + "/3", c2 + "/0"}
	if got := publisher.taken(); !slices.Equal(got, want) {
		t.Errorf("taken\n%v, want\n%v", got, want)
	}
}

func TestEventTakenIsNotTakenAgainWhenItsDeletionFailed(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 3))
	publisher := &fakePublisher{}
	var once sync.Once
	publisher.during = func() {
		once.Do(func() {
			pgtest.SQL(t, conn,
				`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no deletion today''; END';
				CREATE TRIGGER refuse BEFORE DELETE ON koji_relay.outbox EXECUTE FUNCTION refuse()`)
		})
	}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the deletion failed",
		func() bool { return strings.Contains(reader.Status().Error, "no deletion") })
	pgtest.SQL(t, conn, `DROP TRIGGER refuse ON koji_relay.outbox`)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if got := publisher.count(); got != 3 {
		t.Errorf("%d events were taken, want 3 once each", got)
	}
}

func TestCommitSaysWhyItDidNotComeByTheSocket(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `BEGIN; SELECT set_config('koji_relay.fallback', 'timed out', true);`+
		insertEvents(commitID(1), 0, 2)+`; COMMIT; `+insertEvents(commitID(2), 0, 1))
	publisher := &fakePublisher{}
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	for _, c := range publisher.commits {
		if want := map[string]string{commitID(1): "timed out"}[c.ID]; c.Fallback != want {
			t.Errorf("commit %s came for the reason %q, want %q", c.ID, c.Fallback, want)
		}
	}
}

func TestTwoReadersTakeEachEventOnce(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	const commits, size = 1000, 10
	pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT md5(c::text)::uuid, e, 'postTag', '{}' FROM generate_series(1, %d) c, generate_series(0, %d) e
			ORDER BY c, e`, commits, size-1))
	publisher := &fakePublisher{}
	ctx, cancel := context.WithCancel(t.Context())
	var first sync.WaitGroup
	a := NewOutbox(open(t, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second})
	first.Go(func() { _ = a.Run(ctx) })
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "a part was taken", func() bool { return publisher.count() > commits*size/4 })
	cancel() // an orderly stop: the other one goes on
	first.Wait()
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	got := publisher.taken()
	slices.Sort(got)
	if n := len(got); n != commits*size || len(slices.Compact(got)) != n {
		t.Errorf("%d events were taken, want %d, each once", n, commits*size)
	}
}

func TestLargeCommitIsHandedOverInPieces(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT '`+commitID(1)+`', e, 'postTag', json_build_object('log', repeat('x', 1000))
		FROM generate_series(0, 9) e`)
	publisher := &fakePublisher{}
	p := open(t, conn, queue.Limits{})
	b := NewOutbox(p, publisher, OutboxOptions{Interval: 30 * time.Second, MaxBytes: 3500})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Run(ctx) })
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	cancel()
	wg.Wait()
	if len(publisher.commits) != 4 || publisher.count() != 10 {
		t.Errorf("%d pieces with %d events, want 4 with 10", len(publisher.commits), publisher.count())
	}
}

func TestAppendedCommitIsBehindTheOthersAndCountsAsBacklog(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	if b := storetest.Backlog(t, p); b.Any() {
		t.Errorf("a new database has the backlog %+v", b)
	}
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 2))
	if b := storetest.Backlog(t, p); !b.Outbox || b.Queue {
		t.Errorf("backlog %+v, want the outbox", b)
	}
	c := message.Commit{ID: commitID(2),
		Events: []message.Event{{Number: 4, Callback: "postUntag", Kwargs: storetest.Raw(`{"a":  1}`)}}}
	for range 2 { // idempotent
		if err := p.AppendOutbox(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	publisher := &fakePublisher{}
	readingOutbox(t, p, publisher)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if got, want := publisher.taken(), []string{commitID(1) + "/0", commitID(1) + "/1",
		commitID(2) + "/4"}; !slices.Equal(got, want) {
		t.Errorf("taken %v, want %v", got, want)
	}
	if got := string(publisher.commits[1].Events[0].Kwargs); got != `{"a":  1}` {
		t.Errorf("kwargs came back as %s", got)
	}
	if b := storetest.Backlog(t, p); b.Any() {
		t.Errorf("an emptied database has the backlog %+v", b)
	}
}
