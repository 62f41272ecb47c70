package queue

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// benchRows is the backlog after an outage: KOJI_RELAY_BENCH_ROWS, by default that of a few minutes on a busy hub.
func benchRows() int {
	n, err := strconv.Atoi(os.Getenv("KOJI_RELAY_BENCH_ROWS"))
	if err != nil {
		return 10_000
	}
	return n
}

// fill adds rows first to last with bodies of the common size, 0.9 kB, as puts leave them.
func fill(tb testing.TB, conn string, first, last int, next string) {
	tb.Helper()
	pgtest.SQL(tb, conn, fmt.Sprintf(`
		WITH n AS (SELECT i, nextval('proton_queue_id_seq') AS id FROM generate_series(%d, %d) i), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size, callback, next_attempt)
			SELECT md5(i::text)::uuid::text, id, now(), now(), 'build.tag', 1300, 'postTag', %s FROM n ORDER BY id
		) INSERT INTO proton_queue (id, address, props, body)
		SELECT id, 'build.tag', '{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", "release": "1", "user": "kojira"}',
			json_build_object('n', i, 'build', repeat('0123456789', 85)) FROM n ORDER BY id;
		ANALYZE koji_relay.delivery; ANALYZE proton_queue;`, first, last, next))
}

// countingSender accepts at once; the broker is not what is measured.
type countingSender struct {
	n    atomic.Int64
	peak atomic.Uint64 // bytes of heap in use

	rows  int         // all there are
	marks []time.Time // when each tenth of rows was passed; SendPatiently is not called twice at once
}

func (c *countingSender) Usable() bool { return true }

func (c *countingSender) SendPatiently(_ context.Context, list []message.Message) []message.Outcome {
	outcomes := make([]message.Outcome, len(list))
	for i := range outcomes {
		outcomes[i] = message.Outcome{State: message.Accepted, Next: message.Done}
	}
	n := c.n.Add(int64(len(list)))
	for c.rows > 0 && n >= int64(len(c.marks))*int64(c.rows)/10 {
		c.marks = append(c.marks, time.Now())
	}
	if n%10_000 < int64(len(list)) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapInuse > c.peak.Load() {
			c.peak.Store(m.HeapInuse)
		}
	}
	return outcomes
}

// drainAll runs a drain until n messages were accepted and deleted, and gives the time.
func drainAll(tb testing.TB, store Store, sender *countingSender, n int) time.Duration {
	tb.Helper()
	d := NewDrainer(store, sender, DrainOptions{BatchSize: 1000})
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	began := time.Now()
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if sender.n.Load() >= int64(n) {
			break
		}
		if time.Since(began) > 30*time.Minute {
			tb.Fatalf("drained %d of %d: %+v", sender.n.Load(), n, d.Status())
		}
	}
	cancel()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	return time.Since(began)
}

func report(b *testing.B, sender *countingSender, rows int, took time.Duration) {
	b.Helper()
	b.ReportMetric(float64(rows)/took.Seconds(), "rows/s")
	b.ReportMetric(float64(sender.peak.Load())/(1<<20), "MiB-heap")
	b.ReportMetric(0, "ns/op")
	var curve []string
	for i := 1; i < len(sender.marks); i++ {
		curve = append(curve, fmt.Sprintf("%.0f", float64(rows)/10/sender.marks[i].Sub(sender.marks[i-1]).Seconds()))
	}
	b.Logf("rows/s in each tenth: %s", strings.Join(curve, " "))
}

// BenchmarkDrain drains the backlog of an outage: alone, behind 100,000 messages that wait for their next attempt, and with an
// old snapshot held open by another session (a backup), so that no deleted row can be cleaned up.
func BenchmarkDrain(b *testing.B) {
	for _, test := range []struct {
		name     string
		waiting  int
		snapshot bool
	}{{"alone", 0, false}, {"behind_waiting", 100_000, false}, {"old_snapshot", 0, true}} {
		b.Run(test.name, func(b *testing.B) {
			for range b.N {
				conn := benchDatabase(b)
				rows := benchRows()
				if test.waiting > 0 {
					fill(b, conn, 1, test.waiting, "now() + interval '1 hour'")
				}
				fill(b, conn, test.waiting+1, test.waiting+rows, "NULL")
				if test.snapshot {
					holdSnapshot(b, conn)
				}
				sender := &countingSender{rows: rows}
				report(b, sender, rows, drainAll(b, openPostgres(b, conn, Limits{}), sender, rows))
			}
		})
	}
	b.Run("file", func(b *testing.B) {
		for range b.N {
			f := openFile(b, b.TempDir()+"/queue.db", Limits{})
			rows := benchRows()
			for first := 1; first <= rows; first += 1000 {
				put(b, f, benchMessages(first, min(rows, first+999))...)
			}
			sender := &countingSender{}
			report(b, sender, rows, drainAll(b, f, sender, rows))
		}
	})
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
	if _, err := conn.Exec(b.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM locks"); err != nil {
		b.Fatal(err)
	}
}

func benchMessages(first, last int) []message.Unsent {
	list := unsent(first, last)
	for i := range list {
		list[i].Message.Body = `{"build": "` + strings.Repeat("0123456789", 85) + `"}`
	}
	return list
}

// BenchmarkPut puts commits while every broker is down: what a hub call waits for then.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("postgres/%d", size), func(b *testing.B) {
			benchPut(b, openPostgres(b, benchDatabase(b), Limits{}), size)
		})
		b.Run(fmt.Sprintf("file/%d", size), func(b *testing.B) {
			benchPut(b, openFile(b, b.TempDir()+"/queue.db", Limits{}), size)
		})
	}
}

func benchPut(b *testing.B, s Store, size int) {
	b.Helper()
	n := 1
	for b.Loop() {
		put(b, s, benchMessages(n, n+size-1)...)
		n += size
	}
}

// BenchmarkBacklog is what preserve_order adds to each commit.
func BenchmarkBacklog(b *testing.B) {
	s := openPostgres(b, benchDatabase(b), Limits{})
	for b.Loop() {
		backlog(b, s)
	}
}
