package postgres

import (
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// uncommitted runs sql in a transaction that stays open until the function that it gives is called.
func uncommitted(t *testing.T, conn, sql string) (commit func()) {
	t.Helper()
	db, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeConn(db) })
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Commit(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A put that is overtaken by another one keeps its place before those that come after its commit.
func TestMessageCommittedLateIsGivenBeforeThosePutAfterIt(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	p := open(t, conn, queue.Limits{})
	commit := uncommitted(t, conn, `WITH n AS (SELECT nextval('proton_queue_id_seq') AS id), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size, callback, event)
			SELECT 'late', id, now(), now(), 'build.tag', 100, 'postTag', 1 FROM n
		) INSERT INTO proton_queue (id, created_ts, address, props, body)
			SELECT id, now(), 'build.tag', '{}', '{}' FROM n`)
	put := func(first, last int) {
		t.Helper()
		if _, err := p.Put(t.Context(), storetest.Unsent(first, last), nil); err != nil {
			t.Fatal(err)
		}
	}
	put(2, 4)
	pass, err := p.BeginDrain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pass.End(true)
	next := func(want ...int) {
		t.Helper()
		entries, err := pass.Next(t.Context(), queue.BatchLimits{Messages: 2, Bytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, e := range entries {
			got = append(got, e.Message.Event)
		}
		storetest.WantNumbers(t, "given", got, want...)
	}
	next(2, 3) // the first one is not there yet
	storetest.Settle(t, p, queue.Settlement{ID: storetest.Message(2).ID, Action: queue.Forget})
	commit()
	put(5, 6)
	next(1, 4) // 3 is being sent
	next(5, 6)
	next()
}

func TestEventCommittedLateIsTakenBeforeThoseInsertedAfterIt(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	commit := uncommitted(t, conn, insertEvents(commitID(1), 0, 1))
	pgtest.SQL(t, conn, insertEvents(commitID(2), 0, 1))
	publisher := &fakePublisher{}
	var once sync.Once
	publisher.during = func() { // the reader has passed the first one
		once.Do(func() {
			commit()
			pgtest.SQL(t, conn, insertEvents(commitID(3), 0, 1))
		})
	}
	readingOutbox(t, open(t, conn, queue.Limits{}), publisher)
	storetest.Eventually(t, "the outbox is empty", func() bool { return outboxLeft(t, conn) == 0 })
	want := []string{commitID(2) + "/0", commitID(1) + "/0", commitID(3) + "/0"}
	if got := publisher.taken(); !slices.Equal(got, want) {
		t.Errorf("taken\n%v, want\n%v", got, want)
	}
}
