package relay

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBroker gives a running scripted broker.
func startBroker(t testing.TB, o devbroker.Options) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// rabbit4 makes a broker announce itself as RabbitMQ 4, and release what nobody has bound.
func rabbit4() devbroker.Options {
	return devbroker.Options{Product: "RabbitMQ", Version: "4.0.5", ReleaseUnrouted: true}
}

// world is a relay under test and what it told its observer.
type world struct {
	*Relay
	t       testing.TB
	mu      sync.Mutex
	states  map[string][]BrokerState
	changed chan struct{}
	stop    func() // ends Run and waits for it
}

// connection are good values for all that a test is not about.
func connection() amqpconn.Options {
	return amqpconn.Options{
		TopicPrefix: "/topic/koji", Dialect: dialect.Auto, SASL: sasl.Auto,
		ConnectTimeout: time.Minute, SendTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute,
	}
}

// options are connection and more of the kind.
func options(brokers ...*devbroker.Broker) Options {
	o := Options{
		Options: connection(), Priority: 4, HandoffTimeout: time.Minute, MaxInflightBytes: 128 << 20,
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, b := range brokers {
		o.Brokers = append(o.Brokers, Broker{URL: b.URL()})
	}
	return o
}

// startRelay runs a relay on the brokers until the test ends. Timeouts are long: a test that is about one
// sets it.
func startRelay(t testing.TB, adjust func(*Options), brokers ...*devbroker.Broker) *world {
	t.Helper()
	w := &world{t: t, states: map[string][]BrokerState{}, changed: make(chan struct{}, 1)}
	o := options(brokers...)
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.Observer.BrokerState = func(broker string, s BrokerState) {
		w.mu.Lock()
		w.states[broker] = append(w.states[broker], s)
		w.mu.Unlock()
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	if adjust != nil {
		adjust(&o)
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.Relay = r
	r.startGrace = o.HandoffTimeout // tests send at once, and the machine may be busy
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if n := r.Inflight(); n != 0 {
			t.Errorf("%d bytes are in flight after the end", n)
		}
	})
	t.Cleanup(w.stop)
	return w
}

// await blocks until the broker with that index of the list has the state.
func (w *world) await(index int, s BrokerState) {
	w.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		if got := w.Status()[index]; got.State == s {
			return
		}
		select {
		case <-w.changed:
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			w.t.Fatalf("broker %d is not %s: %+v", index, s, w.Status()[index])
		}
	}
}

// sample makes n messages to the given addresses in turn.
func sample(n int, addresses ...string) []message.Message {
	if len(addresses) == 0 {
		addresses = []string{"build.tag"}
	}
	msgs := make([]message.Message, n)
	for i := range msgs {
		msgs[i] = message.Message{
			ID: fmt.Sprintf("id-%s-%d", addresses[i%len(addresses)], i), Commit: "c", Event: i, Callback: "postTag",
			Address: addresses[i%len(addresses)],
			Props:   []message.Prop{{Key: "type", Value: "Tag"}, {Key: "id", Value: int64(i)}},
			Body:    fmt.Sprintf(`{"n": %d}`, i), Created: time.Now(),
		}
	}
	return msgs
}

func wantAll(t *testing.T, outs []message.Outcome, state message.State, next message.Next) {
	t.Helper()
	for i, o := range outs {
		if o.State != state || o.Next != next {
			t.Fatalf("outcome %d is %v/%v (%s, %s), not %v/%v", i, o.State, o.Next, o.Broker, o.Reason, state, next)
		}
	}
}

func TestAcceptedMessagesAreDone(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	msgs := sample(1000, "build.tag", "task.open", "repo.done")
	wantAll(t, w.Send(t.Context(), msgs), message.Accepted, message.Done)
	if n := len(b.Received()); n != 1000 {
		t.Fatalf("broker has %d messages, not 1000", n)
	}
}

func TestFailsOverAtOnce(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, a, b)
	w.await(0, Up)
	w.await(1, Up)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Accepted, message.Done)
	a.Stop()
	w.await(0, Down)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Accepted, message.Done)
	if len(a.Received()) != 10 || len(b.Received()) != 10 {
		t.Fatalf("brokers have %d and %d messages", len(a.Received()), len(b.Received()))
	}
}

func TestWithEveryBrokerDownSendReturnsAtOnce(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	b.Stop()
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(10)), message.NotSent, message.Wait) // waits for the first attempt
	began := time.Now()
	for range 1000 {
		wantAll(t, w.Send(t.Context(), sample(10)), message.NotSent, message.Wait)
	}
	if took := time.Since(began); took > w.opts.HandoffTimeout/2 {
		t.Fatalf("1000 calls took %v", took)
	}
}

func TestFrozenBrokersCostOneHandoffTimeout(t *testing.T) {
	t.Parallel()
	const handoff = 4 * time.Second
	var brokers []*devbroker.Broker
	for range 3 {
		brokers = append(brokers, startBroker(t, devbroker.Options{}))
	}
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = handoff }, brokers...)
	for i := range brokers {
		w.await(i, Up)
	}
	wantAll(t, w.Send(t.Context(), sample(10)), message.Accepted, message.Done)
	for _, b := range brokers {
		b.Freeze()
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	slow := 0
	began := time.Now()
	for range 8 {
		wg.Go(func() {
			for range 125 {
				start := time.Now()
				w.Send(t.Context(), sample(1))
				if time.Since(start) > handoff/2 {
					mu.Lock()
					slow++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	t.Logf("1000 commits took %v, %d of them more than %v", took, slow, handoff/2)
	if took > 2*handoff || slow > 8 {
		t.Fatalf("1000 commits took %v; %d slow ones", took, slow)
	}
	for _, b := range brokers {
		b.Thaw()
	}
	w.await(0, Up)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Accepted, message.Done)
}
