package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/subscribe"
)

// This file is what an administrator asks of the bus by way of the relay, whose credentials nobody else may
// have.

// Check implements admin.Control.
func (c control) Check(ctx context.Context, connecting bool) (any, error) {
	return Check(ctx, c.effective.Load().config.Path, c.opts.Load, connecting)
}

// Tail implements admin.Control, by the configuration in force.
func (c control) Tail(ctx context.Context, patterns []string, each func(inspect.Arrival) error,
	notice func(string) error) error {
	lines := &noticeWriter{notice: notice}
	log := slog.New(slog.NewTextHandler(lines, nil))
	return subscribe.Run(ctx, SubscribeOptions(c.effective.Load().config, log), patterns,
		func(a inspect.Arrival) error {
			lines.mu.Lock()
			defer lines.mu.Unlock()
			return each(a)
		})
}

// noticeWriter makes notices of the lines of a log, one at a time with what else is told.
type noticeWriter struct {
	mu     sync.Mutex // held while something is told
	notice func(string) error
}

func (n *noticeWriter) Write(line []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(line), n.notice(string(bytes.TrimRight(line, "\n")))
}

const (
	// TestTopic is the topic of test messages. Koji has none that begins so.
	TestTopic = "koji_relay.test"
	// testTime is how long a test message may take to come back.
	testTime = 10 * time.Second
)

// SendTest implements admin.Control. It subscribes on every broker, sends one message as a commit's messages
// are sent, and waits for it where the broker that took it lets us subscribe. The message is never queued.
func (c control) SendTest(ctx context.Context) (inspect.TestSent, error) {
	cfg := c.effective.Load().config
	opts := RelayOptions(cfg, slog.New(slog.DiscardHandler))
	if err := opts.Options.Check(); err != nil {
		return inspect.TestSent{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Broker.ConnectTimeout+cfg.Relay.HandoffTimeout+testTime)
	defer cancel()
	m := message.Message{
		ID: uuid.NewString(), Address: TestTopic, Created: time.Now(),
		Props: []message.Prop{{Key: "type", Value: "KojiRelayTest"}}, Body: `{"test": true}`,
	}
	watches := make(map[string]*testWatch)
	for _, u := range cfg.Broker.URLs {
		if e, err := endpoint.Parse(u.Reveal()); err == nil {
			w := watchFor(ctx, &opts.Options, e, m.ID)
			defer w.close()
			watches[e.Name] = w
		}
	}
	for _, w := range watches {
		<-w.ready
	}
	began := time.Now()
	outcome := c.current.send(ctx, m)
	sent := inspect.TestSent{
		MessageID: m.ID, Address: m.Address, Outcome: strings.ToLower(outcome.State.String()),
		Broker: outcome.Broker, Reason: outcome.Reason, AcceptedSeconds: time.Since(began).Seconds(),
	}
	w := watches[outcome.Broker]
	switch {
	case outcome.State != message.Accepted:
		return sent, nil
	case w == nil:
		sent.NotSubscribed = "no broker was asked: [broker] test_mode is on"
		return sent, nil
	case w.err != nil:
		sent.NotSubscribed = failure.Cause(w.err)
		return sent, nil
	}
	waiting, cancel := context.WithTimeout(ctx, testTime)
	defer cancel()
	select {
	case at := <-w.arrived:
		sent.Received, sent.ReceivedSeconds = true, at.Sub(began).Seconds()
	case <-waiting.Done():
	}
	return sent, nil
}

// send sends one message as Send does, by the service in force.
func (c *current) send(ctx context.Context, m message.Message) message.Outcome {
	s := c.acquire()
	defer s.users.Done()
	return s.relay.Send(ctx, []message.Message{m})[0]
}

// testWatch waits on one broker for a test message.
type testWatch struct {
	ready   chan struct{} // closed when err is known
	err     error         // why it does not wait
	arrived chan time.Time
	ended   chan struct{}
	cancel  context.CancelFunc
}

func watchFor(ctx context.Context, o *amqpconn.Options, e endpoint.Endpoint, id string) *testWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &testWatch{
		ready: make(chan struct{}), arrived: make(chan time.Time, 1), ended: make(chan struct{}), cancel: cancel,
	}
	go w.run(ctx, o, e, id)
	return w
}

func (w *testWatch) run(ctx context.Context, o *amqpconn.Options, e endpoint.Endpoint, id string) {
	defer close(w.ended)
	c, receivers, err := amqpconn.Listen(ctx, o, e, slog.New(slog.DiscardHandler), []string{TestTopic}, 10)
	w.err = err
	close(w.ready)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		m, err := receivers[0].Receive(ctx)
		if err != nil {
			return
		}
		at := time.Now()
		if err := receivers[0].Accept(ctx, m); err != nil {
			return
		}
		if m.Properties != nil && m.Properties.MessageID == id {
			w.arrived <- at
			return
		}
	}
}

// close ends the subscription, and waits for it.
func (w *testWatch) close() {
	w.cancel()
	<-w.ended
}
