package queue

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"koji-relay/internal/message"
)

// incoming is what one Put stores, sorted by where it goes.
type incoming struct {
	rows []row
	dead []deadRow
	size int64
}

// row is a message ready to be stored in the queue.
type row struct {
	message.Message
	props           []byte
	size            int64
	age             time.Duration // since it was put, for expiry
	attempts, tries int
	aside           bool // set aside for delay
	delay           time.Duration
	lastError       string
}

// deadRow is a message or an event ready to be stored as a dead letter.
type deadRow struct {
	id, commit string
	event      int
	callback   string
	address    *string // nil for an event
	props      []byte
	body       []byte
	created    time.Time
	died       time.Time // zero: now
	attempts   int
	reason     string
}

// sortOut prepares one Put. What a store cannot hold becomes a dead letter here, the same for each store, so that
// it fails no neighbour.
func sortOut(unsent []message.Unsent, undeliverable []message.Undeliverable, maxAttempts int) incoming {
	var in incoming
	for _, u := range unsent {
		s, changed := settle(Entry{Message: u.Message}, u.Outcome, maxAttempts)
		if changed && s.Action == Forget {
			continue
		}
		props, reason := storable(&u.Message)
		if reason == "" && changed && s.Action == Bury {
			reason = s.Reason
		}
		if reason != "" {
			in.dead = append(in.dead, deadMessage(u.Message, props, s.Attempts, reason))
			continue
		}
		r := row{Message: u.Message, props: props, size: int64(u.Message.Size()), age: age(u.Message.Created), lastError: cleanText(s.Reason)}
		r.Commit, r.Callback = cleanText(r.Commit), cleanText(r.Callback)
		if changed {
			r.aside, r.delay, r.attempts, r.tries = true, s.Delay, s.Attempts, s.Tries
		}
		in.rows = append(in.rows, r)
		in.size += r.size
	}
	for _, u := range undeliverable {
		in.dead = append(in.dead, deadRow{id: cleanText(u.ID), commit: cleanText(u.Commit), event: u.Event,
			callback: cleanText(u.Callback), body: u.Kwargs, reason: cleanText(u.Reason), created: time.Now()})
	}
	return in
}

func deadMessage(m message.Message, props []byte, attempts int, reason string) deadRow {
	address := cleanText(m.Address)
	return deadRow{id: cleanText(m.ID), commit: cleanText(m.Commit), event: m.Event, callback: cleanText(m.Callback),
		address: &address, props: props, body: []byte(m.Body), created: m.Created, attempts: attempts, reason: cleanText(reason)}
}

// storable gives the stored text of m's properties, and the reason why m cannot be queued, if there is one.
func storable(m *message.Message) (props []byte, reason string) {
	props, err := message.EncodeProps(m.Props)
	switch {
	case err != nil:
		return fmt.Appendf(nil, "%q", m.Props), "cannot be stored: " + err.Error()
	case cleanText(m.ID) != m.ID || m.ID == "":
		return props, fmt.Sprintf("cannot be stored: message-id %q is not usable", m.ID)
	case cleanText(m.Address) != m.Address:
		return props, fmt.Sprintf("cannot be stored: address %q is not UTF-8 text", m.Address)
	case !utf8.ValidString(m.Body):
		return props, "cannot be stored: the body is not UTF-8"
	case !json.Valid([]byte(m.Body)):
		return props, "cannot be stored: the body is not JSON"
	}
	return props, ""
}

// age is how long ago m was created, by this host's clock; the store subtracts it from its own clock, so
// that a relay whose clock is wrong expires nothing too early.
func age(created time.Time) time.Duration {
	if created.IsZero() {
		return 0
	}
	return max(0, time.Since(created))
}
