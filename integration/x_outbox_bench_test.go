package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkOutbox measures the time from a hub's commit with delivery = outbox to the message at a subscriber, of one commit
// after the other: the load of a quiet hub, on which somebody waits for a build to be tagged.
func BenchmarkOutbox(b *testing.B) {
	for b.Loop() {
		broker, database := startBroker(b, rabbitmq40), startPostgres(b)
		for _, notify := range []bool{true, false} {
			part := newPart()
			box := subscribe(b, broker, rabbitmq40, rabbitmq40.sources(part, ledgerTopics)...)
			set := forBroker(rabbitmq40, part, broker).with(newDatabase(b, database, part), settings{"queue.interval": "1"})
			r := startRelay(b, set, broker)
			hub := &outboxHub{ledger: newLedger(database.connString(part)), silent: !notify}
			n := map[bool]int{true: 200, false: 10}[notify]
			var took []time.Duration
			for range n {
				id := hub.commit(b, 1)
				began := time.Now()
				box.waitFor(b, 10*time.Second, messageID(id, 0))
				took = append(took, time.Since(began))
			}
			r.stop(b)
			slices.Sort(took)
			name := map[bool]string{true: "with NOTIFY", false: "without, interval = 1"}[notify]
			fmt.Printf("outbox to subscriber, %-22s median %v, slowest of %d %v\n", name, took[n/2].Round(time.Microsecond), n,
				took[n-1].Round(time.Microsecond))
		}
	}
}
