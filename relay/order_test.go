package relay

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func inOrder(o *Options) { o.PreserveOrder = true }

// arrivals are the ids of what the broker received, each once, in order of first arrival.
func arrivals(b *devbroker.Broker) []string {
	var ids []string
	for _, r := range b.Received() {
		if !slices.Contains(ids, r.ID) {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

func idsOf(msgs []message.Message) []string {
	var ids []string
	for i := range msgs {
		ids = append(ids, msgs[i].ID)
	}
	return ids
}

func TestOrderIsPreservedAcrossAddresses(t *testing.T) {
	t.Parallel()
	for name, send := range map[string]func(*Relay, context.Context, []message.Message) []message.Outcome{
		"hand-over": (*Relay).Send, "drain": (*Relay).SendPatiently,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, inOrder, b)
			w.await(0, Up)
			// What is refused was attempted.
			b.Script("koji.task.open", reject(""))
			msgs := append(sample(60, "build.tag", "build.untag", "task.open"), sample(60, "repo.done")...)
			outs := send(w.Relay, t.Context(), msgs)
			if got := arrivals(b); !slices.Equal(got, idsOf(msgs)) {
				t.Errorf("arrived in another order: %v", got)
			}
			for i, o := range outs {
				if want := map[bool]message.Next{true: message.Count,
					false: message.Done}[msgs[i].Address == "task.open"]; o.Next != want {
					t.Errorf("message %d: %+v", i, o)
				}
			}
		})
	}
}

func TestMessageWithoutAnswerStopsThoseBehindIt(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) {
		o.PreserveOrder = true
		o.HandoffTimeout = 5 * time.Second
	}, a, b)
	w.await(0, Up)
	w.await(1, Up)
	a.Script("koji.build.untag", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Never}})
	msgs := sample(3, "build.tag", "build.untag", "task.open")
	outs := w.Send(t.Context(), msgs)
	if outs[0].Next != message.Done || outs[1].State != message.Unknown {
		t.Errorf("the first two are %+v, %+v", outs[0], outs[1])
	}
	if outs[2].State != message.NotSent || outs[2].Next != message.Wait || outs[2].Reason != behindUnknown {
		t.Errorf("the one behind is %+v", outs[2])
	}
	if n := len(a.Received()) + len(b.Received()); n != 2 {
		t.Errorf("%d messages were sent, want 2", n)
	}
}

func TestSuspectStopsThoseBehindIt(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, inOrder, b)
	w.await(0, Up)
	b.Script("koji.build.untag",
		devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.DropConnection, When: devbroker.Never},
			Times: 1})
	msgs := sample(4, "build.tag", "build.untag", "task.open", "build.tag")
	drainAll(t, w, msgs)
	if got := arrivals(b); !slices.Equal(got, idsOf(msgs)) {
		t.Errorf("arrived as %v", got)
	}
}

// drainAll sends messages as the queue does: what was not attempted stays at its head.
func drainAll(t *testing.T, w *world, msgs []message.Message) {
	t.Helper()
	poll(t, "all are accepted", func() bool {
		for len(msgs) > 0 {
			n := 0
			for _, o := range w.SendPatiently(t.Context(), msgs) {
				if o.Next == message.Later {
					t.Fatalf("set aside: %+v", o)
				}
				if o.Next != message.Done {
					break
				}
				n++
			}
			if msgs = msgs[n:]; n == 0 {
				return false
			}
		}
		return true
	})
}

// An address stands still while another one moves. What the broker was not given keeps its place, whatever
// the hub hands over behind it; the drain, which has waited for the address, sets it aside.
func TestMessageOfAnAddressThatStandsStillKeepsItsPlace(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) {
		o.PreserveOrder, o.HandoffTimeout, o.SendTimeout = true, 2*time.Second, 4*time.Second
	}, b)
	w.await(0, Up)
	b.Script("koji.task.open", devbroker.Behaviour{NoCredit: true})
	keepAnswered(t, w, "build.tag")
	poll(t, "the address is known to stand still", func() bool {
		return strings.Contains(w.Send(t.Context(), fresh("task.open"))[0].Reason, addressStarved.reason)
	})
	for range 5 {
		outs := w.Send(t.Context(), append(fresh("task.open"), fresh("build.tag")...))
		for i, o := range outs {
			if o.State != message.NotSent || o.Next != message.Wait {
				t.Fatalf("message %d: %+v", i, o)
			}
		}
	}
	if o := w.SendPatiently(t.Context(), fresh("task.open"))[0]; o.Next != message.Later {
		t.Errorf("the drain's: %+v", o)
	}
}

// An address is slow while another one is not: a busy broker. Longer than the hub waits is not long enough to
// give up the order.
func TestMessageOfASlowAddressKeepsItsPlace(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.PreserveOrder, o.HandoffTimeout = true, time.Second/2 }, b)
	w.await(0, Up)
	b.Script("koji.task.open", devbroker.Behaviour{Verdict: devbroker.Verdict{Delay: 2 * time.Second}})
	keepAnswered(t, w, "build.tag")

	handedOver := fresh("task.open")
	if o := w.Send(t.Context(), handedOver)[0]; o.State != message.Unknown || o.Next != message.Wait {
		t.Errorf("handed over: %+v", o)
	}
	drainAll(t, w, slices.Concat(handedOver, fresh("build.untag"), fresh("task.open"), fresh("build.untag")))
}

// keepAnswered has the broker answer for one address all the time, so that it does not look silent.
func keepAnswered(t *testing.T, w *world, address string) {
	t.Helper()
	over, stop := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-over })
	go func() {
		defer close(over)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				w.Send(context.Background(), fresh(address))
			}
		}
	}()
}
