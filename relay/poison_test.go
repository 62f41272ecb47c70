package relay

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// RabbitMQ can limit the connections of a user. What was under way when a session ended must not wait for a
// second one.
func TestSuspectsGoByTheSharedConnectionWhereNoOtherIsToBeHad(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.ScriptConnections(devbroker.ConnBehaviour{RefuseOpen: devbroker.Cause{Condition: "amqp:not-allowed"}})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.EndSession}, Skip: 9,
		Times: 1})
	msgs := sample(10)
	lost := 0
	for _, o := range w.Send(t.Context(), msgs) {
		if o.State == message.Unknown {
			lost++
		}
	}
	if lost == 0 {
		t.Fatal("nothing was under way when the session ended")
	}
	wantAll(t, w.SendPatiently(t.Context(), msgs), message.Accepted, message.Done)

	// A poison is found there as well, and takes the blame only after it did so twice.
	b.Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
		if strings.Contains(string(r.Payload), "poison") {
			return devbroker.Verdict{Fault: devbroker.EndSession}
		}
		return devbroker.Verdict{}
	}})
	poison := fresh("build.untag")
	poison[0].Body = "poison"
	times := 0
	poll(t, "the poison is found", func() bool {
		times++
		if o := w.Send(t.Context(), fresh("build.tag"))[0]; o.Next != message.Done {
			t.Errorf("another message: %+v", o)
		}
		return w.SendPatiently(t.Context(), poison)[0].Next == message.Count
	})
	if times < 2 {
		t.Errorf("it was blamed after %d tries, beside others", times)
	}
	if n := b.Stats().Live; n != 1 {
		t.Errorf("%d connections", n)
	}
}

var cutConnection = devbroker.Verdict{Fault: devbroker.DropConnection, When: devbroker.Never}

// acceptedBy are the ids of what the broker accepted, in order.
func acceptedBy(b *devbroker.Broker) []string {
	var ids []string
	for _, r := range b.Received() {
		if r.Verdict.Fault == devbroker.NoFault && r.Verdict.When != devbroker.Never {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// drain sends msgs as the queue does, until each is accepted or has counted an attempt. It gives the ids of
// those that counted, and of those that were accepted, both in the order in which that was known.
func drain(w *world, msgs []message.Message) (counted, done []string) {
	w.t.Helper()
	poll(w.t.(*testing.T), "the queue is empty", func() bool {
		still := msgs[:0:0]
		for i, o := range w.SendPatiently(w.t.Context(), msgs) {
			switch o.Next {
			case message.Done:
				done = append(done, msgs[i].ID)
			case message.Count:
				counted = append(counted, msgs[i].ID)
			case message.Wait:
				still = append(still, msgs[i])
			default:
				w.t.Errorf("message %d: %+v", msgs[i].Event, o)
			}
		}
		msgs = still
		return len(msgs) == 0
	})
	return counted, done
}

func orders(t *testing.T, test func(t *testing.T, ordered bool)) {
	t.Parallel()
	for name, ordered := range map[string]bool{"in order": true, "in any order": false} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, ordered) })
	}
}

// The network cuts each connection that carries something, those with one message as well.
func TestMessageIsNotToBlameWhileEachConnectionIsCut(t *testing.T) {
	orders(t, func(t *testing.T, ordered bool) {
		b := startBroker(t, devbroker.Options{})
		w := startRelay(t, func(o *Options) { o.PreserveOrder = ordered }, b)
		w.poison.proofTime = maxProofTime // a busy machine may need seconds for what follows
		w.await(0, Up)
		var cuts atomic.Int64
		b.Script("#", devbroker.Behaviour{Judge: func(devbroker.Received) devbroker.Verdict {
			if cuts.Add(1) > 20 {
				return devbroker.Verdict{}
			}
			return cutConnection
		}})
		msgs := sample(3, "build.tag", "build.untag")
		counted, _ := drain(w, msgs)
		if len(counted) > 0 {
			t.Errorf("%v counted an attempt", counted)
		}
		if got := acceptedBy(b); ordered && !slices.Equal(got, idsOf(msgs)) {
			t.Errorf("accepted as %v", got)
		}
	})
}

// With preserve_order one that was cut is not overtaken by one that was not. All were under way when a
// connection was cut.
func TestConnectionsThatAreCutAtRandomCostNoOrder(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, inOrder, b)
	w.poison.proofTime = maxProofTime
	w.await(0, Up)
	var dice atomic.Int64
	b.Script("#", devbroker.Behaviour{Judge: func(devbroker.Received) devbroker.Verdict {
		if rand.New(rand.NewPCG(41, uint64(dice.Add(1)))).IntN(3) > 0 {
			return cutConnection
		}
		return devbroker.Verdict{}
	}})
	msgs := sample(20, "build.tag", "build.untag")
	for _, id := range idsOf(msgs) {
		w.poison.note(id, w.brokers[0].e.Name)
	}
	counted, _ := drain(w, msgs)
	if len(counted) > 0 {
		t.Errorf("%v counted an attempt", counted)
	}
	if got := acceptedBy(b); !slices.Equal(got, idsOf(msgs)) {
		t.Errorf("accepted as %v", got)
	}
}

// With preserve_order one that is sent alone does not overtake one that waits for its connection.
func TestSuspectStaysBehindThoseBeforeIt(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, inOrder, b)
	w.await(0, Up)
	msgs := sample(4, "build.tag", "build.untag")
	for _, i := range []int{0, 2} {
		w.poison.note(msgs[i].ID, w.brokers[0].e.Name)
	}
	if counted, _ := drain(w, msgs); len(counted) > 0 {
		t.Errorf("%v counted an attempt", counted)
	}
	if got := acceptedBy(b); !slices.Equal(got, idsOf(msgs)) {
		t.Errorf("accepted as %v", got)
	}
}

// What a lone message cannot get over one broker it gets over another.
func TestMessageThatWasCutAtOneBrokerGoesToAnother(t *testing.T) {
	orders(t, func(t *testing.T, ordered bool) {
		a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
		w := startRelay(t, func(o *Options) { o.PreserveOrder = ordered }, a, b)
		w.poison.proofTime = maxProofTime
		w.await(0, Up)
		w.await(1, Up)
		a.Script("#", devbroker.Behaviour{Verdict: cutConnection})
		msgs := sample(1)
		w.poison.note(msgs[0].ID, w.brokers[0].e.Name)
		counted, done := drain(w, msgs)
		if len(counted) > 0 || len(done) != 1 || len(a.Received()) != 1 || len(b.Received()) != 1 {
			t.Errorf("%d counted, %d done; one broker got it %d times, the other %d times", len(counted), len(done),
				len(a.Received()), len(b.Received()))
		}
	})
}

// Each connection that carries one of two poisons ends, and all others are well. Both count as many attempts
// as they make, but for the first two or three; nothing else does.
func TestMessagesThatEndEachOfTheirConnectionsAreFound(t *testing.T) {
	for name, which := range map[string][]int{"one": {4}, "two side by side": {4, 5}, "all": {0, 1, 2}} {
		t.Run(name, func(t *testing.T) {
			orders(t, func(t *testing.T, ordered bool) {
				b := startBroker(t, devbroker.Options{})
				w := startRelay(t, func(o *Options) { o.PreserveOrder = ordered }, b)
				w.poison.proofTime = 0
				w.await(0, Up)
				b.Script("#", devbroker.Behaviour{Verdict: cutConnection, Containing: "poison"})
				msgs := sample(10, "build.tag", "build.untag")
				if name == "all" {
					msgs = msgs[:3]
				}
				var poison []string
				for _, i := range which {
					msgs[i].Body = "poison"
					poison = append(poison, msgs[i].ID)
				}
				counted, done := drain(w, msgs)
				slices.Sort(poison)
				slices.Sort(counted)
				if !slices.Equal(counted, poison) || len(done) != len(msgs)-len(poison) {
					t.Errorf("%v counted an attempt, %v were accepted", counted, done)
				}
				others := slices.DeleteFunc(idsOf(msgs), func(id string) bool { return slices.Contains(poison, id) })
				if got := acceptedBy(b); ordered && !slices.Equal(got, others) {
					t.Errorf("accepted as %v", got)
				}
				for _, id := range poison { // with others, by proofTries, and once more
					if n := count(b)[id]; n > proofTries+1 {
						t.Errorf("%s ended %d connections before it was found", id, n)
					}
				}
				for range 7 { // the rest of max_attempts
					for i, o := range w.SendPatiently(t.Context(), msgs[which[0]:which[0]+1]) {
						if o.Next != message.Count || !strings.Contains(o.Reason, "sent alone: connection lost") {
							t.Errorf("attempt %d: %+v", i, o)
						}
					}
				}
			})
		})
	}
}

// With preserve_order one message that no answer comes to holds up those behind it, but not for ever.
func TestLoneMessageWithoutAnswerKeepsItsPlaceUntilItIsToBlame(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.PreserveOrder, o.SendTimeout = true, time.Second }, b)
	w.poison.proofTime = 0
	w.await(0, Up)
	msgs := sample(2)
	b.Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
		if r.ID == msgs[0].ID {
			return devbroker.Verdict{When: devbroker.Never}
		}
		return devbroker.Verdict{}
	}})
	w.poison.note(msgs[0].ID, w.brokers[0].e.Name)
	waits := 0
	poll(t, "it is set aside", func() bool {
		outs := w.SendPatiently(t.Context(), msgs)
		switch {
		case outs[0].Next == message.Later:
			return true
		case outs[0].Next != message.Wait || outs[1].State != message.NotSent:
			t.Fatalf("outcomes %+v", outs)
		}
		waits++
		return false
	})
	if waits < proofTries-1 {
		t.Errorf("it was set aside after %d times", waits+1)
	}
	if _, done := drain(w, msgs[1:]); len(done) != 1 {
		t.Error("the one behind it is not accepted")
	}
}

// A message is found when others are answered meanwhile, and else by and by.
func TestMessageIsToBlameByOthersOrByTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newPoisonSet()
		answers := int64(7)
		// until cuts connections of a message once a second until it is to blame.
		until := func(id string) time.Duration {
			for began := time.Now(); ; time.Sleep(time.Second) {
				if s.cut(id, "broker", answers) {
					return time.Since(began)
				}
			}
		}
		want := func(id string, want time.Duration) {
			t.Helper()
			if took := until(id); took != want {
				t.Errorf("%s is to blame after %v, want %v", id, took, want)
			}
			if took := until(id); took != 0 {
				t.Errorf("%s, which is to blame, is so again after %v", id, took)
			}
		}
		want("first", proofTime)
		want("second", 2*proofTime)
		want("third", 4*proofTime)
		answers++
		want("after an answer", proofTime)
		if s.cut("beside others", "broker", answers) {
			t.Error("it is to blame at once")
		}
		answers++
		want("beside others", 0)
		for range 9 {
			until(time.Now().String())
		}
		want("last", maxProofTime)
		s.cut("seldom", "broker", answers)
		time.Sleep(time.Hour)
		if s.cut("seldom", "broker", answers) {
			t.Error("it is to blame for two connections in an hour")
		}
	})
}
