package inspect

import "time"

// Reader is a relay that takes events from the outbox; all relays of one name are one reader.
type Reader struct {
	Name   string    `json:"name"`   // empty: the relays without a name
	Seen   time.Time `json:"seen"`   // when one of them last said that it is there; they do so every minute
	Depth  int64     `json:"events"` // in the outbox, and not taken by this reader
	Oldest time.Time `json:"oldest,omitzero"`
	Holder Holder    `json:"read_by,omitzero"` // the session that reads; zero without one
	Away   bool      `json:"away"`             // it has said nothing for AwayAfter, by the database's clock
}

// Unnamed is how the reader without a name is shown.
const Unnamed = "(no name)"

// Shown is the name for a person.
func (r Reader) Shown() string {
	if r.Name == "" {
		return Unnamed
	}
	return r.Name
}

// Argument is the name for 'koji-relay outbox forget'.
func (r Reader) Argument() string {
	if r.Name == "" {
		return "--unnamed"
	}
	return r.Name
}

// AwayAfter is how long a reader may say nothing before it counts as away. A relay that is frozen still holds
// its session, so that the session alone says nothing.
const AwayAfter = 3 * time.Minute
