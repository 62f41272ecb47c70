package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"koji-relay/callbacks"
	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// sender is the relay's hand-over side: one outcome per message, in order.
type sender interface {
	Send(ctx context.Context, msgs []message.Message) []message.Outcome
}

// putter is the queue's: all of it is stored, durably, or none.
type putter interface {
	Put(ctx context.Context, unsent []message.Unsent, bad []message.Undeliverable) error
}

// order is what the publisher needs to keep the order of first attempts; queue.Store and the outbox say how
// they keep it from there on.
type order struct {
	backlog func(ctx context.Context) (queue.Backlog, error)
	// append puts a commit behind those in the outbox; nil for commits that come from there.
	append func(ctx context.Context, c message.Commit) error
}

// publisher deals with commits: translate, send, put what was not accepted. It is the one place that
// decides what the hub is told, and what it promises is the relay's promise: an event missing from
// Receipt.NotTaken was accepted by a broker, is committed in the queue, or needs neither.
type publisher struct {
	translate func(message.Commit) callbacks.Translation
	sender    sender
	queue     putter // nil with [queue] enabled = off
	// order, when set (preserve_order), says what new messages would overtake.
	order        *order
	storeTimeout time.Duration
	stored       func()       // called after a put: wakes the drain
	paused       *atomic.Bool // sending is paused: commits are queued
	watch        *watch
	log          *slog.Logger
}

// Take implements ingest.Taker and the outbox reader's handler. It may be called concurrently. It blocks
// for at most handoff_timeout plus twice store_timeout.
func (p *publisher) Take(ctx context.Context, c message.Commit) message.Receipt {
	start := time.Now()
	receipt := p.take(ctx, c, start)
	p.watch.taken(c, receipt, time.Since(start))
	failpoint.Hit("before-answer")
	return receipt
}

func (p *publisher) take(ctx context.Context, c message.Commit, now time.Time) message.Receipt {
	t := p.translate(c)
	for i := range t.Messages {
		t.Messages[i].Created = now
	}
	p.watch.metrics.ExtraTrimmed(t.Trimmed)
	receipt := message.Receipt{Skipped: t.Skipped}
	unsent, err := p.send(ctx, c, t, &receipt)
	if errors.Is(err, errAppended) {
		receipt.Queued = len(t.Messages) + len(t.Undeliverable)
		return receipt
	}
	if len(unsent) == 0 && len(t.Undeliverable) == 0 {
		return receipt
	}
	if err == nil {
		err = p.put(ctx, unsent, t.Undeliverable)
	}
	if err != nil {
		p.refuse(&receipt, c, unsent, t.Undeliverable, err)
		return receipt
	}
	p.account(&receipt, c, unsent, t.Undeliverable)
	return receipt
}

// errAppended says that the commit went whole behind others in the outbox.
var errAppended = errors.New("appended to the outbox")

// send gives the messages to the brokers, unless something stands before them, and returns those that are not
// done. After an error nothing was sent, and unsent holds all.
func (p *publisher) send(ctx context.Context, c message.Commit, t callbacks.Translation, receipt *message.Receipt) (unsent []message.Unsent, err error) {
	if len(t.Messages) == 0 {
		return nil, nil
	}
	wait := p.paused.Load()
	if p.order != nil {
		var behind bool
		if behind, err = p.order.stand(ctx, c, p.storeTimeout); err != nil {
			wait = true
		}
		wait = wait || behind
	}
	outcomes := make([]message.Outcome, len(t.Messages)) // the zero Outcome: not sent, wait
	if !wait {
		failpoint.Hit("before-send")
		outcomes = p.sender.Send(ctx, t.Messages)
		failpoint.Hit("after-send")
	}
	for i, o := range outcomes {
		if o.Next == message.Done {
			receipt.Sent++
			p.watch.sent(&t.Messages[i], o)
			continue
		}
		unsent = append(unsent, message.Unsent{Message: t.Messages[i], Outcome: o})
	}
	return unsent, err
}

// stand finds the place of c: behind messages in the queue (true), behind commits in the outbox (errAppended,
// and it is there now), or first.
func (o *order) stand(ctx context.Context, c message.Commit, timeout time.Duration) (behind bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	waiting, err := o.backlog(ctx)
	if err != nil {
		// Sending now could overtake what cannot be seen.
		return false, fmt.Errorf("look for older messages (preserve_order): %w", err)
	}
	if !waiting.Outbox || o.append == nil {
		return waiting.Queue, nil
	}
	if err := o.append(ctx, c); err != nil {
		return false, fmt.Errorf("stand behind the outbox (preserve_order): %w", err)
	}
	return false, errAppended
}

var errQueueOff = errors.New("no broker took it and [queue] enabled = off")

func (p *publisher) put(ctx context.Context, unsent []message.Unsent, bad []message.Undeliverable) error {
	if p.queue == nil {
		return errQueueOff
	}
	ctx, cancel := context.WithTimeout(ctx, p.storeTimeout)
	defer cancel()
	if err := p.queue.Put(ctx, unsent, bad); err != nil {
		return err
	}
	p.stored()
	p.watch.put(unsent, bad)
	return nil
}

// account counts what a put stored, and logs what became a dead letter.
func (p *publisher) account(r *message.Receipt, c message.Commit, unsent []message.Unsent, bad []message.Undeliverable) {
	for _, u := range unsent {
		if u.Outcome.Next != message.Dead {
			r.Queued++
			continue
		}
		r.Dead++
		p.log.Warn("message set aside as a dead letter", "commit", c.ID, "event", u.Message.Event,
			"address", u.Message.Address, "message_id", u.Message.ID, "reason", u.Outcome.Reason)
	}
	for _, b := range bad {
		r.Dead++
		p.log.Warn("event set aside as a dead letter: no message can be formed", "commit", c.ID,
			"event", b.Event, "callback", b.Callback, "message_id", b.ID, "reason", b.Reason)
	}
}

// refuse names the events that were neither sent nor stored.
func (p *publisher) refuse(r *message.Receipt, c message.Commit, unsent []message.Unsent, bad []message.Undeliverable, err error) {
	for _, u := range unsent {
		r.NotTaken = append(r.NotTaken, u.Message.Event)
	}
	for _, b := range bad {
		r.NotTaken = append(r.NotTaken, b.Event)
	}
	slices.Sort(r.NotTaken)
	p.watch.refused(unsent, bad)
	r.Reason = "neither sent nor stored: " + err.Error()
	p.log.Error("events refused: neither sent nor stored", "commit", c.ID, "events", len(r.NotTaken), "error", err)
}
