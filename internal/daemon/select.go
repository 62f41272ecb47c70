package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/queue"
)

// selectionChunk is how many items one call of the store changes, so that no transaction grows with the
// queue.
const selectionChunk = 1000

// Retry implements admin.QueueControl. What became due is sent at once.
func (q queueControl) Retry(ctx context.Context, b inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	defer q.wake()
	switch {
	case which.DryRun && b == inspect.QueueBox:
		return q.count(ctx, b, which, setAside)
	case which.DryRun:
		return q.count(ctx, b, which, nil)
	case b == inspect.DeadBox:
		done, err := q.retryDead(ctx, which)
		return done, explain(err)
	}
	return q.change(ctx, b, which, setAside, q.store.Retry)
}

// Drop implements admin.QueueControl.
func (q queueControl) Drop(ctx context.Context, b inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	if which.DryRun {
		return q.count(ctx, b, which, nil)
	}
	return q.change(ctx, b, which, nil, q.recorded(q.store.Drop, inspect.Dropped, "by the administrator"))
}

// recorded is do with its successes told to the history. It is given ids.
func (q queueControl) recorded(do storeChange, kind inspect.StepKind, reason string) storeChange {
	return func(ctx context.Context, b inspect.Box, which inspect.Selection) (inspect.Changed, error) {
		changed, err := do(ctx, b, which)
		if err != nil {
			return changed, err
		}
		for _, id := range which.IDs {
			if !slices.Contains(changed.Missing, id) {
				q.history.Step(id, time.Time{}, inspect.Step{Kind: kind, Reason: reason})
			}
		}
		return changed, nil
	}
}

// setAside is true for what waits for its next attempt: only that can be made due.
func setAside(it *queue.Item) bool { return it.NextAttempt.After(time.Now()) }

type storeChange func(context.Context, inspect.Box, inspect.Selection) (inspect.Changed, error)

// change does something to the selected items for which also is true.
func (q queueControl) change(ctx context.Context, b inspect.Box, which inspect.Selection,
	also func(*queue.Item) bool, do storeChange) (inspect.Changed, error) {
	// What is deleted is named one by one, for the history.
	if !which.Filtered() && !(which.All && also == nil) {
		changed, err := do(ctx, b, inspect.Selection{IDs: which.IDs, All: which.All})
		return changed, explain(err)
	}
	found, err := q.pick(ctx, b, which, also)
	if err != nil {
		return inspect.Changed{}, explain(err)
	}
	done, err := q.inChunks(ctx, b, slices.Concat(found.messages, found.events), do, inspect.Changed{})
	done.Missing = nil // they went while we looked: nobody named them
	return done, explain(err)
}

// count tells what change would do.
func (q queueControl) count(ctx context.Context, b inspect.Box, which inspect.Selection,
	also func(*queue.Item) bool) (
	inspect.Changed, error) {
	found, err := q.pick(ctx, b, which, also)
	return inspect.Changed{Count: len(found.messages) + len(found.events), Missing: found.missing}, explain(err)
}

func (q queueControl) inChunks(ctx context.Context, b inspect.Box, ids []string, do storeChange,
	done inspect.Changed) (
	inspect.Changed, error) {
	for chunk := range slices.Chunk(ids, selectionChunk) {
		changed, err := do(ctx, b, inspect.Selection{IDs: chunk})
		done.Count += changed.Count
		done.Missing = append(done.Missing, changed.Missing...)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// picked are the ids that a selection comes to.
type picked struct {
	messages []string
	events   []string // dead letters without a message
	missing  []string // named, and not there
}

// pick looks up the selected items for which also, if it is given, is true. Named ones need only be there.
func (q queueControl) pick(ctx context.Context, b inspect.Box, which inspect.Selection,
	also func(*queue.Item) bool) (
	picked, error) {
	var p picked
	for _, id := range which.IDs {
		it, err := q.store.Show(ctx, b, id)
		switch {
		case errors.Is(err, queue.ErrNotFound):
			p.missing = append(p.missing, id)
		case err != nil:
			return p, err
		default:
			p.add(&it)
		}
	}
	if len(which.IDs) > 0 {
		return p, nil
	}
	reason := strings.ToLower(which.Reason)
	err := q.store.List(ctx, b, inspect.ListOptions{Address: which.Address}, func(it queue.Item) error {
		since := it.Message.Created
		if b == inspect.DeadBox {
			since = it.Queued
		}
		old := which.Before.IsZero() || since.Before(which.Before)
		if old && strings.Contains(strings.ToLower(it.Reason), reason) && (also == nil || also(&it)) {
			p.add(&it)
		}
		return nil
	})
	return p, err
}

func (p *picked) add(it *queue.Item) {
	if it.Event {
		p.events = append(p.events, it.Message.ID)
	} else {
		p.messages = append(p.messages, it.Message.ID)
	}
}
