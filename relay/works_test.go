package relay

import (
	"sync/atomic"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// Who keeps messages that were turned away for the sake of their address is told, once, when it takes some
// again.
func TestObserverIsToldOfAnAddressThatWorksAgain(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"})
	var open atomic.Bool
	b.Script("#", devbroker.Behaviour{Judge: func(devbroker.Received) devbroker.Verdict {
		if open.Load() {
			return devbroker.Verdict{Outcome: devbroker.Accept}
		}
		return devbroker.Verdict{Outcome: devbroker.Release}
	}})
	told := make(chan string, 100) // more than there are messages
	tell := func(address string) { told <- address }
	w := startRelay(t, func(o *Options) { o.Observer.AddressWorks = tell }, b)
	w.await(0, Up)
	wantAll(t, w.Send(t.Context(), sample(3, "task.open")), message.Released, message.Later)
	open.Store(true)
	wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
	if n := len(told); n != 0 {
		t.Errorf("told %d times of addresses that were never in trouble", n)
	}
	for range 3 {
		wantAll(t, w.Send(t.Context(), fresh("task.open")), message.Accepted, message.Done)
	}
	if n := len(told); n != 1 {
		t.Fatalf("told %d times, want once", n)
	}
	if address := <-told; address != "task.open" {
		t.Errorf("told of %s", address)
	}
}
