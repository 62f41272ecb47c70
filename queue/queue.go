// Package queue keeps messages that no broker accepted yet, until one does.
//
// It promises: Put returns nil only when everything it was given is on disk (synchronous commit, or fsync); a
// message leaves the queue only after a broker accepted it, the administrator dropped it, or it grew older
// than max_age; bodies come back to the byte, and a message keeps its message-id; what cannot be stored or
// sent becomes a dead letter with its reason and holds up nothing.
//
// It never: sends (the drain is given a sender), deletes before an outcome is known, changes Koji's own
// tables beyond inserting and deleting rows of proton_queue, or logs bodies or passwords.
//
// This package is the contract, the policy of attempts, the stored form, and export and import. Two stores
// keep the contract: queue/postgres, on Koji's table proton_queue beside our schema koji_relay, and
// queue/file, on one file of its own. queue/storetest is the contract as tests, queue/drain sends what a
// store holds.
package queue

import (
	"context"
	"errors"
	"time"

	"koji-relay/internal/message"
)

// Store is where messages wait. Implementations are safe for concurrent use. Every call blocks for I/O until
// its context ends, and no longer.
type Store interface {
	// Put stores unsent messages according to their outcomes, and undeliverable events as dead letters, in
	// one transaction: all or nothing. It is idempotent on message-id: what is queued already stays as it is.
	// After an error nothing is stored, except that a deadline or a broken connection leaves it open what
	// was; putting again is safe. A message that the store cannot hold (not JSON, not UTF-8) becomes a dead
	// letter instead of failing its neighbours, and so does one whose outcome says so: Stored tells. Above
	// the store's MaxBytes the error is ErrFull.
	Put(ctx context.Context, unsent []message.Unsent, undeliverable []message.Undeliverable) (Stored, error)

	// Probe returns nil when a Put would find what it needs: it writes, to disk, and leaves nothing behind.
	// So it notices a server that is read-only and a disk that is full. It costs as much as a Put.
	Probe(ctx context.Context) error

	// BeginDrain starts a run over the queue that no other process of the fleet, and no protonmsg, makes at
	// the same time; ErrBusy when another does. The caller must End it.
	BeginDrain(ctx context.Context) (Pass, error)

	// Settle records outcomes, in one transaction. Settlements of unknown ids are ignored, so that
	// settling twice is safe.
	Settle(ctx context.Context, settlements []Settlement) error

	// Renew makes up to limit messages of an address due now that were set aside for its sake, the next ones
	// first: it takes messages again. It gives their number. What was rejected for itself keeps its time, and
	// its attempts; the others' attempts are forgotten. An empty address stands for each, with limit messages
	// of each. It takes time that grows with what is set aside.
	Renew(ctx context.Context, address string, limit int) (int, error)

	// Backlog says what new messages would overtake. It is cheap enough to be asked before every publish.
	Backlog(ctx context.Context) (Backlog, error)

	// Close releases the store after running calls ended.
	Close() error
}

// Stored is what one Put did.
type Stored struct {
	Queued int // messages that are in the queue now, also those that were there before
	// Dead has the reason for each message and event that is a dead letter now, by its message-id.
	Dead map[string]string
}

// Pass is one exclusive run over the queue. It is not safe for concurrent use, except for Held.
type Pass interface {
	// Next gives the oldest messages not given before in this pass, without those that are set aside until
	// later, within limits but at least one; an empty slice at the end. It costs the same however many
	// messages are queued or set aside.
	Next(ctx context.Context, limits BatchLimits) ([]Entry, error)

	// Held reports whether the run is still exclusive. Nothing may be sent when it is not.
	Held() bool

	// Expire discards messages that were queued more than maxAge ago (or makes them dead letters) and dead
	// letters older than deadMaxAge; zero means no limit. It works in short transactions and gives
	// the number of discarded messages by address, also along with an error.
	Expire(ctx context.Context, e Expiry) (Expired, error)

	// End gives up exclusiveness. complete says that every entry that Next gave was dealt with; else the
	// next pass begins where this one began. End bounds itself, and may be called once.
	End(complete bool)
}

// BatchLimits bounds one batch.
type BatchLimits struct {
	Messages int
	Bytes    int // of message.Message.Size
}

// Entry is one queued message as the drain gets it.
type Entry struct {
	Message message.Message
	// Attempts counts outcomes that looked permanent, Tries all that set the message aside.
	Attempts, Tries int
	// Unreadable is set where the stored row is no message; it says why. Only the id is usable then.
	Unreadable string
}

// Action is what Settle does with a message.
type Action int

const (
	Keep     Action = iota // leave it as it is, for the next pass. Nothing is to be settled.
	Forget                 // delete it: accepted, or dropped on purpose
	SetAside               // keep it, not to be tried before a delay has passed
	Bury                   // make it a dead letter
)

// Settlement is one recorded outcome.
type Settlement struct {
	ID              string
	Action          Action
	Attempts, Tries int           // new values, for SetAside and Bury
	Delay           time.Duration // for SetAside
	Reason          string        // for SetAside and Bury
}

// Backlog says where messages wait that were never attempted. Messages set aside after an attempt do not
// count.
type Backlog struct {
	Queue  bool // messages in the queue
	Outbox bool // events in the outbox
}

// Any reports whether there is a backlog at all.
func (b Backlog) Any() bool { return b.Queue || b.Outbox }

// Expiry is what ages out.
type Expiry struct {
	MaxAge     time.Duration // of a queued message; 0 keeps
	ToDead     bool          // expired messages become dead letters instead of being discarded
	DeadMaxAge time.Duration // of a dead letter; 0 keeps
	// Each, where it is set, is called for each message that was taken out of the queue. It must not block.
	Each func(id string, created time.Time)
}

// Expired counts what aged out.
type Expired struct {
	Messages map[string]int // by address
	Dead     int            // dead letters
}

var (
	// ErrFull is returned by Put when the store's MaxBytes would be exceeded.
	ErrFull = errors.New("the queue is full")
	// ErrBusy is returned by BeginDrain while another process drains.
	ErrBusy = errors.New("another process drains the queue")
	// ErrLockLost is returned by a pass that is not exclusive any more.
	ErrLockLost = errors.New("the drain lock was lost")
	// ErrNotFound is returned for a message-id that the queue does not hold.
	ErrNotFound = errors.New("not in the queue")
	// ErrSchema is returned when the schema koji_relay is absent or of another version.
	ErrSchema = errors.New("schema koji_relay is not ready")
	// ErrInUse is returned by OpenFile when another process holds the file.
	ErrInUse = errors.New("the queue file is in use by another process")
)

// ExpiryChunk bounds one transaction of expiry.
const ExpiryChunk = 500
