package postgres

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// fill adds rows first to last with bodies of the common size, 0.9 kB, as puts leave them.
func fill(tb testing.TB, conn string, first, last int, next string) {
	tb.Helper()
	pgtest.SQL(tb, conn, fmt.Sprintf(`
		WITH n AS (SELECT i, nextval('proton_queue_id_seq') AS id FROM generate_series(%d, %d) i), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size, callback,
				next_attempt)
			SELECT md5(i::text)::uuid::text, id, now(), now(), 'build.tag', 1300, 'postTag', %s FROM n ORDER BY id
		) INSERT INTO proton_queue (id, address, props, body)
		SELECT id, 'build.tag', '{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2",
			"release": "1", "user": "kojira"}',
			json_build_object('n', i, 'build', repeat('0123456789', 85)) FROM n ORDER BY id;
		ANALYZE koji_relay.delivery; ANALYZE proton_queue;`, first, last, next))
}

// BenchmarkDrain drains the backlog of an outage: alone, behind 100,000 messages that wait for their next
// attempt, and with an old snapshot held open by another session (a backup), so that no deleted row can be
// cleaned up.
func BenchmarkDrain(b *testing.B) {
	for _, test := range []struct {
		name     string
		waiting  int
		snapshot bool
	}{{"alone", 0, false}, {"behind_waiting", 100_000, false}, {"old_snapshot", 0, true}} {
		b.Run(test.name, func(b *testing.B) {
			for range b.N {
				conn := benchDatabase(b)
				rows := storetest.BenchRows()
				if test.waiting > 0 {
					fill(b, conn, 1, test.waiting, "now() + interval '1 hour'")
				}
				fill(b, conn, test.waiting+1, test.waiting+rows, "NULL")
				if test.snapshot {
					holdSnapshot(b, conn)
				}
				sender := &storetest.CountingSender{Rows: rows}
				storetest.Report(b, sender, rows, storetest.DrainAll(b, open(b, conn, queue.Limits{}), sender, rows))
			}
		})
	}
}

// benchDatabase is on a server that syncs to disk.
func benchDatabase(b *testing.B) string {
	b.Helper()
	cluster := pgtest.StartCluster(b)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(b, conn, kojiTables+relaySchema)
	return conn
}

func holdSnapshot(b *testing.B, connString string) {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), connString)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { closeConn(conn) })
	if _, err := conn.Exec(b.Context(),
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM locks"); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPut puts commits while every broker is down: what a hub call waits for then.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			storetest.BenchPut(b, open(b, benchDatabase(b), queue.Limits{}), size)
		})
	}
}

// BenchmarkBacklog is what preserve_order adds to each commit.
func BenchmarkBacklog(b *testing.B) {
	s := open(b, benchDatabase(b), queue.Limits{})
	for b.Loop() {
		storetest.Backlog(b, s)
	}
}

// BenchmarkOutbox takes commits of one event that waited while the relay was down, each about a build of its
// own. The publisher answers after a millisecond, as a broker does.
func BenchmarkOutbox(b *testing.B) {
	for range b.N {
		conn := benchDatabase(b)
		rows := 2 * storetest.BenchRows()
		pgtest.SQL(b, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
			SELECT md5(c::text)::uuid, 0, 'postTag', json_build_object('n', c, 'build', repeat('0123456789', 85))
			FROM generate_series(1, %d) c; ANALYZE koji_relay.outbox`, rows))
		publisher := &fakePublisher{hold: func(message.Commit) { <-time.After(time.Millisecond) }}
		reader := NewOutbox(open(b, conn, queue.Limits{}), publisher, OutboxOptions{Interval: 30 * time.Second,
			Subjects: func(c message.Commit) []string { return []string{c.ID} }})
		ctx, cancel := context.WithCancel(b.Context())
		began := time.Now()
		done := make(chan error)
		go func() { done <- reader.Run(ctx) }()
		tick := time.NewTicker(5 * time.Millisecond)
		for publisher.count() < rows {
			<-tick.C
		}
		took := time.Since(began)
		tick.Stop()
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(rows)/took.Seconds(), "commits/s")
		b.ReportMetric(0, "ns/op")
	}
}
