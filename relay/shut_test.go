package relay

import (
	"strings"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// RabbitMQ 4 makes the windows of all sessions 0 while an alarm is on. So it is known before a message is
// tried, and the hub pays for none.
func TestBrokerThatShutsItsWindowsIsStalledUntilItOpensThem(t *testing.T) {
	t.Parallel()
	b := startBroker(t, rabbit4())
	w, log := logged(t, nil, b)
	w.await(0, Up)
	wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Released, message.Later)
	b.ShutWindows(true)
	w.await(0, Stalled)
	if s := w.Status()[0]; !strings.Contains(s.Reason, "alarm") || s.Untried {
		t.Errorf("it is stalled for %q, untried %v", s.Reason, s.Untried)
	}
	wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.NotSent, message.Wait)
	wantAll(t, w.SendPatiently(t.Context(), fresh("build.tag")), message.NotSent, message.Wait)
	if n := w.Status()[0].InFlight; n != 0 {
		t.Errorf("%d messages are with a broker that takes none", n)
	}
	b.ShutWindows(false)
	w.await(0, Up)
	wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Released, message.Later)
	wantLines(t, log, 1, "broker stalled")
	wantLines(t, log, 1, "broker takes messages again")
}

// A connection that begins so is not up, and one that comes after it is without a probe.
func TestBrokerThatBeginsWithShutWindowsIsNotUp(t *testing.T) {
	t.Parallel()
	o := rabbit4()
	o.ShutWindow = true
	b := startBroker(t, o)
	w := startRelay(t, nil, b)
	w.await(0, Stalled)
	b.Stop()
	w.await(0, Down)
	b.ShutWindows(false)
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	w.await(0, Up)
	w.mu.Lock()
	defer w.mu.Unlock()
	var ups int
	for _, s := range w.states[b.Addr()] {
		if s == Up {
			ups++
		}
	}
	if ups != 1 {
		t.Errorf("it was up %d times: %q", ups, w.states[b.Addr()])
	}
}

// What the broker has when it shuts, and answers then, does not make it one that takes messages.
func TestAnswerWhileShutDoesNotCloseTheBreaker(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", held)
	sent := make(chan []message.Outcome, 1)
	go func() { sent <- w.SendPatiently(t.Context(), fresh("build.tag")) }()
	poll(t, "it is with the broker", func() bool { return w.Status()[0].InFlight == 1 })
	b.ShutWindows(true)
	w.await(0, Stalled)
	b.SettleHeld()
	wantAll(t, <-sent, message.Accepted, message.Done)
	if s := w.Status()[0]; s.State != Stalled {
		t.Errorf("it is %s", s.State)
	}
	b.ShutWindows(false)
	w.await(0, Up)
}
