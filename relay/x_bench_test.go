package relay

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// The benchmarks model the production load of a Koji hub: commits of one message (a tag, a task state), and
// commits of 100 (a mass tag, an import) from four hub workers; bodies of 0.9 kB. The raw ones are the same
// work done with the driver directly, as the measure. They run on the scripted broker, or on the one that
// KOJI_RELAY_BENCH_AMQP names.

func benchBroker(b *testing.B) string {
	if url := os.Getenv("KOJI_RELAY_BENCH_AMQP"); url != "" {
		return url
	}
	return startBroker(b, devbroker.Options{MaxRecordBytes: -1, MaxQueueBytes: 1 << 20}).URL()
}

func benchRelay(b *testing.B) *Relay {
	o := options()
	o.Brokers, o.HandoffTimeout = []Broker{{URL: benchBroker(b)}}, 20*time.Second
	o.DropUnroutable = true // nobody subscribes
	r, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	for _, o := range r.Send(ctx, benchCommit(1)) {
		if o.Next != message.Done {
			b.Fatal(o)
		}
	}
	return r
}

// benchCommit has messages for three addresses, like a commit of a build.
func benchCommit(n int) []message.Message {
	msgs := sample(n, "build.tag", "task.closed", "build.complete")
	for i := range msgs {
		msgs[i].Body = `{"info": "` + strings.Repeat("x", 900) + `"}`
	}
	return msgs
}

func rawSenders(b *testing.B) (open func() map[string]*amqp.Sender) {
	ctx := context.Background()
	url := benchBroker(b)
	opts := &amqp.ConnOptions{}
	if !strings.Contains(url, "@") {
		opts.SASLType = amqp.SASLTypeAnonymous()
	}
	c, err := amqp.Dial(ctx, url, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	s, err := c.NewSession(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	return func() map[string]*amqp.Sender {
		senders := map[string]*amqp.Sender{}
		for _, address := range []string{"build.tag", "task.closed", "build.complete"} {
			senders[address], err = s.NewSender(ctx, "/topic/koji."+address, nil)
			if err != nil {
				b.Fatal(err)
			}
		}
		return senders
	}
}

func rawCommit(b *testing.B, senders map[string]*amqp.Sender, o *Options, msgs []message.Message) {
	ctx := context.Background()
	receipts := make([]amqp.SendReceipt, len(msgs))
	for i := range msgs {
		var err error
		wire := o.encode(&msgs[i], dialect.Destination{})
		if receipts[i], err = senders[msgs[i].Address].SendWithReceipt(ctx, wire, nil); err != nil {
			b.Fatal(err)
		}
	}
	for i := range receipts {
		if _, err := receipts[i].Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOneMessageCommit(b *testing.B) {
	b.Run("relay", func(b *testing.B) {
		r, msgs := benchRelay(b), benchCommit(1)
		for b.Loop() {
			if o := r.Send(context.Background(), msgs); o[0].Next != message.Done {
				b.Fatal(o)
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		senders, msgs := rawSenders(b)(), benchCommit(1)
		for b.Loop() {
			rawCommit(b, senders, &Options{Priority: 4}, msgs)
		}
	})
}

// Four workers that post commits of 100 messages; ns/op is for one commit.
func BenchmarkHundredMessageCommits(b *testing.B) {
	run := func(b *testing.B, commit func(worker int)) {
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		b.ResetTimer()
		for worker := range 4 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					commit(worker)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "messages/s")
	}
	b.Run("relay", func(b *testing.B) {
		r, msgs := benchRelay(b), benchCommit(100)
		run(b, func(int) {
			for _, o := range r.Send(context.Background(), msgs) {
				if o.Next != message.Done {
					panic(fmt.Sprint(o))
				}
			}
		})
	})
	b.Run("raw", func(b *testing.B) {
		open, msgs := rawSenders(b), benchCommit(100)
		var workers []map[string]*amqp.Sender
		for range 4 {
			workers = append(workers, open())
		}
		run(b, func(worker int) { rawCommit(b, workers[worker], &Options{Priority: 4}, msgs) })
	})
	b.Run("raw on the same links", func(b *testing.B) {
		senders, msgs := rawSenders(b)(), benchCommit(100)
		run(b, func(int) { rawCommit(b, senders, &Options{Priority: 4}, msgs) })
	})
}

// With every broker down a hub call costs this before the put.
func BenchmarkEveryBrokerDown(b *testing.B) {
	broker := startBroker(b, devbroker.Options{})
	broker.Stop()
	w := startRelay(b, func(o *Options) { o.Logger = nil }, broker)
	msgs := benchCommit(1)
	w.Send(context.Background(), msgs)
	for b.Loop() {
		w.Send(context.Background(), msgs)
	}
}
