package file

import (
	"fmt"
	"testing"

	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// BenchmarkDrainOfFile drains the backlog of an outage.
func BenchmarkDrain(b *testing.B) {
	for range b.N {
		f := openAt(b, b.TempDir()+"/queue.db", queue.Limits{})
		rows := storetest.BenchRows()
		for first := 1; first <= rows; first += 1000 {
			storetest.Put(b, f, storetest.BenchMessages(first, min(rows, first+999))...)
		}
		sender := &storetest.CountingSender{}
		storetest.Report(b, sender, rows, storetest.DrainAll(b, f, sender, rows))
	}
}

// BenchmarkPut puts commits while every broker is down: what a hub call waits for then.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			storetest.BenchPut(b, openAt(b, b.TempDir()+"/queue.db", queue.Limits{}), size)
		})
	}
}
