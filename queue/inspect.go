package queue

import (
	"context"
	"encoding/json"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// Inspector is the side of a store that administrators look at and change. Its methods are safe for
// concurrent use, also beside puts and a drain: a message that is being sent while it is dropped may still
// arrive.
type Inspector interface {
	// Stats counts everything, which takes time that grows with the queue (for a million messages about a
	// second).
	Stats(ctx context.Context) (inspect.Statistics, error)
	// List calls each for the items of box, oldest first unless asked otherwise, without Body. An error of
	// each ends it and is returned.
	List(ctx context.Context, box inspect.Box, o inspect.ListOptions, each func(Item) error) error
	// Show gives one item with Body; ErrNotFound when box does not hold it.
	Show(ctx context.Context, box inspect.Box, id string) (Item, error)
	// Retry makes messages due now, with their attempts forgotten; dead letters return to the queue, as new
	// in age.
	Retry(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error)
	// Drop deletes items for good.
	Drop(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error)
	// Add stores items with their counts and ages, in one transaction, except those whose id box holds
	// already; it gives the number stored. It is for moving a queue.
	Add(ctx context.Context, box inspect.Box, items []Item) (int, error)
	// Holds counts those of ids that wait in the queue.
	Holds(ctx context.Context, ids []string) (int, error)
}

// Item is one message of the queue, or one dead letter, as it is stored.
type Item struct {
	Message message.Message
	// Props is the stored text of the properties: a JSON object, or for a dead letter whatever could not be one.
	Props string
	// Event is true for a dead letter without a message; Body holds its kwargs then.
	Event           bool
	Body            []byte
	Size            int64
	Attempts, Tries int
	NextAttempt     time.Time // zero: never attempted
	Queued          time.Time // put, or made a dead letter
	Reason          string    // the last error, or why it is a dead letter
}

// Shown is the item as it is shown, without props and body. box is where it is.
func (it *Item) Shown(box inspect.Box) inspect.Item {
	m := &it.Message
	shown := inspect.Item{
		MessageID: m.ID, Address: m.Address, Commit: m.Commit, Event: m.Event, Callback: m.Callback,
		Created: m.Created, Size: it.Size, Attempts: it.Attempts, NextAttempt: it.NextAttempt, Reason: it.Reason,
	}
	if box == inspect.DeadBox {
		shown.Died = it.Queued
	}
	return shown
}

// Unsent gives the message of a dead letter for the queue; false where there is none that the queue can hold.
func (it *Item) Unsent() (Row, bool) {
	if it.Event {
		return Row{}, false
	}
	m := it.Message
	m.Body = string(it.Body)
	var err error
	if m.Props, err = message.DecodeProps([]byte(it.Props)); err != nil {
		return Row{}, false
	}
	props, reason := storable(&m)
	return Row{Message: m, PropsText: props, Bytes: int64(m.Size())}, reason == ""
}

// queued gives it as a row to add to the queue as it is.
func (it *Item) queued() (Row, bool) {
	r, ok := it.Unsent()
	r.Age, r.Attempts, r.Tries, r.LastError = age(it.Queued), it.Attempts, it.Tries, CleanText(it.Reason)
	if !it.NextAttempt.IsZero() {
		r.Aside, r.Delay = true, time.Until(it.NextAttempt)
	}
	return r, ok
}

// dead gives it as a dead letter.
func (it *Item) dead() DeadRow {
	d := DeadMessage(it.Message, []byte(it.Props), it.Attempts, it.Reason)
	d.Body, d.Died = it.Body, it.Queued
	if it.Event {
		d.Address = nil
	}
	return d
}

// SortItems gives items of box as rows to insert. What the queue cannot hold becomes a dead letter.
func SortItems(box inspect.Box, items []Item) Incoming {
	var in Incoming
	for i := range items {
		it := &items[i]
		if box == inspect.QueueBox {
			if r, ok := it.queued(); ok {
				in.Rows = append(in.Rows, r)
				in.Size += r.Bytes
				continue
			}
		}
		in.Dead = append(in.Dead, it.dead())
	}
	return in
}

// Missing gives those of ids that are not among found.
func Missing(ids, found []string) []string {
	known := make(map[string]bool, len(found))
	for _, id := range found {
		known[id] = true
	}
	var none []string
	for _, id := range ids {
		if !known[id] {
			none = append(none, id)
		}
	}
	return none
}

// PropsText gives props for people: as they are, or quoted where they are no JSON.
func PropsText(props []byte) string {
	if json.Valid(props) {
		return string(props)
	}
	return CleanText(string(props))
}

// AddTopic counts one topic in.
func AddTopic(st *inspect.Statistics, t inspect.Topic, aside int64, next time.Time) {
	st.ByTopic = append(st.ByTopic, t)
	st.Depth += t.Depth
	st.Bytes += t.Bytes
	st.SetAside += aside
	st.Oldest = Earlier(st.Oldest, t.Oldest)
	st.NextAttempt = Earlier(st.NextAttempt, next)
}

// Earlier gives the earlier of two times; the zero time is none.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// ListChunk is the number of items read at a time: a list holds no transaction open while it is written out.
const ListChunk = 500
