package daemon

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/relay"
)

// service is translation and sending by one configuration. A reload makes a new one beside the old, hands it
// what comes from then on, and stops the old one when the last call that uses it has returned.
type service struct {
	relay  *relay.Relay
	rules  *callbacks.Rules
	events string     // patterns of the callbacks that make messages
	hub    *publisher // for commits from the hub API
	outbox *publisher // for commits from the outbox
	users  sync.WaitGroup
}

// newService makes a service on store, which is nil with [queue] enabled = off. Nothing runs yet.
func (d *Daemon) newService(c *config.Config) (*service, error) {
	rules, err := callbacks.New(RulesOptions(c))
	if err != nil {
		return nil, fmt.Errorf("prepare translation: %w", err)
	}
	relayOptions := RelayOptions(c, d.log)
	relayOptions.Observer = d.watch.relayObserver()
	if d.drainer != nil {
		relayOptions.Observer.AddressWorks = d.drainer.AddressWorks
	}
	r, err := relay.New(relayOptions)
	if err != nil {
		return nil, fmt.Errorf("prepare sending: %w", err)
	}
	p := publisher{
		translate:      rules.Translate,
		sender:         r,
		handoffTimeout: c.Relay.HandoffTimeout,
		storeTimeout:   c.Queue.StoreTimeout,
		stored:         func() {},
		paused:         &d.publishPaused,
		watch:          d.watch,
		log:            d.log,
	}
	if d.store != nil {
		p.queue = d.health
		p.stored = d.drainer.Wake
	}
	hub, outbox := p, p
	hub.via, outbox.via = inspect.ViaSocket, inspect.ViaOutbox
	hub.share = d.share
	if d.store != nil && c.Queue.PreserveOrder {
		hub.order = &order{backlog: d.store.Backlog}
		outbox.order = &order{backlog: d.store.Backlog}
		if d.postgres != nil {
			hub.order.append = d.postgres.AppendOutbox
		}
	}
	return &service{relay: r, rules: rules, events: strings.Join(rules.Events(), " "), hub: &hub,
		outbox: &outbox}, nil
}

// run keeps the brokers connected until stop, which first waits for the calls under way.
func (s *service) run(fatal chan<- error) part {
	brokers := startPart("brokers", 5*time.Second, fatal, s.relay.Run)
	return part{name: "sending", limit: 15 * time.Second, stop: func(ctx context.Context) error {
		err := s.wait(ctx)
		if brokersErr := brokers.stop(ctx); err == nil {
			err = brokersErr
		}
		return err
	}}
}

func (s *service) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.users.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// current holds the service in force. It is what ingest, the outbox reader and the drain see: they never
// learn that it was exchanged.
type current struct {
	mu      sync.Mutex // guards the fields below and the first Add to the service's users
	service *service
	part    part          // the service's running half
	changed chan struct{} // closed at the next exchange
}

func (c *current) acquire() *service {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.service.users.Add(1)
	return c.service
}

// exchange puts next in force and returns the running half of the one before, which nothing new will reach.
func (c *current) exchange(next *service, running part) part {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed != nil {
		close(c.changed)
	}
	old := c.part
	c.service, c.part, c.changed = next, running, make(chan struct{})
	return old
}

// translate is by the rules in force.
func (c *current) translate(commit message.Commit) callbacks.Translation {
	s := c.acquire()
	defer s.users.Done()
	return s.rules.Translate(commit)
}

// SendPatiently, Usable and Answers implement drain.Sender.
func (c *current) SendPatiently(ctx context.Context, msgs []message.Message) []message.Outcome {
	s := c.acquire()
	defer s.users.Done()
	return s.relay.SendPatiently(ctx, msgs)
}

func (c *current) Usable() bool {
	s := c.acquire()
	defer s.users.Done()
	return s.relay.Usable()
}

func (c *current) Answers() int64 {
	s := c.acquire()
	defer s.users.Done()
	return s.relay.Answers()
}

// events are the patterns of the callbacks that make messages, by the rules in force.
func (c *current) events() string {
	s := c.acquire()
	defer s.users.Done()
	return s.events
}

// exchanged is closed at the next exchange.
func (c *current) exchanged() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// brokerUp blocks until a broker becomes usable, the service is exchanged, or ctx ends.
func (c *current) brokerUp(ctx context.Context) {
	c.mu.Lock()
	s, changed := c.service, c.changed // not as a user: this wait must not keep an old service alive
	c.mu.Unlock()
	select {
	case <-s.relay.Up():
	case <-changed:
	case <-ctx.Done():
	}
}

// publish deals with a commit of the hub API, in the sight of the watchdog.
func (d *Daemon) publish(ctx context.Context, commit message.Commit) message.Receipt {
	s := d.current.acquire()
	defer s.users.Done()
	work := d.underway.begin(commit.ID)
	defer work.end()
	return s.hub.publish(ctx, commit, work.progress)
}

// outboxPublisher is the outbox reader's way in.
type outboxPublisher struct{ *current }

func (c outboxPublisher) Publish(ctx context.Context, commit message.Commit) message.Receipt {
	s := c.acquire()
	defer s.users.Done()
	return s.outbox.publish(ctx, commit, func() {})
}

// subjects says which commits of the outbox keep their order: those about one build, or all with
// preserve_order.
func (d *Daemon) subjects(c message.Commit) []string {
	if d.effective.Load().config.Queue.PreserveOrder {
		return []string{"everything"}
	}
	return callbacks.Subjects(c)
}
