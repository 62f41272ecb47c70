package relay

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// RabbitMQ looks at topic permissions for each message, and ends the session of one that it does not allow.
func TestForbiddenTopicHurtsNobody(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"})
	var ended atomic.Int32
	var allowed atomic.Bool
	b.Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
		if allowed.Load() || strings.Contains(r.Key, "build.tag") {
			return devbroker.Verdict{Outcome: devbroker.Accept}
		}
		ended.Add(1)
		return devbroker.Verdict{Fault: devbroker.EndSession, Cause: devbroker.Cause{
			Condition: "amqp:unauthorized-access", Description: "write access to topic refused"}}
	}})
	w := startRelay(t, nil, b)
	w.await(0, Up)

	forbidden := slices.Concat(fresh("task.open"), fresh("task.open"), fresh("task.closed"))
	queue := slices.Concat(forbidden, sample(20))
	out := w.SendPatiently(t.Context(), queue)
	for i, o := range out {
		switch {
		case i < len(forbidden) && (o.Next != message.Count || !strings.Contains(o.Reason, "unauthorized-access")):
			t.Errorf("forbidden %d: %+v", i, o)
		case i >= len(forbidden) && o.Next != message.Done:
			t.Errorf("allowed %d: %+v", i, o)
		}
	}
	// From now on nothing of these topics reaches the broker, neither from the hub nor from the queue.
	known := ended.Load()
	for range 3 {
		wantAll(t, w.Send(t.Context(), forbidden), message.NotSent, message.Count)
		wantAll(t, w.SendPatiently(t.Context(), forbidden), message.NotSent, message.Count)
		wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
	}
	if n := ended.Load(); n != known {
		t.Errorf("%d sessions ended more", n-known)
	}
	// When it is time to ask again, one of each topic is sent, alone.
	again := func() {
		f := &w.brokers[0].forbidden
		f.mu.Lock()
		defer f.mu.Unlock()
		for topic, r := range f.topics {
			r.until = time.Now()
			f.topics[topic] = r
		}
	}
	sessions := b.Stats().Connections
	again()
	wantAll(t, w.SendPatiently(t.Context(), forbidden), message.NotSent, message.Count)
	if n := ended.Load() - known; n != 2 {
		t.Errorf("%d sessions ended by asking again for two topics", n)
	}
	if n := b.Stats().Connections - sessions; n != 2 {
		t.Errorf("%d connections for asking again", n)
	}
	// When they are allowed, the queue finds out, and the hub's messages go there again.
	allowed.Store(true)
	wantAll(t, w.Send(t.Context(), forbidden), message.NotSent, message.Count)
	again()
	wantAll(t, w.SendPatiently(t.Context(), forbidden), message.Accepted, message.Done)
	wantAll(t, w.Send(t.Context(), slices.Concat(fresh("task.open"), fresh("task.closed"))), message.Accepted,
		message.Done)
}

func TestForbiddenTopicIsAskedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var f forbidden
		f.add("task.open", result{verdict: refused, reason: "no"})
		at := func(wantKnown, wantDue bool) {
			t.Helper()
			r, known, due := f.get("task.open")
			if known != wantKnown || due != wantDue || known != (r.reason == "no") {
				t.Errorf("known %v, due %v: %+v", known, due, r)
			}
		}
		at(true, false)
		time.Sleep(refusalTime)
		at(true, true)
		time.Sleep(forbiddenTime + 1)
		at(false, false)
		if _, known, _ := f.get("task.closed"); known {
			t.Error("a topic that nobody has refused is forbidden")
		}
	})
}
