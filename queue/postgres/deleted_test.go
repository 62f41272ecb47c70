package postgres

import (
	"slices"
	"testing"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestPutAfterTheRowWasDeletedByOthersStoresItAgain(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	pgtest.SQL(t, conn, `TRUNCATE proton_queue RESTART IDENTITY`)
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("drained %v, want 1 and 2: what was put last is in the queue", got)
	}
}

// What we know of a row that is gone must not give the row that has its number now a second time.
func TestRowWithTheNumberOfADeletedOneIsGivenOnce(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	pgtest.SQL(t, conn, `TRUNCATE proton_queue RESTART IDENTITY;
		INSERT INTO proton_queue (address, props, body) VALUES ('build.tag', '{}', '{"n": 7}')`)
	got := storetest.Drained(t, s)
	if len(got) != 1 || got[0].Message.Body != `{"n": 7}` {
		t.Errorf("drained %+v, want the row of protonmsg, once", got)
	}
}

// A queue of Koji's own may be emptied by hand. Without a broker no drain comes to sweep what we know of it.
func TestRowsDeletedByOthersAreNotCounted(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]int64{
		`TRUNCATE proton_queue`: 0,
		`DELETE FROM proton_queue WHERE id < (SELECT max(id) FROM proton_queue)`:     1,
		`DELETE FROM proton_queue WHERE id > (SELECT min(id) FROM proton_queue)`:     1,
		`DELETE FROM proton_queue WHERE id = (SELECT min(id) + 1 FROM proton_queue)`: 2,
	} {
		conn := hubDatabase(t)
		s := open(t, conn, queue.Limits{})
		storetest.Put(t, s, storetest.Unsent(1, 3)...)
		before, err := s.Stats(t.Context())
		if err != nil || before.Depth != 3 || before.Bytes == 0 {
			t.Fatalf("before: %+v %v", before, err)
		}
		s.SetLimits(queue.Limits{MaxBytes: before.Bytes})
		pgtest.SQL(t, conn, sql)
		if st, err := s.Stats(t.Context()); err != nil || st.Depth != want || (st.Bytes == 0) != (want == 0) {
			t.Errorf("%s leaves %d messages of %d bytes, want %d: %v", sql, st.Depth, st.Bytes, want, err)
		}
		if err := s.Remeasure(t.Context()); err != nil {
			t.Fatal(err)
		}
		storetest.Put(t, s, storetest.Unsent(4, 4)...) // there is room again
	}
}

// Looking for each row of a long queue takes too long to be done all the time.
func TestRowsDeletedFromALongQueueAreNotCountedAfterAMinute(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	count := func() int64 {
		t.Helper()
		s.counted.forget()
		st, err := s.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Depth
	}
	fill(t, conn, 1, statsLong+100, "NULL")
	all := count()
	pgtest.SQL(t, conn, `DELETE FROM proton_queue WHERE id BETWEEN 50 AND 59`)
	if n := count(); n != all {
		t.Errorf("%d of %d are counted, and each row was looked for again", n, all)
	}
	s.mu.Lock()
	s.compared = s.compared.Add(-comparedEach)
	s.mu.Unlock()
	for range 2 { // and the next one says the same
		if n := count(); n != all-10 {
			t.Errorf("%d of %d are counted a minute after 10 were deleted", n, all)
		}
	}
	pgtest.SQL(t, conn, `DELETE FROM koji_relay.delivery WHERE queue_id BETWEEN 50 AND 59`)
	if n := count(); n != all-10 || s.differs {
		t.Errorf("%d are counted when the drain was there, and it differs: %v", n, s.differs)
	}
}
