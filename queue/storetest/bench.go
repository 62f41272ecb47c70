package storetest

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

	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
)

// BenchRows is the backlog after an outage: KOJI_RELAY_BENCH_ROWS, by default that of a few minutes on a busy
// hub.
func BenchRows() int {
	n, err := strconv.Atoi(os.Getenv("KOJI_RELAY_BENCH_ROWS"))
	if err != nil {
		return 10_000
	}
	return n
}

// CountingSender accepts at once; the broker is not what is measured.
type CountingSender struct {
	n    atomic.Int64
	peak atomic.Uint64 // bytes of heap in use

	Rows  int         // all there are
	marks []time.Time // when each tenth of rows was passed; SendPatiently is not called twice at once
}

// Usable implements drain.Sender.
func (c *CountingSender) Usable() bool { return true }

// Answers implements drain.Sender: it answers at once.
func (c *CountingSender) Answers() int64 { return 0 }

// SendPatiently implements drain.Sender.
func (c *CountingSender) SendPatiently(_ context.Context, list []message.Message) []message.Outcome {
	outcomes := make([]message.Outcome, len(list))
	for i := range outcomes {
		outcomes[i] = message.Outcome{State: message.Accepted, Next: message.Done}
	}
	n := c.n.Add(int64(len(list)))
	for c.Rows > 0 && n >= int64(len(c.marks))*int64(c.Rows)/10 {
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

// DrainAll runs a drain until n messages were accepted and deleted, and gives the time.
func DrainAll(tb testing.TB, store queue.Store, sender *CountingSender, n int) time.Duration {
	tb.Helper()
	d := drain.New(store, sender, drain.Options{BatchSize: 1000, BatchBytes: 8 << 20,
		Interval: 30 * time.Second})
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

// Report gives rows a second, the peak of the heap, and how the rate went from tenth to tenth.
func Report(b *testing.B, sender *CountingSender, rows int, took time.Duration) {
	b.Helper()
	b.ReportMetric(float64(rows)/took.Seconds(), "rows/s")
	b.ReportMetric(float64(sender.peak.Load())/(1<<20), "MiB-heap")
	b.ReportMetric(0, "ns/op")
	var curve []string
	for i := 1; i < len(sender.marks); i++ {
		curve = append(curve, fmt.Sprintf("%.0f",
			float64(rows)/10/sender.marks[i].Sub(sender.marks[i-1]).Seconds()))
	}
	b.Logf("rows/s in each tenth: %s", strings.Join(curve, " "))
}

// BenchMessages are unsent messages of the common size, 0.9 kB.
func BenchMessages(first, last int) []message.Unsent {
	list := Unsent(first, last)
	for i := range list {
		list[i].Message.Body = `{"build": "` + strings.Repeat("0123456789", 85) + `"}`
	}
	return list
}

// BenchPut puts commits of size messages.
func BenchPut(b *testing.B, s queue.Store, size int) {
	b.Helper()
	n := 1
	for b.Loop() {
		Put(b, s, BenchMessages(n, n+size-1)...)
		n += size
	}
}
