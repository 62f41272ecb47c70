package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// announce registers readers.
func announce(tb testing.TB, p *Store, names ...string) {
	tb.Helper()
	for _, name := range names {
		if _, err := p.Announce(tb.Context(), name, "*"); err != nil {
			tb.Fatal(err)
		}
	}
}

// readingAs runs a reader called name until stop is called, or the test ends.
func readingAs(tb testing.TB, p *Store, name string, publisher Publisher) (b *Outbox, stop func()) {
	tb.Helper()
	b = NewOutbox(p, publisher, OutboxOptions{Name: name, Interval: 100 * time.Millisecond,
		Subjects: func(c message.Commit) []string { return []string{c.ID} }})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = b.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	tb.Cleanup(stop)
	return b, stop
}

func marksLeft(tb testing.TB, conn string) int {
	tb.Helper()
	return query[int](tb, conn, "SELECT count(*) FROM koji_relay.outbox_taken")
}

// insertCommits inserts commits of three events.
func insertCommits(tb testing.TB, conn string, first, last int) {
	tb.Helper()
	for n := first; n < last; n++ {
		pgtest.SQL(tb, conn, insertEvents(commitID(n), 0, 3))
	}
}

func TestEachReaderTakesEachEventOnceAndTheLastDeletesIt(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	stores := map[string]*Store{"": open(t, conn, queue.Limits{}), "new": open(t, conn, queue.Limits{}),
		"third-1": open(t, conn, queue.Limits{})}
	takers := map[string]*fakePublisher{}
	for name, p := range stores {
		announce(t, p, name)
		takers[name] = &fakePublisher{}
		readingAs(t, p, name, takers[name])
	}
	insertCommits(t, conn, 0, 300)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	for name, publisher := range takers {
		got := publisher.taken()
		slices.Sort(got)
		if n := len(got); n != 900 || len(slices.Compact(got)) != n {
			t.Errorf("reader %q took %d events, want 900, each once", name, n)
		}
	}
	if n := marksLeft(t, conn); n != 0 {
		t.Errorf("%d marks are left", n)
	}
}

// Two readers finish the same events at the same moment, again and again.
func TestEventsThatTwoReadersFinishAtOnceAreDeleted(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	a, b := open(t, conn, queue.Limits{}), open(t, conn, queue.Limits{})
	announce(t, a, "", "new")
	for round := range 60 {
		pgtest.SQL(t, conn, insertEvents(commitID(round), 0, 5))
		var ids []int64
		var commits []string
		for n := range int64(5) {
			ids, commits = append(ids, int64(round)*5+n+1), append(commits, commitID(round))
		}
		start := make(chan struct{})
		var finishing sync.WaitGroup
		for name, p := range map[string]*Store{"": a, "new": b} {
			finishing.Go(func() {
				<-start
				if err := p.finishOutbox(t.Context(), name, ids, commits); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		finishing.Wait()
		if n := outboxLeft(t, conn); n != 0 {
			t.Fatalf("round %d: %d events were left by two readers who have both taken them", round, n)
		}
	}
	if n := marksLeft(t, conn); n != 0 {
		t.Errorf("%d marks are left", n)
	}
}

func TestReaderThatIsAwayGetsWhatCameMeanwhile(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new")
	here, away := &fakePublisher{}, &fakePublisher{}
	_, stop := readingAs(t, p, "new", away)
	readingAs(t, p, "", here)
	insertCommits(t, conn, 0, 10)
	storetest.Eventually(t, "both have taken", func() bool { return here.count() == 30 && away.count() == 30 })
	stop()
	insertCommits(t, conn, 10, 30)
	storetest.Eventually(t, "the other one goes on", func() bool { return here.count() == 90 })
	storetest.Eventually(t, "it marks", func() bool { return marksLeft(t, conn) == 60 })
	if st, err := p.Stats(t.Context()); err != nil || st.Outbox != 0 {
		t.Errorf("%d events wait for the unnamed relay (%v), want none", st.Outbox, err)
	}
	readers, err := p.Readers(t.Context())
	if err != nil || len(readers) != 2 || readers[0].Depth != 0 || readers[1].Depth != 60 ||
		readers[0].Holder.PID == 0 || readers[1].Holder.PID != 0 || readers[1].Oldest.IsZero() {
		t.Errorf("the readers are %+v (%v)", readers, err)
	}
	readingAs(t, p, "new", away)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if here.count() != 90 || away.count() != 90 {
		t.Errorf("%d and %d events were taken, want 90 each", here.count(), away.count())
	}
}

// A relay that is frozen keeps its session and its lock, and says nothing any more.
func TestFrozenReaderIsAway(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new")
	for _, name := range []string{"", "new"} {
		reading, _ := readingAs(t, p, name, &fakePublisher{})
		storetest.Eventually(t, "it reads", func() bool { return reading.Status().Reading })
	}
	pgtest.SQL(t, conn, `UPDATE koji_relay.reader SET seen = now() - interval '4 minutes' WHERE name = 'new'`)
	readers, err := p.Readers(t.Context())
	if err != nil || len(readers) != 2 || readers[0].Away || !readers[1].Away || readers[1].Holder.PID == 0 {
		t.Errorf("the readers are %+v (%v), want only the second one away", readers, err)
	}
}

func TestForgottenReaderHoldsNothingAndTheOthersKeepTheirs(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new", "slow")
	insertCommits(t, conn, 0, 700) // more than one chunk
	const half = 1050
	var ids []int64
	var commits []string
	for n := range half {
		ids, commits = append(ids, int64(n+1)), append(commits, commitID(n/3))
	}
	for _, name := range []string{"", "slow"} {
		if err := p.finishOutbox(t.Context(), name, ids, commits); err != nil {
			t.Fatal(err)
		}
	}
	if n := outboxLeft(t, conn); n != 2100 {
		t.Fatalf("%d events are there, want all 2100", n)
	}
	release := make(chan struct{})
	reading, stop := readingAs(t, p, "new", &fakePublisher{hold: func(message.Commit) { <-release },
		refuse: func(message.Commit) []int { return []int{0, 1, 2} }})
	storetest.Eventually(t, "it reads", func() bool { return reading.Status().Reading })
	if _, _, err := p.ForgetReader(t.Context(), "new"); !errors.Is(err, ErrReading) {
		t.Errorf("a reader that reads was forgotten: %v", err)
	}
	close(release)
	stop()
	storetest.Eventually(t, "it is forgotten", func() bool {
		known, deleted, err := p.ForgetReader(t.Context(), "new")
		if err == nil && (!known || deleted != half) {
			t.Errorf("known %v, %d events deleted, want %d", known, deleted, half)
		}
		return err == nil
	})
	if n := outboxLeft(t, conn); n != 2100-half {
		t.Errorf("%d events are left, want those that the others have not taken: %d", n, 2100-half)
	}
	if known, deleted, err := p.ForgetReader(t.Context(), "new"); known || deleted != 0 || err != nil {
		t.Errorf("forgetting it again gave %v, %d, %v", known, deleted, err)
	}
	if n := marksLeft(t, conn); n != 0 {
		t.Errorf("%d marks are left", n)
	}
}

// Whoever marks while a reader is forgotten leaves nothing that nobody takes.
func TestReaderIsForgottenWhileOthersMark(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	for round := range 30 {
		announce(t, p, "", "new", "other")
		pgtest.SQL(t, conn, insertEvents(commitID(round), 0, 2))
		ids := []int64{int64(2*round + 1), int64(2*round + 2)}
		commits := []string{commitID(round), commitID(round)}
		start := make(chan struct{})
		var work sync.WaitGroup
		for _, name := range []string{"", "other"} {
			work.Go(func() {
				<-start
				if err := p.finishOutbox(t.Context(), name, ids, commits); err != nil {
					t.Error(err)
				}
			})
		}
		work.Go(func() {
			<-start
			if _, _, err := p.ForgetReader(t.Context(), "new"); err != nil {
				t.Error(err)
			}
		})
		close(start)
		work.Wait()
		if n := outboxLeft(t, conn); n != 0 {
			t.Fatalf("round %d: %d events were left, which nobody will take", round, n)
		}
	}
}

func TestOldEventsGoAndWhoMissedThemIsNamed(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new")
	pgtest.SQL(t, conn, `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs, created)
		SELECT md5(i::text)::uuid, 0, 'postTag', '{}', now() - interval '2 days' FROM generate_series(1, 2500) i`)
	insertCommits(t, conn, 5000, 5002)
	publisher := &fakePublisher{}
	readingAs(t, p, "", publisher)
	storetest.Eventually(t, "it took and marked", func() bool { return marksLeft(t, conn) == 2506 })
	lost, err := p.ExpireOutbox(t.Context(), "new", 24*time.Hour)
	if err != nil || len(lost) != 0 || outboxLeft(t, conn) != 2506 {
		t.Errorf("a reader gave up what it had not taken: %v, %v", lost, err)
	}
	lost, err = p.ExpireOutbox(t.Context(), "", 24*time.Hour)
	if err != nil || len(lost) != 1 || lost["new"] != 2500 {
		t.Errorf("lost %v (%v), want 2500 of new", lost, err)
	}
	if n := outboxLeft(t, conn); n != 6 || marksLeft(t, conn) != 6 {
		t.Errorf("%d events are left, want the 6 that are young", n)
	}
}

// A relay from before named readers runs on while the first one is registered.
func TestDeletionOfAnOldRelayIsHeld(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "")
	const oldDelete = `DELETE FROM koji_relay.outbox WHERE commit = '%s'`
	insertCommits(t, conn, 0, 3)
	pgtest.SQL(t, as(relayRole, conn), fmt.Sprintf(oldDelete, commitID(0)))
	if n := outboxLeft(t, conn); n != 6 {
		t.Fatalf("%d events are left without a named reader, want 6", n)
	}
	announce(t, p, "new")
	pgtest.SQL(t, as(relayRole, conn), fmt.Sprintf(oldDelete, commitID(1)))
	if n := outboxLeft(t, conn); n != 6 {
		t.Errorf("an old relay deleted what another reader needs: %d events are left, want 6", n)
	}
	publisher, unnamed := &fakePublisher{}, &fakePublisher{}
	readingAs(t, p, "new", publisher)
	storetest.Eventually(t, "what the old one took is gone", func() bool { return outboxLeft(t, conn) == 3 })
	readingAs(t, p, "", unnamed)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if publisher.count() != 6 || unnamed.count() != 3 || marksLeft(t, conn) != 0 {
		t.Errorf("%d and %d events were taken, %d marks left; want 6, 3, 0", publisher.count(), unnamed.count(),
			marksLeft(t, conn))
	}
}

// An id that the server gives a second time is another event: the mark of the first one says nothing of it.
func TestMarkOfAnEarlierEventOfTheSameIDIsNone(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new")
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 1))
	pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox_taken VALUES (1, '', '%s'), (1, 'new', '%s')`,
		commitID(7), commitID(7)))
	one, other := &fakePublisher{}, &fakePublisher{}
	readingAs(t, p, "", one)
	readingAs(t, p, "new", other)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if one.count() != 1 || other.count() != 1 {
		t.Errorf("taken %d and %d times, want once each", one.count(), other.count())
	}
}

// A killed server may forget neither an event that a reader needs nor, without the event, a mark.
func TestServerKilledWhileTwoReadersReadLosesNothing(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	p := open(t, conn, queue.Limits{})
	announce(t, p, "", "new")
	takers := []*fakePublisher{{}, {}}
	for i, name := range []string{"", "new"} {
		readingAs(t, open(t, conn, queue.Limits{}), name, takers[i])
	}
	want := map[string]bool{}
	for round := range 3 {
		for n := 100 * round; n < 100*round+100; n++ {
			pgtest.SQL(t, conn, insertEvents(commitID(n), 0, 3))
			for e := range 3 {
				want[fmt.Sprintf("%s/%d", commitID(n), e)] = true
			}
		}
		cluster.Kill()
		cluster.Start(t)
	}
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	for i, publisher := range takers {
		got := map[string]bool{}
		for _, id := range publisher.taken() {
			got[id] = true
		}
		for id := range want {
			if !got[id] {
				t.Errorf("reader %d never took %s", i, id)
			}
		}
	}
}

func TestReaderIsRegisteredWithWhatItWants(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	if others, err := p.Announce(t.Context(), "", "postTag"); err != nil || len(others) != 0 || p.Shared() {
		t.Errorf("the only reader has the others %q (%v)", others, err)
	}
	if others, err := p.Announce(t.Context(), "new", "*"); err != nil ||
		!slices.Equal(others, []string{"postTag"}) {
		t.Errorf("the others want %q (%v), want postTag", others, err)
	}
	if others, err := p.Announce(t.Context(), "", "postTag"); err != nil ||
		!slices.Equal(others, []string{"*"}) ||
		!p.Shared() {
		t.Errorf("the others want %q (%v), want *", others, err)
	}
}
