package relay

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// subscribe runs Subscribe until the test ends; what arrives comes from the channel.
func subscribe(t *testing.T, patterns []string, brokers ...*devbroker.Broker) <-chan inspect.Arrival {
	t.Helper()
	arrivals := make(chan inspect.Arrival, 100)
	o := options(brokers...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Subscribe(ctx, o, patterns, func(a inspect.Arrival) error { arrivals <- a; return nil })
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
	poll(t, "receivers are attached", func() bool { return b.Stats().Links >= n })
}

func TestSubscriberGetsWhatMatches(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	arrivals := subscribe(t, []string{"build.*", "repo.done"}, b)
	linked(t, b, 2)
	w := startRelay(t, func(o *Options) { o.Durable, o.TTL = true, time.Hour }, b)
	msgs := sample(4, "build.tag", "task.open", "repo.done", "pre.build.tag")
	wantAll(t, w.Send(t.Context(), msgs), message.Accepted, message.Done)
	var ids []string
	for range 2 {
		a := <-arrivals
		ids = append(ids, a.MessageID)
		if a.Broker != b.Addr() || a.Props["type"] != "Tag" || a.Section != BodyValue || !a.Durable ||
			a.Priority != 4 ||
			a.TTL != 3600 || a.Created.IsZero() || a.Body == "" {
			t.Errorf("arrival %+v", a)
		}
	}
	slices.Sort(ids)
	if want := []string{msgs[0].ID, msgs[2].ID}; !slices.Equal(ids, want) {
		t.Errorf("received %v, not %v", ids, want)
	}
}

func TestSubscriberConnectsAgain(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	arrivals := subscribe(t, nil, a, b)
	linked(t, a, 1)
	linked(t, b, 1)
	a.Stop()
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Accepted, message.Done)
	if got := <-arrivals; got.Broker != b.Addr() {
		t.Errorf("arrival %+v", got)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	linked(t, a, 2)
	w = startRelay(t, nil, a)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Accepted, message.Done)
	if got := <-arrivals; got.Broker != a.Addr() {
		t.Errorf("arrival %+v", got)
	}
}

func TestSubscriberEndsWithItsReader(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	enough := errors.New("enough")
	o := options(b)
	done := make(chan error, 1)
	go func() {
		done <- Subscribe(context.Background(), o, nil, func(inspect.Arrival) error { return enough })
	}()
	linked(t, b, 1)
	w := startRelay(t, nil, b)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Accepted, message.Done)
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
