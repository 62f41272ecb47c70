package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

var (
	held  = devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Held}}
	never = devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Never}}
)

// count is how often the broker received each message-id.
func count(b *devbroker.Broker) map[string]int {
	n := map[string]int{}
	for _, r := range b.Received() {
		n[r.ID]++
	}
	return n
}

func waitReceived(t *testing.T, b *devbroker.Broker, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.WaitReceived(ctx, n); err != nil {
		t.Fatal(err)
	}
}

var serial atomic.Int64

// fresh makes a message that was never sent before: one that was may be a suspect.
func fresh(address string) []message.Message {
	msgs := sample(1, address)
	msgs[0].ID = fmt.Sprint("fresh-", serial.Add(1))
	return msgs
}

// poll waits for a condition that nothing announces.
func poll(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestRefusedAddressDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("koji.build.tag", held)
	b.Script("koji.task.open", refuse(devbroker.RefuseSession, "amqp:unauthorized-access"))
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.Send(context.Background(), sample(100)) }()
	waitReceived(t, b, 100)
	wantAll(t, w.Send(t.Context(), sample(5, "task.open")), message.NotSent, message.Count)
	refused := b.Stats().Refused
	wantAll(t, w.Send(t.Context(), sample(5, "task.open")), message.NotSent, message.Count)
	if got := b.Stats().Refused; got != refused {
		t.Errorf("the refused address was attached to again at once: %d refusals, then %d", refused, got)
	}
	b.SettleHeld()
	wantAll(t, <-result, message.Accepted, message.Done)
	if s := b.Stats(); s.Connections != 1 || s.Messages != 100 {
		t.Errorf("%d connections, %d messages", s.Connections, s.Messages)
	}
}

func TestSessionIsReplacedWithoutReconnecting(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(20, "build.tag", "task.open")), message.Accepted, message.Done)
	sessions := b.Stats().Sessions
	b.Inflict("koji.build.tag", devbroker.EndSession, devbroker.Cause{Condition: "amqp:internal-error"})
	poll(t, "messages are accepted again", func() bool {
		return w.Send(t.Context(), fresh("task.open"))[0].Next == message.Done && b.Stats().Sessions > sessions
	})
	poll(t, "messages are accepted again", func() bool {
		return w.Send(t.Context(), fresh("build.tag"))[0].Next == message.Done
	})
	if s := b.Stats(); s.Connections != 1 || s.Sessions <= sessions {
		t.Errorf("%d connections, %d sessions after %d", s.Connections, s.Sessions, sessions)
	}
}

func TestLinkIsReplacedWithoutReconnecting(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(20)), message.Accepted, message.Done)
	sessions := b.Stats().Sessions
	b.Inflict("koji.build.tag", devbroker.DetachLink, devbroker.Cause{Condition: "amqp:link:detach-forced"})
	poll(t, "messages are accepted again", func() bool {
		return w.Send(t.Context(), fresh("build.tag"))[0].Next == message.Done
	})
	if s := b.Stats(); s.Connections != 1 || s.Sessions != sessions {
		t.Errorf("%d connections, %d sessions after %d", s.Connections, s.Sessions, sessions)
	}
}

func TestMessageThatEndsConnectionsIsFoundAndHurtsNobody(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]devbroker.Fault{
		"connection reset": devbroker.DropConnection, "connection closed": devbroker.CloseConnection,
		"session ended": devbroker.EndSession, "link detached": devbroker.DetachLink,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, nil, b)
			w.await(0, Up)
			// Those before it are still unsettled when the poison arrives: all of them are suspects.
			msgs := sample(30)
			msgs[20].Body = "poison"
			earlier := map[string]bool{}
			for _, m := range msgs[:20] {
				earlier[m.ID] = true
			}
			b.Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
				switch {
				case strings.Contains(string(r.Payload), "poison"):
					return devbroker.Verdict{Fault: f, Cause: devbroker.Cause{Condition: "amqp:decode-error"}}
				case r.Conn == 1 && earlier[r.ID]:
					return devbroker.Verdict{When: devbroker.Held}
				}
				return devbroker.Verdict{}
			}})
			outs := w.SendPatiently(t.Context(), msgs)
			poll(t, "the poison is found", func() bool { // that others are answered shows that it is not the network
				if outs[20].State != message.Unknown {
					t.Fatalf("poison: %+v", outs[20])
				}
				if outs[20].Next == message.Count {
					return true
				}
				outs[20] = w.SendPatiently(t.Context(), slices.Concat(msgs[20:21], fresh("build.tag")))[0]
				return false
			})
			done := 0
			for i, o := range outs {
				switch {
				case i == 20:
				case o.Next == message.Done:
					done++
				case o.Next != message.Wait: // queued behind the poison when all brokers were down for a moment
					t.Errorf("neighbour %d: %+v", i, o)
				}
			}
			if done < 20 {
				t.Errorf("only %d neighbours were delivered", done)
			}
			// The hub's messages are not touched by a later attempt with the poison.
			poll(t, "the shared connection works",
				func() bool { return w.Send(t.Context(), fresh("build.tag"))[0].Next == message.Done })
			b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: f}, Containing: "poison"})
			links, connections := b.Stats().Links, b.Stats().Connections
			again := w.SendPatiently(t.Context(), msgs[20:21])
			if again[0].Next != message.Count {
				t.Errorf("poison again: %+v", again[0])
			}
			if w.Status()[0].State != Up || b.Stats().Connections != connections+1 {
				t.Errorf("the shared connection was used: %d connections after %d, %d links", b.Stats().Connections,
					connections, links)
			}
		})
	}
}

// The hub's call is not the place to find out who is to blame: what was under way goes to the queue, is not
// sent again from the hub's calls, and is delivered by the drain.
func TestHandOverLeavesSuspectsToTheDrain(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.DropConnection}, Skip: 9,
		Times: 1})
	first := w.Send(t.Context(), sample(10))
	poll(t, "the relay is connected again",
		func() bool { return b.Stats().Opened > 1 && w.Status()[0].State == Up })
	received := b.Stats().Messages
	second := w.Send(t.Context(), sample(10))
	lost := 0
	for i, o := range first {
		if o.State == message.Unknown && o.Next == message.Wait {
			lost++
			if second[i].State != message.Unknown || second[i].Next != message.Wait {
				t.Errorf("suspect %d: %+v", i, second[i])
			}
		}
	}
	if lost == 0 {
		t.Fatal("nothing was lost")
	}
	if sent := b.Stats().Messages - received; sent != 10-lost {
		t.Errorf("%d messages were sent again by the hub's call; %d were suspects", sent, lost)
	}
	wantAll(t, w.SendPatiently(t.Context(), sample(10)), message.Accepted, message.Done)
}

func TestLateSettlementEndsTheStallAndIsRemembered(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, b)
	w.await(0, Up)
	b.Script("#", held)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Unknown, message.Wait)
	if s := w.Status()[0]; s.State != Stalled || s.InFlight != 10 {
		t.Fatalf("status %+v", s)
	}
	if w.Usable() {
		t.Error("a stalled broker with unsettled messages counts as usable")
	}
	wantAll(t, w.Send(t.Context(), sample(10)), message.NotSent, message.Wait) // at once, not sent
	b.Script("#", devbroker.Behaviour{})
	b.SettleHeld()
	w.await(0, Up)
	poll(t, "all are settled", func() bool { return w.Status()[0].InFlight == 0 })
	wantAll(t, w.SendPatiently(t.Context(), sample(10)), message.Accepted, message.Done)
	if n := b.Stats().Messages; n != 10 {
		t.Errorf("%d messages were sent, not 10: what was accepted late was sent again", n)
	}
}

// The answers come at any moment of the second attempt: before it, while it looks what is known, or after.
func TestDrainWaitsForWhatIsStillWithTheBroker(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = time.Second }, b)
	b.Script("#", held)
	for n := 1; n <= 10; n++ {
		w.await(0, Up)
		msgs := slices.Concat(fresh("build.tag"), fresh("build.tag"), fresh("build.tag"))
		wantAll(t, w.Send(t.Context(), msgs), message.Unknown, message.Wait)
		waitReceived(t, b, 3*n)
		result := make(chan []message.Outcome, 1)
		go func() { result <- w.SendPatiently(context.Background(), msgs) }()
		b.SettleHeld()
		wantAll(t, <-result, message.Accepted, message.Done)
	}
	for id, n := range count(b) {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
}

func TestSilentConnectionIsDroppedAfterSendTimeout(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) {
		o.HandoffTimeout, o.SendTimeout = 2*time.Second, 3*time.Second
	}, b)
	w.await(0, Up)
	b.Script("#", never)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Unknown, message.Wait)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := b.Wait(ctx, func(s devbroker.Stats) bool { return s.Connections == 2 }); err != nil {
		t.Fatal(err)
	}
	b.Script("#", devbroker.Behaviour{})
	w.await(0, Stalled) // it let us in, but has not shown that it settles
	wantAll(t, w.SendPatiently(t.Context(), sample(20)), message.Accepted, message.Done)
	w.await(0, Up)
}

func TestOneAddressWithoutCreditHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout, o.SendTimeout = 5*time.Second, 10*time.Second }, b)
	w.await(0, Up)
	b.Script("koji.task.open", devbroker.Behaviour{NoCredit: true})
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.Send(context.Background(), sample(2, "task.open")) }()
	for n := 0; ; n++ {
		wantAll(t, w.Send(t.Context(), sample(1, "build.tag")), message.Accepted, message.Done)
		select {
		case outs := <-result:
			for _, o := range outs {
				if o.Next != message.Later && o.State != message.Unknown {
					t.Errorf("outcome %+v", o)
				}
			}
		default:
			continue
		}
		break
	}
	if s := w.Status()[0]; s.State != Up {
		t.Fatalf("the broker is %s for one address", s.State)
	}
	began := time.Now()
	for _, o := range w.Send(t.Context(), sample(2, "task.open")) {
		if o.Next != message.Later {
			t.Errorf("outcome %+v", o)
		}
	}
	if took := time.Since(began); took > w.opts.HandoffTimeout*4/5 {
		t.Errorf("the hub waited %v for an address known to stand still", took)
	}
	// After send_timeout the link is reopened, and nothing else.
	poll(t, "the link is reopened", func() bool {
		wantAll(t, w.Send(t.Context(), sample(1, "build.tag")), message.Accepted, message.Done)
		return w.Status()[0].InFlight == 0
	})
	b.Script("koji.task.open", devbroker.Behaviour{})
	wantAll(t, w.SendPatiently(t.Context(), sample(2, "task.open")), message.Accepted, message.Done)
	if n := b.Stats().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestBrokersThatNeverSettleCostOneHandoffTimeout(t *testing.T) {
	t.Parallel()
	const handoff = 4 * time.Second
	var brokers []*devbroker.Broker
	for range 3 {
		b := startBroker(t, devbroker.Options{})
		b.Script("#", never)
		brokers = append(brokers, b)
	}
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = handoff }, brokers...)
	for i := range brokers {
		w.await(i, Up)
	}
	began := time.Now()
	var slowest time.Duration
	for i := range 300 {
		start := time.Now()
		for _, o := range w.Send(t.Context(), sample(1)) {
			if o.Next != message.Wait {
				t.Fatalf("outcome %+v", o)
			}
		}
		if took := time.Since(start); i > 0 {
			slowest = max(slowest, took)
		}
	}
	t.Logf("300 commits took %v; after the first the slowest %v", time.Since(began), slowest)
	if took := time.Since(began); took > 2*handoff || slowest > handoff/2 {
		t.Errorf("300 commits took %v; after the first the slowest %v", took, slowest)
	}
}
