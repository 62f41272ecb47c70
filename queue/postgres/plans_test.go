package postgres

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// TestWorkDoesNotGrowWithTheQueueWhateverTheStatisticsSay: a table that is empty one minute and has a million
// rows the next has the planner's statistics of the minute before. Rows read are counted, by the server.
func TestWorkDoesNotGrowWithTheQueueWhateverTheStatisticsSay(t *testing.T) {
	t.Parallel()
	for name, reltuples := range map[string]float64{"empty": 0, "never analyzed": -1, "huge": 1e8} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const rows = 20_000
			conn := hubDatabase(t)
			fill(t, conn, 1, rows, "NULL")
			fill(t, conn, rows+1, 2*rows, "now() + interval '1 hour'")
			protonmsgInsert(t, conn, 1, 500)
			pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
				SELECT md5(i::text)::uuid, 0, 'postTag', '{}' FROM generate_series(1, %d) i`, rows))
			pgtest.SQL(t, conn, "VACUUM ANALYZE")
			pgtest.SQL(t, conn, fmt.Sprintf(`UPDATE pg_class SET reltuples = %v
				WHERE relnamespace = 'koji_relay'::regnamespace
				OR relname LIKE 'proton_queue%%'`, reltuples))
			before := rowsRead(t, conn)
			workOnQueue(t, open(t, conn, queue.Limits{}))
			after := rowsRead(t, conn)
			// Once each row of the queue is compared with its delivery row.
			if read := after - before; read > 5*rows {
				t.Errorf("%d rows were read for some 700 messages, beside %d of the walk for rows of protonmsg",
					read-4*rows, 4*rows)
			}
		})
	}
}

// TestOutboxHeldForAnotherReaderCostsLittle: what is held for a reader that is away is walked past now and
// then only, and once, whatever the planner believes of it.
func TestOutboxHeldForAnotherReaderCostsLittle(t *testing.T) {
	t.Parallel()
	for name, reltuples := range map[string]float64{"empty": 0, "never analyzed": -1, "huge": 1e8} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const rows = 20_000
			conn := hubDatabase(t)
			setUp := open(t, conn, queue.Limits{})
			announce(t, setUp, "", "away")
			if err := setUp.Close(); err != nil {
				t.Fatal(err)
			}
			pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
				SELECT md5(i::text)::uuid, 0, 'postTag', '{}' FROM generate_series(1, %d) i;
				INSERT INTO koji_relay.outbox_taken SELECT id, '', commit FROM koji_relay.outbox`, rows))
			pgtest.SQL(t, conn, "VACUUM ANALYZE")
			pgtest.SQL(t, conn, fmt.Sprintf(`UPDATE pg_class SET reltuples = %v
				WHERE relnamespace = 'koji_relay'::regnamespace`, reltuples))
			before := rowsRead(t, conn)
			p := open(t, conn, queue.Limits{})
			announce(t, p, "")
			w := newWindow(NewOutbox(p, &fakePublisher{}, OutboxOptions{Interval: time.Minute}), nil)
			look := func(want int) {
				t.Helper()
				if page, err := w.page(t.Context(), outboxPage); err != nil || len(page) != want {
					t.Fatalf("%d events are seen, want %d (%v)", len(page), want, err)
				}
			}
			look(0)
			// From ten seconds on a reader walks past everything once a minute only, whatever connection it uses.
			w.walk.reached(time.Now().Add(-2*lateness), rows)
			for n := range 10 {
				p.pool.Reset()
				pgtest.SQL(t, conn, insertEvents(commitID(n), 0, 1))
				look(n + 1)
				// A slow machine counts no more often than the administrator looks.
				p.counted.took, p.readers.took = time.Hour, time.Hour
				st, err := p.Stats(t.Context())
				readers, alsoErr := p.Readers(t.Context())
				if err != nil || alsoErr != nil || st.Outbox != 1 || len(readers) != 2 || readers[1].Depth != rows+1 {
					t.Fatalf("%d events wait, the readers are %+v (%v, %v)", st.Outbox, readers, err, alsoErr)
				}
			}
			// A full walk that is due is made beside the reads, which find thereafter what was committed late.
			w.walk.full, w.walk.cost = time.Now().Add(-2*fullEvery), 0
			pgtest.SQL(t, conn, "DELETE FROM koji_relay.outbox_taken WHERE id = 5")
			look(10)
			if !w.lookBehind {
				t.Fatal("no full walk is due")
			}
			w.look(t.Context())
			if err := w.noteBehind(<-w.looked); err != nil {
				t.Fatal(err)
			}
			look(11)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			// Two full walks over events and marks, one of each count, and one read from the late event on; the
			// second reader has no marks.
			if read := rowsRead(t, conn) - before; read > 13*rows {
				t.Errorf("%d rows were read for 10 events beside %d that are held", read, rows)
			}
		})
	}
}

// rowsRead is what sessions that have ended read of our tables, by index or not.
func rowsRead(tb testing.TB, conn string) int64 {
	tb.Helper()
	storetest.Eventually(tb, "our sessions have ended", func() bool {
		return query[int64](tb, conn,
			`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'koji-relay'
				AND datname = current_database()`) == 0
	})
	return query[int64](tb, conn,
		`SELECT ((SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)
			+ (SELECT sum(seq_tup_read) FROM pg_stat_user_tables))::bigint`)
}

// workOnQueue does each thing that happens while a queue is long, and closes p.
func workOnQueue(t *testing.T, p *Store) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pass, err := p.BeginDrain(ctx)
	must(err)
	_, err = pass.Expire(ctx, queue.Expiry{MaxAge: time.Hour, ToDead: true, DeadMaxAge: time.Hour})
	must(err)
	var aside []string
	for range 5 {
		entries, err := pass.Next(ctx, queue.BatchLimits{Messages: 100, Bytes: 1 << 20})
		must(err)
		var settlements []queue.Settlement
		for i, e := range entries {
			s := queue.Settlement{ID: e.Message.ID, Action: queue.Forget}
			switch i % 10 {
			case 1:
				s.Action = queue.Bury
			case 2:
				s.Action, s.Delay = queue.SetAside, time.Hour
				aside = append(aside, s.ID)
			}
			settlements = append(settlements, s)
		}
		must(p.Settle(ctx, settlements))
	}
	pass.End(true)
	for i := range 10 {
		for range 2 { // the hub asked again
			_, err := p.Put(ctx, storetest.Unsent(5*i, 5*i+4), nil)
			must(err)
		}
		_, err := p.Backlog(ctx)
		must(err)
	}
	_, err = p.Show(ctx, inspect.QueueBox, aside[0])
	must(err)
	_, err = p.Retry(ctx, inspect.QueueBox, inspect.Selection{IDs: aside[:20]})
	must(err)
	_, err = p.Drop(ctx, inspect.QueueBox, inspect.Selection{IDs: aside[20:]})
	must(err)

	publisher := &fakePublisher{}
	reading, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() { _ = NewOutbox(p, publisher, OutboxOptions{Interval: 30 * time.Second}).Run(reading) })
	storetest.Eventually(t, "events were read", func() bool { return publisher.count() > 100 })
	cancel()
	reader.Wait()
	must(p.Close())
}
