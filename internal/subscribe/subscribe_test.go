package subscribe

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startBroker(t *testing.T) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(devbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func connection() amqpconn.Options {
	return amqpconn.Options{
		TopicPrefix: "/topic/koji", Dialect: dialect.Auto, SASL: sasl.Auto,
		ConnectTimeout: 10 * time.Second, SendTimeout: 20 * time.Second, IdleTimeout: 30 * time.Second,
	}
}

func options(brokers ...*devbroker.Broker) Options {
	o := Options{Options: connection(), Logger: slog.New(slog.DiscardHandler)}
	for _, b := range brokers {
		o.URLs = append(o.URLs, b.URL())
	}
	return o
}

// send has messages to the topics accepted by b, by way of a relay, and gives them.
func send(t *testing.T, b *devbroker.Broker, topics ...string) []message.Message {
	t.Helper()
	r, err := relay.New(relay.Options{
		Options: connection(), Brokers: []relay.Broker{{URL: b.URL()}}, Priority: 4, Durable: true, TTL: time.Hour,
		HandoffTimeout: 10 * time.Second, MaxInflightBytes: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = r.Run(ctx) })
	defer running.Wait()
	defer cancel()
	var all []message.Message
	for _, topic := range topics {
		all = append(all, message.Message{
			ID: rand.Text(), Address: topic, Props: []message.Prop{{Key: "type", Value: "Tag"}}, Body: "{}",
			Created: time.Now(),
		})
	}
	select {
	case <-r.Up():
	case <-time.After(30 * time.Second):
		t.Fatal("no broker came up")
	}
	for _, o := range r.Send(t.Context(), all) {
		if o.State != message.Accepted {
			t.Fatalf("sent with %+v", o)
		}
	}
	return all
}

// subscribe runs Run until the test ends; what arrives comes from the channel.
func subscribe(t *testing.T, patterns []string, brokers ...*devbroker.Broker) <-chan inspect.Arrival {
	t.Helper()
	arrivals := make(chan inspect.Arrival, 100) // more than arrive in a test
	o := options(brokers...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, o, patterns, func(a inspect.Arrival) error { arrivals <- a; return nil })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("subscribe: %v", err)
		}
	})
	return arrivals
}

// linked waits until n receivers are attached in all.
func linked(t *testing.T, b *devbroker.Broker, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); b.Stats().Links < n; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d receivers are attached", b.Stats().Links, n)
		}
	}
}

func TestSubscriberGetsWhatMatches(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	arrivals := subscribe(t, []string{"build.*", "repo.done"}, b)
	linked(t, b, 2)
	msgs := send(t, b, "build.tag", "task.open", "repo.done", "pre.build.tag")
	var ids []string
	for range 2 {
		a := <-arrivals
		ids = append(ids, a.MessageID)
		if a.Broker != b.Addr() || a.Props["type"] != "Tag" || a.Section != "value" || !a.Durable ||
			a.Priority != 4 ||
			a.TTL != 3600 || a.Created.IsZero() || a.Body == "" {
			t.Errorf("arrival %+v", a)
		}
	}
	slices.Sort(ids)
	want := []string{msgs[0].ID, msgs[2].ID}
	slices.Sort(want)
	if !slices.Equal(ids, want) {
		t.Errorf("received %v, not %v", ids, want)
	}
}

func TestSubscriberConnectsAgain(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t), startBroker(t)
	arrivals := subscribe(t, nil, a, b)
	linked(t, a, 1)
	linked(t, b, 1)
	a.Stop()
	send(t, b, "build.tag")
	if got := <-arrivals; got.Broker != b.Addr() {
		t.Errorf("arrival %+v", got)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	linked(t, a, 2)
	send(t, a, "build.tag")
	if got := <-arrivals; got.Broker != a.Addr() {
		t.Errorf("arrival %+v", got)
	}
}

func TestSubscriberEndsWithItsReader(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	enough := errors.New("enough")
	o := options(b)
	done := make(chan error, 1)
	go func() {
		done <- Run(context.Background(), o, nil, func(inspect.Arrival) error { return enough })
	}()
	linked(t, b, 1)
	send(t, b, "build.tag")
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
}

func TestTopicIsFoundWhereBrokersTellIt(t *testing.T) {
	t.Parallel()
	to := func(s string) *amqp.Message { return &amqp.Message{Properties: &amqp.MessageProperties{To: &s}} }
	for _, row := range []struct {
		prefix string
		m      *amqp.Message
		want   string
	}{
		{"/topic/koji", &amqp.Message{Annotations: amqp.Annotations{"x-routing-key": "koji.build.tag"}},
			"build.tag"},
		{"/exchanges/bus/koji", &amqp.Message{Annotations: amqp.Annotations{"x-routing-key": "koji.build.tag"}},
			"build.tag"},
		{"topic://koji", to("topic://koji.build.tag"), "build.tag"},
		{"koji", to("koji.build.tag"), "build.tag"},
		{"topic://VirtualTopic.eng.brew", to("topic://VirtualTopic.eng.brew.build.tag"), "build.tag"},
		{"/topic/koji", &amqp.Message{}, "build.*"},
	} {
		if got := newArrival("b", "build.*", row.prefix, row.m).Address; got != row.want {
			t.Errorf("%s: %q, not %q", row.prefix, got, row.want)
		}
	}
}
