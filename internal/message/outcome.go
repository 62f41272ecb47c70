package message

import "strings"

// State answers "did the broker take it?". Only Accepted may be forgotten.
type State int

// The first two and the last are ours; the others are the broker's delivery states
// (AMQP 1.0 messaging, section 3.4).
const (
	NotSent State = iota // no broker was given the message
	Unknown              // given to a broker that has not answered
	Accepted
	Rejected
	Released
	Modified
)

// String gives the word used in logs, metrics and the queue's last error.
func (s State) String() string {
	switch s {
	case NotSent:
		return "not sent"
	case Unknown:
		return "unknown"
	case Accepted:
		return "accepted"
	case Rejected:
		return "rejected"
	case Released:
		return "released"
	case Modified:
		return "modified"
	}
	return "invalid"
}

// Next says what happens to a message after an attempt.
type Next int

const (
	// Wait: no broker could take it, through no fault of the message. It keeps its place in the queue and
	// no attempt is counted. The zero value, so that a forgotten outcome loses nothing.
	Wait Next = iota
	// Done: accepted, or dropped as the administrator configured. It may be forgotten.
	Done
	// Later: this message was turned away for a passing reason (released, modified, queue full). It is
	// set aside, tried again with backoff until max_age, and holds up nothing.
	Later
	// Count: like Later, but the reason looks permanent: a dead letter after max_attempts.
	Count
	// Dead: a dead letter at once (too large for every broker).
	Dead
)

// String gives the word used in logs.
func (n Next) String() string {
	switch n {
	case Wait:
		return "wait"
	case Done:
		return "done"
	case Later:
		return "later"
	case Count:
		return "count"
	case Dead:
		return "dead"
	}
	return "invalid"
}

// Outcome is what became of one message in one round of sending.
type Outcome struct {
	State  State
	Next   Next
	Broker string // which broker answered, as host:port; empty when none was asked
	Reason string // for a person: the condition and description of the broker, or our own; no secret, no body
	// Failure is why it failed, where that says more than State; else empty. Failed gives either.
	Failure Failure
}

// Unsent is a message that was not Done, with the outcome that the queue stores beside it.
type Unsent struct {
	Message Message
	Outcome Outcome
}

// Undeliverable is an event for which no message can be formed; it becomes a dead letter with its raw text.
type Undeliverable struct {
	ID       string // the message-id it would have had
	Commit   string
	Event    int
	Callback string
	Kwargs   []byte // as it came; may be invalid UTF-8 or invalid JSON
	Reason   string
}

// Skipped is an event that makes no message. Message has no body, and of the properties what could be read.
type Skipped struct {
	Message Message
	Reason  string
}

// Receipt is the account of one handed-over commit. Sent+Queued+Skipped+Dead+len(NotTaken) is the number of
// its events.
type Receipt struct {
	Sent    int // accepted by a broker, or dropped on purpose
	Queued  int // committed in the queue
	Skipped int // events that make no message
	Dead    int // set aside as dead letters
	// NotTaken are the numbers of the events that were neither sent nor stored, ascending; Reason says why.
	NotTaken []int
	Reason   string
}

// AddressRefused begins the Reason of an outcome by which a broker refuses the address, whatever the message.
const AddressRefused = "address refused: "

// Why is Reason without the word of State, for texts that have it already.
func (o Outcome) Why() string {
	return strings.TrimLeft(strings.TrimPrefix(o.Reason, o.State.String()), ": ")
}
