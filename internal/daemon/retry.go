package daemon

import (
	"context"
	"errors"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// retried is the reason in the history.
const retried = "retried by the administrator"

// retryDead puts dead letters back into the queue. Dead events are translated again, as a newer relay or
// another configuration may be able to: one that still gives no message stays a dead letter and counts as
// missing.
func (q queueControl) retryDead(ctx context.Context, which inspect.Selection) (inspect.Changed, error) {
	found, err := q.pick(ctx, inspect.DeadBox, which, nil)
	done := inspect.Changed{Missing: found.missing}
	if err != nil {
		return done, err
	}
	for _, id := range found.events {
		ok, err := q.retryEvent(ctx, id)
		if err != nil {
			return done, err
		}
		if ok {
			done.Count++
		} else {
			done.Missing = append(done.Missing, id)
		}
	}
	retry := q.recorded(q.store.Retry, inspect.Queued, retried)
	return q.inChunks(ctx, inspect.DeadBox, found.messages, retry, done)
}

// retryEvent reports whether the event is in the queue now. The dead letter is deleted after that, so that
// whatever fails in between loses nothing; the message-id stays the same.
func (q queueControl) retryEvent(ctx context.Context, id string) (bool, error) {
	it, err := q.store.Show(ctx, inspect.DeadBox, id)
	if errors.Is(err, queue.ErrNotFound) {
		return false, nil // someone else has just decided on it
	}
	if err != nil {
		return false, err
	}
	m := &it.Message
	t := q.translate(message.Commit{ID: m.Commit,
		Events: []message.Event{{Number: m.Event, Callback: m.Callback, Kwargs: it.Body}}})
	if len(t.Messages) != 1 {
		reason := "the configuration does not ask for it (events, exclude_tags)"
		if len(t.Undeliverable) > 0 {
			reason = t.Undeliverable[0].Reason
		}
		q.log.Warn("event stays a dead letter: no message can be formed", "commit", m.Commit, "event", m.Event,
			"callback", m.Callback, "message_id", id, "reason", reason)
		return false, nil
	}
	t.Messages[0].Created = time.Now() // as new in age, or max_age would take it away again
	stored, err := q.store.Put(ctx, []message.Unsent{{Message: t.Messages[0]}}, nil)
	if err != nil || len(stored.Dead) > 0 {
		return false, err // the store cannot hold it: it stays a dead letter
	}
	q.history.Found(&t.Messages[0], inspect.Step{Kind: inspect.Queued, Reason: retried})
	_, err = q.store.Drop(ctx, inspect.DeadBox, inspect.Selection{IDs: []string{id}})
	return err == nil, err
}
