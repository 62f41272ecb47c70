package devbroker_test

import (
	"strings"
	"testing"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
)

// BenchmarkPipelinedSend models a drain: one link, bodies of 1 kB, outcomes awaited a hundred messages later.
// It tells how fast the relay's tests and the demo can be at most.
func BenchmarkPipelinedSend(b *testing.B) {
	broker, err := devbroker.New(devbroker.Options{MaxRecordBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	if err := broker.Start(); err != nil {
		b.Fatal(err)
	}
	defer broker.Close()
	ctx := b.Context()
	c, err := amqp.Dial(ctx, broker.URL(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewSession(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	l, err := s.NewSender(ctx, "koji.build.tag", nil)
	if err != nil {
		b.Fatal(err)
	}
	m := text("id", strings.Repeat("x", 1000))
	var receipts []amqp.SendReceipt
	b.ReportAllocs()
	for b.Loop() {
		receipt, err := l.SendWithReceipt(ctx, m, nil)
		if err != nil {
			b.Fatal(err)
		}
		if receipts = append(receipts, receipt); len(receipts) == 100 {
			for _, r := range receipts {
				if _, err := r.Wait(ctx); err != nil {
					b.Fatal(err)
				}
			}
			receipts = receipts[:0]
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
