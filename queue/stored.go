package queue

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"koji-relay/internal/message"
)

// Incoming is what one Put stores, sorted by where it goes.
type Incoming struct {
	Rows []Row
	Dead []DeadRow
	Size int64
}

// Stored is what has happened once in is stored.
func (in *Incoming) Stored() Stored {
	s := Stored{Queued: len(in.Rows)}
	if len(in.Dead) > 0 {
		s.Dead = make(map[string]string, len(in.Dead))
	}
	for i := range in.Dead {
		s.Dead[in.Dead[i].ID] = in.Dead[i].Reason
	}
	return s
}

// Row is a message ready to be stored in the queue.
type Row struct {
	message.Message
	PropsText       []byte
	Bytes           int64
	Age             time.Duration // since it was put, for expiry
	Attempts, Tries int
	Aside           bool // set aside for delay
	Delay           time.Duration
	LastError       string
}

// DeadRow is a message or an event ready to be stored as a dead letter.
type DeadRow struct {
	ID, Commit string
	Event      int
	Callback   string
	Address    *string // nil for an event
	Props      []byte
	Body       []byte
	Created    time.Time
	Died       time.Time // zero: now
	Attempts   int
	Reason     string
}

// SortOut prepares one Put. What a store cannot hold becomes a dead letter here, the same for each store, so
// that it fails no neighbour.
func SortOut(unsent []message.Unsent, undeliverable []message.Undeliverable, maxAttempts int) Incoming {
	var in Incoming
	for _, u := range unsent {
		s, changed := Decide(Entry{Message: u.Message}, u.Outcome, maxAttempts)
		if changed && s.Action == Forget {
			continue
		}
		props, reason := storable(&u.Message)
		if reason == "" && changed && s.Action == Bury {
			reason = s.Reason
		}
		if reason != "" {
			in.Dead = append(in.Dead, DeadMessage(u.Message, props, s.Attempts, reason))
			continue
		}
		r := Row{Message: u.Message, PropsText: props, Bytes: int64(u.Message.Size()), Age: age(u.Message.Created),
			LastError: CleanText(s.Reason)}
		r.Commit, r.Callback = CleanText(r.Commit), CleanText(r.Callback)
		if changed {
			r.Aside, r.Delay, r.Attempts, r.Tries = true, s.Delay, s.Attempts, s.Tries
		}
		in.Rows = append(in.Rows, r)
		in.Size += r.Bytes
	}
	for _, u := range undeliverable {
		in.Dead = append(in.Dead, DeadRow{ID: CleanText(u.ID), Commit: CleanText(u.Commit), Event: u.Event,
			Callback: CleanText(u.Callback), Body: u.Kwargs, Reason: CleanText(u.Reason), Created: time.Now()})
	}
	return in
}

// DeadMessage gives m as a dead letter.
func DeadMessage(m message.Message, props []byte, attempts int, reason string) DeadRow {
	address := CleanText(m.Address)
	return DeadRow{ID: CleanText(m.ID), Commit: CleanText(m.Commit), Event: m.Event,
		Callback: CleanText(m.Callback), Address: &address, Props: props, Body: []byte(m.Body), Created: m.Created,
		Attempts: attempts, Reason: CleanText(reason)}
}

// storable gives the stored text of m's properties, and the reason why m cannot be queued, if there is one.
func storable(m *message.Message) (props []byte, reason string) {
	props, err := message.EncodeProps(m.Props)
	switch {
	case err != nil:
		return fmt.Appendf(nil, "%q", m.Props), "cannot be stored: " + err.Error()
	case CleanText(m.ID) != m.ID || m.ID == "":
		return props, fmt.Sprintf("cannot be stored: message-id %q is not usable", m.ID)
	case CleanText(m.Address) != m.Address:
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

// CleanText makes text acceptable to the type text: a broker's words may hold anything.
func CleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
