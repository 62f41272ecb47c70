package daemon

import (
	"context"
	"errors"
	"slices"
	"time"

	"koji-relay/internal/admin"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// retryEvents translates the dead events of which again, as a newer relay or another configuration may be able to, and
// puts what they become into the queue. It returns what is left for the store to retry, and what it did: an event that
// still gives no message stays a dead letter and counts as missing.
func (q queueControl) retryEvents(ctx context.Context, which admin.Selection) (rest admin.Selection, done admin.Changed, err error) {
	var events []string
	err = q.store.List(ctx, queue.Dead, queue.ListOptions{}, func(it queue.Item) error {
		if it.Event && (which.All || slices.Contains(which.IDs, it.Message.ID)) {
			events = append(events, it.Message.ID)
		}
		return nil
	})
	if err != nil {
		return which, done, err
	}
	rest = which
	rest.IDs = slices.DeleteFunc(slices.Clone(which.IDs), func(id string) bool { return slices.Contains(events, id) })
	for _, id := range events {
		ok, err := q.retryEvent(ctx, id)
		if err != nil {
			return which, done, err
		}
		if ok {
			done.Count++
		} else {
			done.Missing = append(done.Missing, id)
		}
	}
	return rest, done, nil
}

// retryEvent reports whether the event is in the queue now. The dead letter is deleted after that, so that whatever
// fails in between loses nothing; the message-id stays the same.
func (q queueControl) retryEvent(ctx context.Context, id string) (bool, error) {
	it, err := q.store.Show(ctx, queue.Dead, id)
	if errors.Is(err, queue.ErrNotFound) {
		return false, nil // someone else has just decided on it
	}
	if err != nil {
		return false, err
	}
	m := &it.Message
	t := q.translate(message.Commit{ID: m.Commit, Events: []message.Event{{Number: m.Event, Callback: m.Callback, Kwargs: it.Body}}})
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
	if err := q.store.Put(ctx, []message.Unsent{{Message: t.Messages[0]}}, nil); err != nil {
		return false, err
	}
	_, err = q.store.Drop(ctx, queue.Dead, queue.Selection{IDs: []string{id}})
	return err == nil, err
}
