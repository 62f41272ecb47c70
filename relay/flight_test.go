package relay

import (
	"context"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// drainTo gives msgs to the broker patiently, and returns the outcomes when settle has run.
func drainTo(t *testing.T, w *world, msgs []message.Message, settle func()) []message.Outcome {
	t.Helper()
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.SendPatiently(context.Background(), msgs) }()
	settle()
	return <-result
}

// wantOrder checks that ids are those of msgs, and names the first that is not in its place.
func wantOrder(t *testing.T, ids []string, msgs []message.Message) {
	t.Helper()
	if len(ids) != len(msgs) {
		t.Errorf("%d messages arrived, want %d", len(ids), len(msgs))
		return
	}
	for i, id := range ids {
		if id != msgs[i].ID {
			t.Errorf("message %d is %s, want %s", i, id, msgs[i].ID)
			return
		}
	}
}

// A broker that answers nothing has as many messages of the drain as the window is wide, and fewer while the
// hub hands over.
func TestDrainKeepsAFewMessagesUnderWay(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		hub  bool
		want int
	}{"quiet hub": {false, patientWindow}, "busy hub": {true, besideHub}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, nil, b)
			w.await(0, Up)
			b.Script("#", held)
			want := row.want
			if row.hub {
				want++
				go w.Send(context.Background(), fresh("build.tag"))
				waitReceived(t, b, 1)
				w.brokers[0].conn.hubAt.Store(int64(time.Hour)) // a hub that goes on
			}
			outs := drainTo(t, w, sample(300), func() {
				waitReceived(t, b, want)
				<-time.After(50 * time.Millisecond) // for those that must not come
				if n := len(b.Received()); n != want {
					t.Errorf("%d messages are with the broker, want %d", n, want)
				}
				b.Script("#", devbroker.Behaviour{})
				b.SettleHeld()
			})
			wantAll(t, outs, message.Accepted, message.Done)
			for id, n := range count(b) {
				if n != 1 {
					t.Errorf("%s was sent %d times", id, n)
				}
			}
		})
	}
}

// The window slides: one message that the broker keeps for itself leaves the others their turn.
func TestDrainGoesOnBesideAMessageWithoutAnswer(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Held}, Containing: `{"n": 3}`})
	outs := drainTo(t, w, sample(300), func() {
		waitReceived(t, b, 300)
		b.SettleHeld()
	})
	wantAll(t, outs, message.Accepted, message.Done)
}

// RabbitMQ deals with a session in order, so that a message need not wait for the settlement of one to
// another address.
func TestDrainInOrderKeepsAWindowAcrossAddressesOnRabbitMQ(t *testing.T) {
	t.Parallel()
	o := devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"}
	b := startBroker(t, o)
	w := startRelay(t, inOrder, b)
	w.await(0, Up)
	topics := []string{"build.tag", "build.untag", "task.open"}
	wantAll(t, w.SendPatiently(t.Context(), sample(3, topics...)), message.Accepted, message.Done) // attaches
	b.Script("#", held)
	msgs := sample(400, topics...)
	for i := range msgs {
		msgs[i].ID = "second-" + msgs[i].ID
	}
	outs := drainTo(t, w, msgs, func() {
		waitReceived(t, b, 3+patientWindow)
		b.Script("#", devbroker.Behaviour{})
		b.SettleHeld()
	})
	wantAll(t, outs, message.Accepted, message.Done)
	wantOrder(t, arrivals(b)[3:], msgs)
}

// Where links may overtake each other, or are in several sessions, each change of address waits.
func TestDrainInOrderWaitsWhereLinksMayOvertake(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]devbroker.Options{
		"another broker":   {},
		"several sessions": {Product: "RabbitMQ", Version: "4.0.5", MaxLinks: 1, MaxSessions: 256},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, o)
			w := startRelay(t, inOrder, b)
			w.await(0, Up)
			topics := []string{"build.tag", "build.untag"}
			wantAll(t, w.SendPatiently(t.Context(), sample(2, topics...)), message.Accepted, message.Done) // attaches
			b.Script("#", held)
			msgs := sample(4, topics...)
			for i := range msgs {
				msgs[i].ID = "second-" + msgs[i].ID
			}
			outs := drainTo(t, w, msgs, func() {
				waitReceived(t, b, 3)
				<-time.After(50 * time.Millisecond) // for those that must not come
				if n := len(b.Received()); n != 3 {
					t.Errorf("%d messages are with the broker, want 1", n-2)
				}
				b.Script("#", devbroker.Behaviour{})
				b.SettleHeld()
			})
			wantAll(t, outs, message.Accepted, message.Done)
			wantOrder(t, arrivals(b)[2:], msgs)
		})
	}
}

// With preserve_order nothing new is sent behind a message that got no answer.
func TestDrainInOrderStopsBehindALostMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, inOrder, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Containing: `{"n": 20}`,
		Verdict: devbroker.Verdict{Fault: devbroker.DropConnection, When: devbroker.Never}, Times: 1})
	msgs := sample(300)
	outs := w.SendPatiently(t.Context(), msgs)
	behind := 0
	for i, o := range outs {
		switch {
		case i < 20 && o.Next != message.Done && o.State != message.Unknown:
			t.Errorf("message %d: %+v", i, o)
		case i > 20+patientWindow && o.State != message.NotSent:
			t.Errorf("message %d was sent: %+v", i, o)
		case o.Reason == behindUnknown:
			behind++
		}
	}
	if behind < 100 {
		t.Errorf("%d messages wait for the one without an answer", behind)
	}
}

// A broker that is probed may settle all by the probe. The drain has nothing left then, and ends.
func TestDrainEndsWhenTheProbeWasAll(t *testing.T) {
	t.Parallel()
	for name, adjust := range map[string]func(*Options){"in order": inOrder, "in any order": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, adjust, b)
			w.await(0, Up)
			w.brokers[0].trip(w.brokers[0].conn, "a test")
			w.await(0, Stalled)
			result := make(chan []message.Outcome, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { result <- w.SendPatiently(ctx, sample(1)) }()
			select {
			case outs := <-result:
				wantAll(t, outs, message.Accepted, message.Done)
			case <-time.After(2 * time.Minute):
				t.Error("the drain does not end")
			}
		})
	}
}
