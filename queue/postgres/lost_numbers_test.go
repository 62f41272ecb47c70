package postgres

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// A server that is killed forgets numbers that were drawn and not committed, and gives them to other rows.
// These are a backlog all the same, though numbers behind theirs were seen before.
func TestBacklogIsSeenAfterTheServerLostNumbers(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	s := open(t, conn, queue.Limits{})
	backlog := func() queue.Backlog {
		t.Helper()
		b, err := s.Backlog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// A marked position is used when it is old enough.
	age := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range []*marks[int64]{&s.backlog, &s.outbox} {
			for i := range m.at {
				m.at[i].when = m.at[i].when.Add(-lateness)
			}
		}
	}
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	storetest.Settle(t, s, queue.Settlement{ID: storetest.Message(1).ID, Action: queue.Forget})
	db, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(db)
	// What is not committed stays in memory.
	cluster.Hold(t, "walwriter")
	cluster.Hold(t, "background writer")
	const draw = `BEGIN; SELECT nextval('proton_queue_id_seq'), nextval('koji_relay.outbox_id_seq')
		FROM generate_series(1, 100)`
	if _, err := db.Exec(t.Context(), draw); err != nil {
		t.Fatal(err)
	}
	if b := backlog(); b.Queue || b.Outbox {
		t.Fatalf("the backlog is %+v, and nothing was put", b)
	}
	const drawn = "SELECT pg_sequence_last_value('proton_queue_id_seq')"
	before := query[int64](t, conn, drawn)
	cluster.Kill()
	cluster.Start(t)
	if after := query[int64](t, conn, drawn); after >= before {
		t.Fatalf("the sequence stood at %d and stands at %d: the server lost no numbers", before, after)
	}
	age()
	storetest.Put(t, s, storetest.Unsent(2, 3)...)
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 1))
	if b := backlog(); !b.Queue || !b.Outbox {
		t.Errorf("the backlog is %+v, want one in both", b)
	}
}

// After a failover to a standby that lagged behind, a new event may have the id of one that was dealt with
// and could not be deleted before.
func TestEventWithTheIDOfOneThatIsDoneIsTaken(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, insertEvents(commitID(1), 0, 2))
	publisher := &fakePublisher{}
	var once sync.Once
	publisher.during = func() {
		once.Do(func() {
			pgtest.SQL(t, conn, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
				'BEGIN RAISE ''no deletion today''; END';
				CREATE TRIGGER refuse BEFORE DELETE ON koji_relay.outbox EXECUTE FUNCTION refuse()`)
		})
	}
	reader := readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the deletion failed", func() bool { return reader.Status().Error != "" })
	pgtest.SQL(t, conn, `BEGIN; TRUNCATE koji_relay.outbox RESTART IDENTITY;`+insertEvents(commitID(2), 0, 3)+
		`; DROP TRIGGER refuse ON koji_relay.outbox; COMMIT`)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	if got := publisher.count(); got != 5 {
		t.Errorf("%d events were taken, want all 5: %v", got, publisher.taken())
	}
}
