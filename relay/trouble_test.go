package relay

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// logged runs a relay whose log can be read.
func logged(t *testing.T, adjust func(*Options), brokers ...*devbroker.Broker) (*world, *lockedBuffer) {
	log := &lockedBuffer{}
	w := startRelay(t, func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
		if adjust != nil {
			adjust(o)
		}
	}, brokers...)
	return w, log
}

func wantLines(t *testing.T, log *lockedBuffer, want int, text string) {
	t.Helper()
	if n := strings.Count(log.String(), text); n != want {
		t.Errorf("%q is logged %d times, not %d:\n%s", text, n, want, log.String())
	}
}

func TestBrokerTroubleIsLoggedOnceAndItsEndOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, nil, b)
	w.await(0, Up)
	b.Stop()
	w.await(0, Down)
	for range 3 { // connection attempts that fail
		w.await(0, Connecting)
		w.await(0, Down)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	w.await(0, Up)
	poll(t, "it has lasted", func() bool { return strings.Count(log.String(), "broker connected") == 2 })
	// Once for the lost connection, once for the refused ones.
	wantLines(t, log, 2, "broker down")
	wantLines(t, log, 1, "connection refused")
	wantLines(t, log, 1, "failures=") // of the second connection
	wantLines(t, log, 1, "down=")
}

// A broker that takes connections and ends each at once is in one trouble: "connected" would be its end.
func TestBrokerThatEndsEachConnectionIsLoggedOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, nil, b)
	w.await(0, Up)
	for range 3 {
		b.Inflict("", devbroker.DropConnection, devbroker.Cause{})
		w.await(0, Down)
		w.await(0, Up)
	}
	wantLines(t, log, 1, "broker down")
	wantLines(t, log, 1, "broker connected")
	poll(t, "it has lasted", func() bool { return strings.Count(log.String(), "broker connected") == 2 })
	wantLines(t, log, 1, "failures=3")
}

func TestAddressTroubleIsLoggedOnceAndItsEndOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, nil, b)
	w.await(0, Up)
	b.Script("koji.task.open", reject("amqp:resource-limit-exceeded"))
	wantAll(t, w.Send(t.Context(), sample(50, "task.open")), message.Rejected, message.Later)
	wantAll(t, w.Send(t.Context(), sample(50, "build.tag")), message.Accepted, message.Done)
	wantLines(t, log, 1, "address in trouble")
	wantLines(t, log, 1, "amqp:resource-limit-exceeded: because")
	wantLines(t, log, 0, "address works again")
	b.Script("koji.task.open", devbroker.Behaviour{})
	wantAll(t, w.Send(t.Context(), sample(50, "task.open")), message.Accepted, message.Done)
	wantLines(t, log, 1, "address works again")
	// One bad message among good ones does not fill the log.
	b.Script("koji.task.open", devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Reject},
		Containing: `{"n": 7}`})
	for range 20 {
		w.Send(t.Context(), sample(20, "task.open"))
	}
	wantLines(t, log, 1, "address in trouble")
	wantLines(t, log, 1, "address works again")
}

// An address that stood still and answers with another refusal does not work again.
func TestRefusalAfterASilenceIsNoRecovery(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, func(o *Options) { o.HandoffTimeout = 3 * time.Second }, b)
	w.await(0, Up)
	refusal := reject("amqp:resource-limit-exceeded")
	b.Script("koji.task.open", refusal)
	wantAll(t, w.Send(t.Context(), sample(1, "task.open")), message.Rejected, message.Later)
	refusal.When = devbroker.Held
	b.Script("koji.task.open", refusal)
	w.Send(t.Context(), sample(1, "task.open"))
	w.await(0, Stalled)
	b.SettleHeld()
	w.await(0, Up)
	wantLines(t, log, 1, "broker answers again")
	wantLines(t, log, 1, "address in trouble")
	wantLines(t, log, 0, "address works again")
}

func TestEndOfASessionIsLoggedOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, nil, b)
	addresses := []string{"build.tag", "task.open", "repo.done", "build.untag"}
	wantAll(t, w.Send(t.Context(), sample(40, addresses...)), message.Accepted, message.Done)
	sessions := b.Stats().Sessions
	b.Inflict("#", devbroker.EndSession, devbroker.Cause{Condition: "amqp:internal-error", Description: "oops"})
	poll(t, "the session is replaced", func() bool {
		w.Send(t.Context(), fresh("build.tag"))
		return b.Stats().Sessions > sessions
	})
	for _, address := range addresses {
		poll(t, "messages are accepted again",
			func() bool { return w.Send(t.Context(), fresh(address))[0].Next == message.Done })
	}
	wantLines(t, log, 1, "session ended\"")
	wantLines(t, log, 1, "session replaced")
}

func TestStallIsLoggedOnceWithItsLikelyCause(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, func(o *Options) { o.HandoffTimeout = 3 * time.Second }, b)
	w.await(0, Up)
	b.Script("#", held)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Unknown, message.Wait)
	for range 99 {
		w.Send(t.Context(), sample(1))
	}
	wantLines(t, log, 1, "broker stalled")
	wantLines(t, log, 1, "it answers nothing: it hangs, or an alarm")
	b.Script("#", devbroker.Behaviour{})
	b.SettleHeld()
	w.await(0, Up)
	wantLines(t, log, 1, "broker answers again")
}

// What RabbitMQ 3 does to publishers under a memory alarm.
func TestBrokerThatStopsReadingCostsOneHandoffTimeout(t *testing.T) {
	t.Parallel()
	const handoff = 4 * time.Second
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = handoff }, b)
	wantAll(t, w.Send(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
	b.Inflict("", devbroker.StopReading, devbroker.Cause{})
	slow := 0
	for n := 0; n < 50 || w.Status()[0].State == Up; n++ {
		big := fresh("build.tag")
		big[0].Body = strings.Repeat("x", 500_000) // fills the socket's buffers
		began := time.Now()
		w.Send(t.Context(), big)
		if time.Since(began) > handoff/2 {
			slow++
		}
	}
	if slow != 1 {
		t.Errorf("%d calls were slow", slow)
	}
	b.Thaw()
	w.await(0, Up)
	poll(t, "messages are accepted again", func() bool {
		return w.Send(t.Context(), fresh("build.tag"))[0].Next == message.Done
	})
}

func TestCreditWithdrawnInTheMiddleStopsOnlyItsAddress(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 5 * time.Second }, b)
	stop := make(chan struct{})
	others := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				others <- n
				return
			default:
				if w.Send(context.Background(), fresh("build.tag"))[0].Next == message.Done {
					n++
				}
			}
		}
	}()
	b.Script("koji.task.open", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.WithdrawCredit},
		Skip: 9, Times: 1})
	done := 0
	var last []message.Message
	for {
		last = fresh("task.open")
		if w.Send(t.Context(), last)[0].Next != message.Done {
			break
		}
		done++
	}
	close(stop)
	if n := <-others; done < 10 || n < 10 || w.Status()[0].State != Up {
		t.Errorf("%d were accepted, and %d for another address; %+v", done, n, w.Status()[0])
	}
	b.Script("koji.task.open", devbroker.Behaviour{})
	poll(t, "the last is accepted", func() bool {
		return w.SendPatiently(t.Context(), last)[0].Next == message.Done
	})
}

// The hub may go on meanwhile, which shows that the broker settles, or be quiet.
func TestDrainIsNotHeldUpByOneAddress(t *testing.T) {
	t.Parallel()
	for name, quiet := range map[string]bool{"busy hub": false, "quiet hub": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, b)
			w.await(0, Up)
			b.Script("koji.task.open", devbroker.Behaviour{NoCredit: true})
			stop, stopped := make(chan struct{}), make(chan struct{})
			defer func() { close(stop); <-stopped }()
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					case <-time.After(20 * time.Millisecond):
						if !quiet {
							w.Send(context.Background(), fresh("build.tag"))
						}
					}
				}
			}()
			began := time.Now()
			outs := w.SendPatiently(t.Context(), sample(300, "task.open", "build.tag", "repo.done"))
			if took := time.Since(began); took > w.opts.SendTimeout/2 {
				t.Errorf("the drain waited %v for one address", took)
			}
			for i, o := range outs {
				want := message.Done
				if i%3 == 0 {
					want = message.Later
				}
				if o.Next != want {
					t.Errorf("message %d: %+v", i, o)
				}
			}
		})
	}
}

// One message to an address that stands still, and nothing else for a while: it looks as if the broker were
// silent.
func TestBrokerIsSoonUsedAgainWhenOneAddressMadeItLookSilent(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(*world) message.Outcome{
		"by the hub": func(w *world) message.Outcome { return w.Send(w.t.Context(), fresh("build.tag"))[0] },
		"by the drain": func(w *world) message.Outcome {
			if !w.Usable() {
				return message.Outcome{}
			}
			stuck := slices.Concat(fresh("task.open"), fresh("task.open"))
			return w.SendPatiently(w.t.Context(), append(stuck, fresh("build.tag")...))[2]
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, b)
			w.await(0, Up)
			b.Script("koji.task.open", devbroker.Behaviour{NoCredit: true})
			wantAll(t, w.Send(t.Context(), sample(1, "task.open")), message.Unknown, message.Wait)
			if s := w.Status()[0]; s.State != Stalled || !strings.Contains(s.Reason, "no credit for task.open") {
				t.Fatalf("the broker is %s: %s", s.State, s.Reason)
			}
			// in half of send_timeout
			poll(t, "another address is served", func() bool { return again(w).Next == message.Done })
			if s := w.Status()[0]; s.State != Up {
				t.Errorf("the broker is %s then", s.State)
			}
			if n := b.Stats().Connections; n != 1 {
				t.Errorf("%d connections", n)
			}
			poll(t, "it is said of the address", func() bool {
				return strings.HasPrefix(w.Send(t.Context(), fresh("task.open"))[0].Reason, "no credit for the address")
			})
		})
	}
}

func TestSilentBrokerIsLeftAloneWhileAnotherWorks(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, a, b)
	w.await(0, Up)
	w.await(1, Up)
	a.Script("#", held)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Unknown, message.Wait)
	poll(t, "the other broker has proven itself",
		func() bool { return w.Send(t.Context(), fresh("task.open"))[0].Next == message.Done })
	for began := time.Now(); time.Since(began) < 2*firstProbePause; <-time.After(10 * time.Millisecond) {
		wantAll(t, w.Send(t.Context(), fresh("task.open")), message.Accepted, message.Done)
	}
	if n := a.Stats().Messages; n != 1 {
		t.Errorf("%d messages were given to a broker that had not answered the first", n)
	}
	a.SettleHeld()
	w.await(0, Up)
}

// 1,000 unsettled messages come back one by one: the session that ended takes nobody's message with it.
func TestDrainDeliversAllAfterALostConnection(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.DropConnection}, Skip: 150,
		Times: 1})
	msgs := sample(1000, "build.tag", "task.open")
	left := msgs
	poll(t, "all are accepted", func() bool {
		var still []message.Message
		for i, o := range w.SendPatiently(t.Context(), left) {
			if o.Next != message.Done {
				still = append(still, left[i])
			}
		}
		left = still
		return len(left) == 0
	})
	seen := count(b)
	for _, m := range msgs {
		if seen[m.ID] == 0 {
			t.Errorf("%s was never received", m.ID)
		}
	}
}

func TestDrainIsNotHeldUpByOneMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 2 * time.Second }, b)
	w.await(0, Up)
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Never}, Containing: `{"n": 7}`})
	for range 2 {
		began := time.Now()
		for i, o := range w.SendPatiently(t.Context(), sample(300)) {
			if want := map[bool]message.Next{true: message.Later, false: message.Done}[i == 7]; o.Next != want {
				t.Fatalf("message %d: %+v", i, o)
			}
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("the drain waited %v for one message", took)
		}
	}
}

// The time that one broker has used up is not held against the next.
func TestBrokerWithLittleTimeIsNotStalled(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 4 * time.Second }, a, b)
	w.await(0, Up)
	w.await(1, Up)
	a.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Release,
		Delay: 3200 * time.Millisecond}})
	b.Script("#", held)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Unknown, message.Wait)
	if s := w.Status()[1]; s.State != Up || s.InFlight != 1 {
		t.Errorf("status %+v", s)
	}
	b.SettleHeld()
}

// That a broker lets us in again does not show that it takes messages: the next one tells.
func TestBrokerIsUntriedAfterASilenceUntilTheNextMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = 100 * time.Millisecond }, b)
	w.await(0, Up)
	if s := w.Status()[0]; !s.Untried {
		t.Errorf("before any message: %+v", s)
	}
	b.Script("#", held)
	w.Send(t.Context(), sample(1))
	if s := w.Status()[0]; s.State != Stalled || s.Untried {
		t.Errorf("while it is silent: %+v", s)
	}
	b.Script("#", devbroker.Behaviour{})
	b.Inflict("", devbroker.DropConnection, devbroker.Cause{})
	poll(t, "it is connected again", func() bool { return b.Stats().Opened > 1 && w.Status()[0].Untried })
	if s := w.Status()[0]; s.State != Stalled || s.Reason != "connected again; the next message tries it" {
		t.Errorf("connected again: %+v", s)
	}
	wantAll(t, w.SendPatiently(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
	if s := w.Status()[0]; s.State != Up || s.Untried {
		t.Errorf("after a message: %+v", s)
	}
}
