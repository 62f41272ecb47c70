package relay

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestLinkIsReopenedAfterABigMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(5)), message.Accepted, message.Done)
	links := b.Stats().Links
	big := sample(3)
	big[1].Body = strings.Repeat("x", 2<<20)
	wantAll(t, w.Send(t.Context(), big), message.Accepted, message.Done)
	if n := b.Stats().Links; n <= links {
		t.Errorf("%d links, as before the big message", n)
	}
}

func TestLinksAreBounded(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	for i := range 3 * maxLinks {
		wantAll(t, w.Send(t.Context(), sample(1, fmt.Sprintf("import.type%d", i))), message.Accepted, message.Done)
		if n := w.Status()[0].Links; n > maxLinks {
			t.Fatalf("%d links", n)
		}
	}
}

func TestBytesInFlightAreBounded(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.MaxInflightBytes = 10_000 }, b)
	w.await(0, Up)
	b.Script("#", held)
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.Send(context.Background(), sample(25, "build.tag", "task.open")) }()
	waitReceived(t, b, 25)
	outs := w.Send(t.Context(), sample(20))
	wantAll(t, outs, message.NotSent, message.Wait)
	if !strings.Contains(outs[0].Reason, "max_inflight_bytes") {
		t.Errorf("reason %q", outs[0].Reason)
	}
	b.SettleHeld()
	wantAll(t, <-result, message.Accepted, message.Done)
	poll(t, "nothing is in flight", func() bool { return w.Inflight() == 0 })
	b.Script("#", devbroker.Behaviour{})
	huge := sample(1)
	huge[0].Body = strings.Repeat("x", 50_000)
	wantAll(t, w.Send(t.Context(), huge), message.Accepted, message.Done)
}

func TestUnsettledMessagesCountAsInFlight(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, b)
	w.await(0, Up)
	b.Script("#", held)
	msgs := sample(1)
	w.Send(t.Context(), msgs)
	if n := w.Inflight(); n != int64(msgs[0].Size()) {
		t.Errorf("%d bytes in flight, not %d", n, msgs[0].Size())
	}
	b.SettleHeld()
	poll(t, "nothing is in flight", func() bool { return w.Inflight() == 0 })
}
