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
	"koji-relay/internal/message"
)

// sender is the relay's hand-over side: one outcome per message, in order.
type sender interface {
	Send(ctx context.Context, msgs []message.Message) []message.Outcome
}

// putter is the queue's: all of it is stored, durably, or none.
type putter interface {
	Put(ctx context.Context, unsent []message.Unsent, bad []message.Undeliverable) error
}

// publisher deals with commits: translate, send, put what was not accepted. It is the one place that
// decides what the hub is told, and what it promises is the relay's promise: an event missing from
// Receipt.NotTaken was accepted by a broker, is committed in the queue, or needs neither.
type publisher struct {
	translate func(message.Commit) callbacks.Translation
	sender    sender
	queue     putter // nil with [queue] enabled = off
	// backlog, when set (preserve_order), reports whether older messages wait in the queue; new ones then
	// go behind them.
	backlog      func(ctx context.Context) (bool, error)
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
	return receipt
}

func (p *publisher) take(ctx context.Context, c message.Commit, now time.Time) message.Receipt {
	t := p.translate(c)
	for i := range t.Messages {
		t.Messages[i].Created = now
	}
	receipt := message.Receipt{Skipped: t.Skipped}

	outcomes, sendErr := p.send(ctx, t.Messages)
	var unsent []message.Unsent
	for i, o := range outcomes {
		if o.Next == message.Done {
			receipt.Sent++
			p.watch.sent(&t.Messages[i], o)
			continue
		}
		unsent = append(unsent, message.Unsent{Message: t.Messages[i], Outcome: o})
	}
	if len(unsent) == 0 && len(t.Undeliverable) == 0 {
		return receipt
	}
	err := sendErr
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

// send gives the messages to the brokers, unless something stands before them. After an error nothing was
// sent, and the outcomes say so.
func (p *publisher) send(ctx context.Context, msgs []message.Message) ([]message.Outcome, error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	notSent := make([]message.Outcome, len(msgs)) // the zero Outcome: not sent, wait
	if p.paused.Load() {
		return notSent, nil
	}
	if p.backlog != nil {
		lookCtx, cancel := context.WithTimeout(ctx, p.storeTimeout)
		defer cancel()
		waiting, err := p.backlog(lookCtx)
		if err != nil {
			// Sending now could overtake a message in the queue that cannot be seen.
			return notSent, fmt.Errorf("look for older messages in the queue (preserve_order): %w", err)
		}
		if waiting {
			return notSent, nil
		}
	}
	return p.sender.Send(ctx, msgs), nil
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
