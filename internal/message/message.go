// Package message holds the types that every stage shares: what the hub hands over (Commit, Event), what
// goes on the bus (Message), and what became of it (Outcome, Receipt). It does no I/O and imports the
// standard library only.
package message

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"
)

// MaxEvents is how many events one request of the hub API may hold. It bounds what one request can cost: the
// hub plugin posts far fewer, and a larger commit comes in several requests.
const MaxEvents = 100_000

// ErrTooManyEvents is the error for a request with more than MaxEvents.
var ErrTooManyEvents = errors.New("more than " + strconv.Itoa(MaxEvents) + " events")

// Commit is all events of one hub transaction, in order: the unit of hand-over. A commit too large for
// one request arrives as several Commits with the same ID and other event numbers.
type Commit struct {
	ID     string // a UUID in its canonical form
	Events []Event
	// Fallback is why the hub could not hand the commit over by the socket; empty where it did, or did not try.
	Fallback string
}

// Event is one hub callback.
type Event struct {
	Number   int    // position in the hub's transaction, from 0
	Callback string // Koji's name, such as "postTag"
	// Kwargs is the JSON text of the keyword arguments, byte for byte as it came.
	Kwargs json.RawMessage
}

// Message is one AMQP message before a broker's dialect is applied to it. It is not modified once made.
type Message struct {
	ID       string // message-id, the same through every resend
	Commit   string // for the log; empty for rows that protonmsg wrote
	Event    int
	Callback string
	Address  string // topic without prefix, such as "build.tag"
	Props    []Prop
	Body     string    // JSON text
	Created  time.Time // when the relay first saw it; AMQP creation-time
}

// Prop is one application-property. Value is a string, int64, float64, bool or nil; any other JSON value (an
// integer over 63 bits, a string with a lone surrogate, an object) has no AMQP form and is kept as its
// json.RawMessage text: such a message cannot be encoded, but can still be stored and shown.
type Prop struct {
	Key   string
	Value any
}

// News reports whether m announces a pre event. News is never queued for lack of a binding.
func (m *Message) News() bool { return strings.HasPrefix(m.Address, "pre.") }

// Size is what m counts towards limits given in bytes: the body, the properties and a fixed overhead.
func (m *Message) Size() int {
	const overhead = 256 // struct, ids and the sections around the body
	n := overhead + len(m.Address) + len(m.Body)
	for _, p := range m.Props {
		n += len(p.Key) + 16
		switch v := p.Value.(type) {
		case string:
			n += len(v)
		case json.RawMessage:
			n += len(v)
		}
	}
	return n
}

// Keys are those of the properties, in their order.
func (m *Message) Keys() []string {
	keys := make([]string, len(m.Props))
	for i, p := range m.Props {
		keys[i] = p.Key
	}
	return keys
}
