package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/schema"
	"koji-relay/queue/storetest"
)

// listening hears what is notified in the database until the test ends.
type listening struct {
	// mu guards the field below.
	mu       sync.Mutex
	payloads []string
}

func listenTo(t *testing.T, conn string) *listening {
	t.Helper()
	db, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), "LISTEN "+channel); err != nil {
		t.Fatal(err)
	}
	l := &listening{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			n, err := db.WaitForNotification(ctx)
			if err != nil {
				return
			}
			l.mu.Lock()
			l.payloads = append(l.payloads, n.Payload)
			l.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		closeConn(db)
	})
	return l
}

func (l *listening) count(payload string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, p := range l.payloads {
		if p == payload {
			n++
		}
	}
	return n
}

// wakeUps runs ListenQueue until the test ends, and counts how often it calls.
func wakeUps(t *testing.T, s *Store) (count func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		s.ListenQueue(ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			n++
		})
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	count = func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
	storetest.Eventually(t, "it listens", func() bool { return count() > 0 })
	return count
}

// NOTIFY takes a lock of the whole server: a put must not hold it, and a burst of puts needs few of them.
func TestManyPutsShareANotification(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	heard := listenTo(t, conn)
	s := open(t, conn, queue.Limits{})
	wakeUps(t, s)
	began := time.Now()
	for n := range 100 {
		storetest.Put(t, s, storetest.Unsent(n, n)...)
	}
	most := int(time.Since(began)/notifyEvery) + 2
	storetest.Eventually(t, "others were told", func() bool { return heard.count(notifyQueue) > 0 })
	if got := heard.count(notifyQueue); got > most {
		t.Errorf("%d notifications for 100 puts, want at most %d", got, most)
	}
}

func TestStoreThatIsClosedTellsOfItsLastPut(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	heard := listenTo(t, conn)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "others were told", func() bool { return heard.count(notifyQueue) == 1 })
}

// A process may die between the commit of its put and the notification.
func TestPutThatNobodyWasToldOfIsNoticedSoon(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	count := wakeUps(t, open(t, conn, queue.Limits{}))
	before := count()
	fill(t, conn, 1, 1, "NULL")
	storetest.Eventually(t, "the row was noticed", func() bool { return count() > before })
}

func TestEventThatNobodyWasToldOfIsTakenSoon(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	publisher := &fakePublisher{}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "it reads", func() bool { return reader.Status().Reading })
	// its number is drawn, and seen, long before it
	commit := uncommitted(t, conn, insertEvents(commitID(1), 0, 1))
	drawn := time.Now()
	storetest.Eventually(t, "the reader looked at the sequence",
		func() bool { return time.Since(drawn) > keepAlive+keepAlive/4 })
	commit()
	storetest.Eventually(t, "the event was taken", func() bool { return publisher.count() == 1 })
}

func TestPokeWakesTheReaderOfThisProcess(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	heard := listenTo(t, conn)
	publisher := &fakePublisher{}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "it reads", func() bool { return reader.Status().Reading })
	for n := range 20 {
		pgtest.SQL(t, conn, insertEvents(commitID(n), 0, 1))
		reader.Poke()
		storetest.Eventually(t, "the event was taken", func() bool { return publisher.count() == n+1 })
	}
	if n := heard.count(notifyOutbox); n != 0 {
		t.Errorf("%d notifications, want none: the reader is in this process", n)
	}
}

func TestPokeIsPassedOnToTheReaderOfAnotherProcess(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	publisher := &fakePublisher{}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "it reads", func() bool { return reader.Status().Reading })
	heard := listenTo(t, conn)
	other := open(t, conn, queue.Limits{})
	wakeUps(t, other)
	poked := NewOutbox(other, &fakePublisher{}, OutboxOptions{Interval: 30 * time.Second})
	began := time.Now()
	for range 1000 {
		poked.Poke()
	}
	most := int(time.Since(began)/notifyEvery) + 2
	storetest.Eventually(t, "the reader was told", func() bool { return heard.count(notifyOutbox) > 0 })
	if got := heard.count(notifyOutbox); got > most {
		t.Errorf("%d notifications for 1000 pokes, want at most %d", got, most)
	}
}

func TestUpgradeGivesTheRolesWhatTheNewTableNeeds(t *testing.T) {
	t.Parallel()
	rights := `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA koji_relay, public TO %[1]q;
		GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO %[1]q; GRANT USAGE ON SCHEMA koji_relay TO %[1]q, %[2]q;
		GRANT SELECT, INSERT ON koji_relay.outbox TO %[2]q;`
	version1 := createRoles() + "CREATE SCHEMA koji_relay;" + schema.Steps[0] +
		"INSERT INTO koji_relay.version (version) VALUES (1);" + fmt.Sprintf(rights, relayRole, hubRole)
	conn := pgtest.Database(t, kojiTables+version1)
	if _, err := Open(t.Context(), Options{ConnString: as(relayRole, conn)}); !errors.Is(err, queue.ErrSchema) {
		t.Fatalf("opening a schema of version 1 gave %v, want that it is to be upgraded", err)
	}
	s, err := OpenSchema(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := open(t, conn, queue.Limits{})
	for _, events := range []string{"postTag", "post* pre*"} {
		if _, err := p.Announce(t.Context(), "", events); err != nil {
			t.Fatal(err)
		}
	}
	if got := query[string](t, as(hubRole, conn),
		"SELECT string_agg(name || '=' || events, ',') FROM koji_relay.reader"); got != "=post* pre*" {
		t.Errorf("the hub reads %q, want what was announced last", got)
	}
}
