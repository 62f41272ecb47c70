// Package history keeps what became of every message, for days, so that it can be looked up and sent again.
//
// It promises: recording never waits for the store; what is recorded is never changed; what could not be
// recorded is recorded as a gap, with its times and the number of messages. Days go whole, the oldest
// first.
//
// It never: decides what becomes of a message, or logs bodies.
//
// Two stores keep one contract, which is the suite in history/storetest: history/postgres in schema
// koji_relay, and history/file in a directory with one file for each day.
package history

import (
	"context"
	"errors"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// Store is where the history is kept. Implementations are safe for concurrent use. Every call blocks for
// I/O until its context ends, and no longer.
type Store interface {
	// Append stores a batch, all of it or nothing, and notes that its writer was alive. After an error it
	// may be stored all the same; appending it again then shows what happened twice, but changes no fate.
	Append(ctx context.Context, b *Batch) error

	// Find gives messages that q may mean, in its order, after the one named (the zero Ref: from the
	// beginning), at most n. It may give too many, but leaves none out; fewer than n are the last.
	Find(ctx context.Context, q *Query, after Ref, n int) ([]Ref, error)

	// Load gives what is stored of messages: first all rows, then all steps, each oldest first.
	Load(ctx context.Context, ids []string, content bool) ([]Row, []Step, error)

	// Words gives the tags or addresses in the history for which match returns true.
	Words(ctx context.Context, k Kind, match func(string) bool) ([]string, error)

	// Gaps gives those that touch the time from since until until, oldest first.
	Gaps(ctx context.Context, since, until time.Time) ([]inspect.Gap, error)

	// Begin notes that a writer begins, and gives the time when it was last known to be alive, if it did
	// not End.
	Begin(ctx context.Context, writer string) (alive time.Time, err error)
	// End notes that a writer has recorded all that it knew.
	End(ctx context.Context, writer string) error

	// Tidy drops days: those over since keep, and then the oldest until all take no more than maxBytes.
	// Today stays.
	Tidy(ctx context.Context, keep time.Duration, maxBytes int64) (Usage, error)

	ReplayStore

	// Close releases the store after running calls ended.
	Close() error
}

// ReplayStore keeps replays, so that they outlive relays and commands.
type ReplayStore interface {
	// AddReplay stores a replay under a new ID, which it sets, with the messages of a file. It runs from
	// then on.
	AddReplay(ctx context.Context, r *inspect.Replay, lines []Row) error
	// Replays gives those there are, oldest first. One that has ended has no password in its URL any more, and
	// no messages of a file. One that is damaged is unreadable; it can be cancelled.
	Replays(ctx context.Context) ([]inspect.Replay, error)
	// ClaimReplays gives all replays that run and that no other writer has, oldest first. They are this
	// writer's until lease is over, and longer when it claims again.
	ClaimReplays(ctx context.Context, writer string, lease time.Duration) ([]inspect.Replay, error)
	// SaveReplay stores how far a replay is. It is false, and changes nothing, where the replay has ended or is
	// another writer's.
	SaveReplay(ctx context.Context, r *inspect.Replay, writer string) (bool, error)
	// CancelReplay ends a replay; false where it does not run.
	CancelReplay(ctx context.Context, id int64) (bool, error)
	// Lines gives up to n messages of a file, those behind the line after, and the number of the last of them.
	// One that is damaged is an empty Row.
	Lines(ctx context.Context, replay int64, after, n int) (rows []Row, last int, err error)
}

// Usage is what the history takes.
type Usage struct {
	Days    int
	Bytes   int64
	Oldest  time.Time // the beginning of the oldest day; zero without any
	Dropped []string  // days that Tidy has dropped, as 2026-11-26
}

// Batch is what is written together.
type Batch struct {
	Writer string
	Rows   []Row
	Steps  []Step
	Gaps   []inspect.Gap
}

// Row is what is known of a message when the hub has handed it over, or a message of the queue that was not
// known.
type Row struct {
	Handed   time.Time // in microseconds, as a database keeps it
	ID       string    // message-id, a UUID
	Commit   string    // a UUID, or empty
	Event    int
	Callback string
	Address  string
	Via      string
	Keys     Keys
	Size     int    // of the body
	Content  []byte // properties and body, packed; nil for an event that made no message
	First    inspect.Step
}

// Step is one thing that happened to a message later.
type Step struct {
	inspect.Step
	ID     string
	Handed time.Time // as in its row; zero where that is not known: the store looks it up
	// Message, where it is set, becomes a Row if the store has none of this ID: it may never have been
	// handed over.
	Message *message.Message
}

// Ref names a message and its place in the order.
type Ref struct {
	Handed time.Time
	ID     string
}

// Kind says which words are meant.
type Kind string

const (
	Tags      Kind = "tag"
	Addresses Kind = "address"
)

var (
	// ErrOff is returned where there is no history.
	ErrOff = errors.New("no history is kept: [history] keep = 0, " +
		"or [queue] enabled = off and no store = file in [history]")
	// ErrQuery is a question that means nothing.
	ErrQuery = errors.New("the history cannot be asked this")
	// ErrNotFound is returned for a message-id that the history does not hold.
	ErrNotFound = errors.New("not in the history")
	// ErrInUse is returned for a directory that another process has open.
	ErrInUse = errors.New("the history's directory is in use by another process")
	// ErrFull is returned by Append while today alone takes more than max_bytes.
	ErrFull = errors.New("the history is full: one day takes more than [history] max_bytes")
)
