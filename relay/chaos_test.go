package relay

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// While brokers misbehave in every way, each message is handed over by one of eight workers, drained until it
// is done, and never done without a broker having accepted it. Faults come by the number of messages sent,
// not by time.
func TestDoneMeansAcceptedWhateverHappens(t *testing.T) {
	t.Parallel()
	const workers, commits, size = 8, 60, 5
	brokers := []*devbroker.Broker{startBroker(t, devbroker.Options{}), startBroker(t, rabbit4()),
		startBroker(t, devbroker.Options{})}
	w := startRelay(t, func(o *Options) {
		o.HandoffTimeout, o.SendTimeout, o.IdleTimeout = 200*time.Millisecond, 500*time.Millisecond, time.Second
		o.Logger = nil
	}, brokers...)
	for i := range brokers {
		w.await(i, Up)
	}

	var sent atomic.Int64
	var chaos sync.Mutex // one fault at a time
	misbehave := func(n int64) {
		chaos.Lock()
		defer chaos.Unlock()
		b := brokers[n%3]
		cause := devbroker.Cause{Condition: "amqp:internal-error", Description: "chaos"}
		switch n % 11 {
		case 0:
			b.Inflict("", devbroker.DropConnection, cause)
		case 1:
			b.Inflict("#", devbroker.EndSession, cause)
		case 2:
			b.Inflict("koji.task.open", devbroker.DetachLink, cause)
		case 3:
			b.Freeze()
		case 4:
			brokers[(n-1)%3].Thaw()
		case 5:
			b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Held}})
		case 6:
			brokers[(n-1)%3].Script("#", devbroker.Behaviour{})
			brokers[(n-1)%3].SettleHeld()
		case 7:
			b.Script("koji.build.tag", reject("amqp:not-allowed"))
		case 8:
			brokers[(n-1)%3].Script("koji.build.tag", devbroker.Behaviour{})
		case 9:
			b.Stop()
		case 10:
			if err := brokers[(n-1)%3].Start(); err != nil {
				t.Error(err)
			}
		}
	}

	var mu sync.Mutex // guards unsent
	var unsent []message.Message
	settle := func(msgs []message.Message, outs []message.Outcome) {
		mu.Lock()
		defer mu.Unlock()
		for i, o := range outs {
			if o.Next != message.Done {
				unsent = append(unsent, msgs[i])
			}
		}
	}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for n := range commits {
				msgs := sample(size, "build.tag", "task.open", "repo.done")
				for i := range msgs {
					msgs[i].ID = fmt.Sprintf("%d-%d-%d", worker, n, i)
				}
				if k := sent.Add(1); k%20 == 0 {
					misbehave(k / 20)
				}
				settle(msgs, w.Send(t.Context(), msgs))
			}
		})
	}
	wg.Wait()

	for _, b := range brokers { // the trouble is over
		b.Thaw()
		b.Script("#", devbroker.Behaviour{})
		b.Script("koji.build.tag", devbroker.Behaviour{})
		b.SettleHeld()
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d messages were left to the drain", len(unsent), workers*commits*size)
	for deadline := time.Now().Add(30 * time.Second); len(unsent) > 0; {
		msgs := unsent
		unsent = nil
		settle(msgs, w.SendPatiently(context.Background(), msgs))
		if time.Now().After(deadline) {
			t.Fatalf("%d messages cannot be delivered: %+v", len(unsent), w.Status())
		}
	}

	received := map[string]int{}
	for _, b := range brokers {
		for id, n := range count(b) {
			received[id] += n
		}
	}
	duplicates := 0
	for worker := range workers {
		for n := range commits {
			for i := range size {
				id := fmt.Sprintf("%d-%d-%d", worker, n, i)
				if received[id] == 0 {
					t.Errorf("%s is done and no broker has it", id)
				}
				duplicates += max(received[id]-1, 0)
			}
		}
	}
	t.Logf("%d duplicates", duplicates)
}
