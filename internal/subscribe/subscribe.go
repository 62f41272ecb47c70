// Package subscribe receives messages of the bus, as a consumer does, and shows them: for the command tail.
// It promises to say when it is not subscribed, and to connect again. It keeps nothing, on no broker and
// nowhere else.
package subscribe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/inspect"
	"koji-relay/internal/retry"
)

const (
	// credit is how many messages a broker may have on their way to us.
	credit = 200
	// seasoned is how long a subscription has to last before its end is tried again without delay.
	seasoned = 5 * time.Second
	// maxPause is the longest time between two attempts to subscribe.
	maxPause = 10 * time.Second
)

// Options says where to subscribe.
type Options struct {
	URLs             []string // amqp:// or amqps://
	amqpconn.Options          // how to connect to any of them
	Logger           *slog.Logger
}

// Run receives on all brokers what matches the patterns (of topics without prefix: * is one word, # any
// number; none means all) and calls deliver for each message, one at a time. It blocks until ctx ends, which
// is no error, or deliver returns an error, which is returned. It connects again to brokers that go away, and
// logs why.
//
// Nothing is kept on a broker for a subscriber that is away; only RabbitMQ 3 leaves a queue amq.gen-…
// for each pattern, which goes on filling (docs/consumers.md has the remedy). RabbitMQ 4 needs the permission
// to declare a queue of its own and to bind it; RabbitMQ 3 the same for its plugin's sake.
func Run(ctx context.Context, o Options, patterns []string, deliver func(inspect.Arrival) error) error {
	if err := o.Options.Check(); err != nil {
		return err
	}
	if len(patterns) == 0 {
		patterns = []string{"#"}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &subscriber{opts: &o, patterns: patterns, deliver: deliver, end: cancel}
	var wg sync.WaitGroup
	for _, url := range o.URLs {
		e, err := endpoint.Parse(url)
		if err != nil {
			cancel(err)
			break
		}
		wg.Go(func() { s.follow(ctx, e) })
	}
	wg.Wait()
	var ended deliverError
	if errors.As(context.Cause(ctx), &ended) {
		return ended.error
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) &&
		!errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// deliverError is what deliver returned.
type deliverError struct{ error }

type subscriber struct {
	opts     *Options
	patterns []string
	end      context.CancelCauseFunc

	mu      sync.Mutex // serialises deliver
	deliver func(inspect.Arrival) error
}

// follow keeps subscribed to one broker until ctx ends.
func (s *subscriber) follow(ctx context.Context, e endpoint.Endpoint) {
	log := s.opts.Logger.With("broker", e.Name)
	trouble := retry.Trouble{Limit: maxPause}
	for ctx.Err() == nil {
		var since time.Time // it has been subscribed
		err := s.receive(ctx, e, log, func() {
			since = time.Now()
			trouble.Forget()
		})
		if ctx.Err() != nil {
			return
		}
		if !since.IsZero() && time.Since(since) >= seasoned {
			trouble.Over()
		}
		if cause := failure.Cause(err); trouble.FailedBy(cause) {
			log.Warn("not subscribed", "cause", cause)
		}
		retry.Pause(ctx, trouble.Delay())
	}
}

// receive works on one connection until it or ctx ends, and says why it ended.
func (s *subscriber) receive(ctx context.Context, e endpoint.Endpoint, log *slog.Logger,
	subscribed func()) error {
	c, receivers, err := amqpconn.Listen(ctx, &s.opts.Options, e, log, s.patterns, credit)
	if err != nil {
		return err
	}
	defer c.Close()
	subscribed()
	log.Info("subscribed", "product", c.Peer.Product, "version", c.Peer.Version, "dialect", c.Dialect.Name)

	receiving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, r := range receivers {
		wg.Go(func() { cancel(s.drain(receiving, e.Name, r)) })
	}
	wg.Wait()
	select {
	case <-c.Done():
		return c.Cause()
	default:
		return context.Cause(receiving)
	}
}

// drain delivers what one receiver gets, until an error or the end of ctx.
func (s *subscriber) drain(ctx context.Context, broker string, r *amqpconn.Receiver) error {
	for {
		m, err := r.Receive(ctx)
		if err != nil {
			return fmt.Errorf("receive: %s", failure.Text(err))
		}
		if err := s.pass(newArrival(broker, r.Pattern, s.opts.TopicPrefix, m)); err != nil {
			s.end(deliverError{err})
			return err
		}
		if err := r.Accept(ctx, m); err != nil {
			return fmt.Errorf("accept: %s", failure.Text(err))
		}
	}
}

func (s *subscriber) pass(a inspect.Arrival) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deliver(a)
}

func newArrival(broker, pattern, prefix string, m *amqp.Message) inspect.Arrival {
	a := inspect.Arrival{
		Broker: broker, Received: time.Now(), Props: m.ApplicationProperties, Address: pattern, Priority: 4,
		Section: "none",
	}
	if m.Header != nil {
		a.Durable, a.Priority, a.TTL = m.Header.Durable, m.Header.Priority, m.Header.TTL.Seconds()
	}
	if p := m.Properties; p != nil {
		if p.MessageID != nil {
			a.MessageID = fmt.Sprint(p.MessageID)
		}
		a.Created = p.CreationTime
	}
	if topic := topicOf(m); topic != "" {
		a.Address = withoutPrefix(prefix, topic)
	}
	switch {
	case m.Value != nil:
		a.Section, a.Body = "value", fmt.Sprint(m.Value)
	case len(m.Data) > 0:
		a.Section = "data"
		for _, part := range m.Data {
			a.Body += string(part)
		}
	case len(m.Sequence) > 0:
		a.Section, a.Body = "sequence", fmt.Sprint(m.Sequence)
	}
	return a
}

// topicOf finds where a message was sent to. Brokers tell it in different places.
func topicOf(m *amqp.Message) string {
	for _, key := range []string{"x-routing-key"} { // RabbitMQ 4
		if topic, _ := m.Annotations[key].(string); topic != "" {
			return topic
		}
	}
	if p := m.Properties; p != nil {
		if p.To != nil && *p.To != "" { // ActiveMQ
			return *p.To
		}
		if p.Subject != nil {
			return *p.Subject
		}
	}
	return ""
}

// withoutPrefix cuts the prefix, in whatever spelling, off a topic.
func withoutPrefix(prefix, topic string) string {
	key := strings.TrimPrefix(prefix, "topic://")
	if _, k, ok := dialect.ExchangeOf(prefix); ok {
		key = k
	}
	topic = topic[strings.LastIndex(topic, "/")+1:]
	return strings.TrimPrefix(topic, key+".")
}
