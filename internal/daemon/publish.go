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
	Put(ctx context.Context, unsent []message.Unsent, bad []message.Undeliverable) (queue.Stored, error)
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
	order *order
	// share puts a piece into the outbox for all its readers, and reports whether it did; nil for pieces that
	// come from there.
	share          func(ctx context.Context, c message.Commit) bool
	handoffTimeout time.Duration // for all pieces of a commit together
	storeTimeout   time.Duration // for each piece
	stored         func()        // called after a put: wakes the drain
	paused         *atomic.Bool  // sending is paused: commits are queued
	via            string        // how the commits come: for the history
	watch          *watch
	log            *slog.Logger
}

// commitTime is how long one commit is dealt with. Its hub worker has stopped waiting long before.
const commitTime = 10 * time.Second

// publish deals with one commit, in pieces. It may be called concurrently. A commit of one piece (at most
// message.PieceEvents and message.PieceBytes) blocks for handoff_timeout plus twice store_timeout at most. A
// larger one takes twice store_timeout for each further piece, and no piece is begun after commitTime: the
// hub is told which events are left. progress is called after each piece.
func (p *publisher) publish(ctx context.Context, c message.Commit, progress func()) message.Receipt {
	h := handover{publisher: p, began: time.Now()}
	for events := range message.Pieces(c.Events) {
		if time.Since(h.began) < commitTime {
			h.piece(ctx, message.Commit{ID: c.ID, Events: events})
		} else {
			h.leave(events)
		}
		progress()
	}
	if n := len(h.receipt.NotTaken); n > 0 {
		slices.Sort(h.receipt.NotTaken)
		h.receipt.Reason = "neither sent nor stored: " + oneLine(h.failed)
		p.watch.refusals.refused(c.ID, n, h.failed)
	} else {
		p.watch.refusals.taken(h.receipt.Queued+h.receipt.Dead > 0)
	}
	p.watch.taken(p.via, c, h.receipt, time.Since(h.began))
	failpoint.Hit("before-answer")
	return h.receipt
}

// patience is how many puts of one commit may fail in a row: one may be slow, and the next one in time.
const patience = 2

// handover is one commit on its way.
type handover struct {
	*publisher
	began   time.Time
	sending bool // a piece has been given to the sender
	receipt message.Receipt
	failed  error // the first failure to store
	// failures counts puts that failed in a row. After patience of them the store is not asked again for this
	// commit.
	failures int
}

// piece translates, sends and puts some events of the commit, and adds what became of them to the receipt.
func (h *handover) piece(ctx context.Context, c message.Commit) {
	if h.share != nil && h.share(ctx, c) {
		h.receipt.Queued += len(c.Events)
		return
	}
	t := h.translate(c)
	for i := range t.Messages {
		t.Messages[i].Created = h.began
	}
	h.watch.metrics.ExtraTrimmed(t.Trimmed)
	h.receipt.Skipped += len(t.Skipped)
	h.watch.skipped(t.Skipped, h.via, h.began)
	unsent, err := h.send(ctx, c, t.Messages)
	if errors.Is(err, errAppended) {
		h.receipt.Queued += len(t.Messages) + len(t.Undeliverable)
		return
	}
	if len(unsent) == 0 && len(t.Undeliverable) == 0 {
		return
	}
	if err == nil {
		err = h.put(ctx, unsent, t.Undeliverable)
	}
	if err != nil {
		h.refuse(unsent, t.Undeliverable, err)
		return
	}
	h.account(c.ID, unsent, t.Undeliverable)
}

var errTooLong = fmt.Errorf("the commit takes longer than %v", commitTime)

// leave names the events of a piece that is not begun.
func (h *handover) leave(events []message.Event) {
	if h.failed == nil {
		h.failed = errTooLong
	}
	for _, e := range events {
		h.receipt.NotTaken = append(h.receipt.NotTaken, e.Number)
	}
}

// errAppended says that the piece went whole behind others in the outbox.
var errAppended = errors.New("appended to the outbox")

// send gives the messages to the brokers, unless something stands before them, and returns those that are not
// done. After an error nothing was sent, and unsent holds all.
func (h *handover) send(ctx context.Context, c message.Commit,
	msgs []message.Message) (unsent []message.Unsent, err error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	wait := h.paused.Load()
	if h.order != nil {
		var behind bool
		if behind, err = h.stand(ctx, c); err != nil {
			wait = true
		}
		wait = wait || behind
	}
	outcomes := make([]message.Outcome, len(msgs)) // the zero Outcome: not sent, wait
	if !wait {
		failpoint.Hit("before-send")
		outcomes = h.sendInTime(ctx, msgs)
		failpoint.Hit("after-send")
	}
	for i, o := range outcomes {
		if o.Next == message.Done {
			h.receipt.Sent++
			h.watch.sent(&msgs[i], h.via, o)
			continue
		}
		unsent = append(unsent, message.Unsent{Message: msgs[i], Outcome: o})
	}
	return unsent, err
}

// sendInTime gives each piece what the ones before it left of handoffTimeout. The first one is not cut here:
// the sender bounds it, and learns from its silence that a broker stalls.
func (h *handover) sendInTime(ctx context.Context, msgs []message.Message) []message.Outcome {
	if !h.sending {
		h.sending = true
		return h.sender.Send(ctx, msgs)
	}
	ctx, cancel := context.WithDeadline(ctx, h.began.Add(h.handoffTimeout))
	defer cancel()
	if ctx.Err() != nil {
		return make([]message.Outcome, len(msgs))
	}
	return h.sender.Send(ctx, msgs)
}

// stand finds the place of a piece: behind messages in the queue (true), behind commits in the outbox
// (errAppended, and it is there now), or first. After a failure no more of the commit may be sent: it would
// overtake what the hub keeps.
func (h *handover) stand(ctx context.Context, c message.Commit) (behind bool, err error) {
	if h.failed != nil {
		return false, h.failed
	}
	return h.order.stand(ctx, c, h.storeTimeout)
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

func (h *handover) put(ctx context.Context, unsent []message.Unsent, bad []message.Undeliverable) error {
	if h.queue == nil {
		return errQueueOff
	}
	if h.failures == patience {
		return h.failed
	}
	ctx, cancel := context.WithTimeout(ctx, h.storeTimeout)
	defer cancel()
	stored, err := h.queue.Put(ctx, unsent, bad)
	if err != nil {
		h.failures++
		return err
	}
	h.failures = 0
	for i := range unsent {
		o := &unsent[i].Outcome
		// The put may decide so by itself: it was the last attempt, or the store cannot hold the message.
		if reason, dead := stored.Dead[unsent[i].Message.ID]; dead && o.Next != message.Dead {
			o.Next, o.Reason = message.Dead, reason
		}
	}
	h.stored()
	h.watch.put(unsent, bad, h.via)
	return nil
}

// account counts what a put stored, and logs what became a dead letter.
func (h *handover) account(commit string, unsent []message.Unsent, bad []message.Undeliverable) {
	for _, u := range unsent {
		if u.Outcome.Next != message.Dead {
			h.receipt.Queued++
			continue
		}
		h.receipt.Dead++
		h.log.Warn("message set aside as a dead letter", "commit", commit, "event", u.Message.Event,
			"address", u.Message.Address, "message_id", u.Message.ID, "reason", u.Outcome.Reason)
	}
	for _, b := range bad {
		h.receipt.Dead++
		h.log.Warn("event set aside as a dead letter: no message can be formed", "commit", commit,
			"event", b.Event, "callback", b.Callback, "message_id", b.ID, "reason", b.Reason)
	}
}

// refuse names the events that were neither sent nor stored.
func (h *handover) refuse(unsent []message.Unsent, bad []message.Undeliverable, err error) {
	if h.failed == nil {
		h.failed = err
	}
	for _, u := range unsent {
		h.receipt.NotTaken = append(h.receipt.NotTaken, u.Message.Event)
	}
	for _, b := range bad {
		h.receipt.NotTaken = append(h.receipt.NotTaken, b.Event)
	}
	h.watch.refused(unsent, bad, h.via, err)
}
