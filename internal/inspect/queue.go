package inspect

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"
)

// Box is one of the two collections of a store.
type Box string

// The messages that wait, and those set aside for good.
const (
	QueueBox Box = "queue"
	DeadBox  Box = "dead"
)

// Name is the box in a sentence.
func (b Box) Name() string {
	if b == DeadBox {
		return "the dead letters"
	}
	return "the queue"
}

// Statistics describe a store at one moment.
type Statistics struct {
	Depth       int64     `json:"depth"` // messages that wait, with those set aside
	Bytes       int64     `json:"bytes"` // of message.Message.Size
	Oldest      time.Time `json:"oldest,omitzero"`
	SetAside    int64     `json:"set_aside"`             // of Depth, those that wait for their next attempt
	NextAttempt time.Time `json:"next_attempt,omitzero"` // the earliest of those set aside
	// AsideReason is the most frequent reason of those set aside, AsideFor how many have it.
	AsideReason string  `json:"set_aside_reason,omitempty"`
	AsideFor    int64   `json:"set_aside_for,omitempty"`
	ByTopic     []Topic `json:"by_topic"`

	DeadLetters         int64            `json:"dead_letters"`
	DeadLettersByReason map[string]int64 `json:"dead_letters_by_reason"` // the most frequent ones

	// Outbox counts events in the outbox, which the status shows apart. The file store has none.
	Outbox       int64     `json:"-"`
	OutboxOldest time.Time `json:"-"`
}

// Topic is the part of the queue that goes to one address.
type Topic struct {
	Address string    `json:"address"`
	Depth   int64     `json:"depth"`
	Bytes   int64     `json:"bytes"`
	Oldest  time.Time `json:"oldest,omitzero"`
}

// LargestFirst gives topics by their size, a copy.
func LargestFirst(topics []Topic) []Topic {
	return slices.SortedStableFunc(slices.Values(topics), func(a, b Topic) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Address, b.Address))
	})
}

// ListOptions narrow a list.
type ListOptions struct {
	Limit   int    `json:"limit,omitempty"`   // 0 = all
	Address string `json:"address,omitempty"` // only this one
	Newest  bool   `json:"newest,omitempty"`  // newest first
}

// Selection says which items an action is for: those named, or all, or all that Address, Reason and Before
// leave. A store looks at IDs and All alone; the daemon finds the ids for the rest.
type Selection struct {
	IDs     []string  `json:"ids,omitempty"`
	All     bool      `json:"all,omitempty"`
	Address string    `json:"address,omitempty"` // of this topic
	Reason  string    `json:"reason,omitempty"`  // with this in their reason, whatever its case
	Before  time.Time `json:"before,omitzero"`   // created before, or of dead letters: died before
	DryRun  bool      `json:"dry_run,omitempty"` // count, and change nothing
}

// Clear reports whether the selection can be meant in one way only.
func (s Selection) Clear() bool {
	ways := 0
	for _, given := range []bool{len(s.IDs) > 0, s.All, s.Filtered()} {
		if given {
			ways++
		}
	}
	return ways == 1
}

// Filtered reports whether items are selected by conditions.
func (s Selection) Filtered() bool { return s.Address != "" || s.Reason != "" || !s.Before.IsZero() }

// Changed counts what an action did.
type Changed struct {
	Count int `json:"count"`
	// Missing are the ids for which nothing was done: not there, or a dead event for which there is no message.
	Missing []string `json:"missing,omitempty"`
}

// Imported counts the lines of an import.
type Imported struct {
	Stored  int `json:"stored"`
	Present int `json:"present"` // were there already
}

// Item is one message of the queue, or one dead letter.
type Item struct {
	MessageID   string    `json:"message_id"`
	Address     string    `json:"address,omitempty"` // empty: an event for which no message could be formed
	Commit      string    `json:"commit,omitempty"`
	Event       int       `json:"event"`
	Callback    string    `json:"callback,omitempty"`
	Created     time.Time `json:"created,omitzero"`
	Size        int64     `json:"size,omitempty"`
	Attempts    int       `json:"attempts"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Died        time.Time `json:"died,omitzero"`    // of a dead letter
	Reason      string    `json:"reason,omitempty"` // the last error, or why it is a dead letter

	// Props and Body are given by Show only. Props is a JSON object, or any other valid JSON where the stored
	// text is none. Body is of an event its kwargs; what is not UTF-8 is replaced (Export keeps the bytes).
	Props json.RawMessage `json:"props,omitempty"`
	Body  string          `json:"body,omitempty"`
}
