package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// record is one line of an export. Bodies and properties are kept to the byte: as a string where they are
// UTF-8, else in base64.
type record struct {
	Kind        string    `json:"kind"` // "message", "dead_message" or "dead_event"
	MessageID   string    `json:"message_id"`
	Commit      string    `json:"commit,omitempty"`
	Event       int       `json:"event"`
	Callback    string    `json:"callback,omitempty"`
	Address     string    `json:"address,omitempty"`
	Props       string    `json:"props,omitempty"`
	Body        *string   `json:"body,omitempty"`
	BodyBase64  []byte    `json:"body_base64,omitempty"`
	Created     time.Time `json:"created,omitzero"`
	Queued      time.Time `json:"queued,omitzero"`
	Attempts    int       `json:"attempts,omitempty"`
	Tries       int       `json:"tries,omitempty"`
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Reason      string    `json:"reason,omitempty"`
}

// Export writes the queue and then the dead letters of s as JSON Lines, in their order. It changes nothing;
// what is put or drained meanwhile may be in it or not, so pause the drain first.
func Export(ctx context.Context, s Inspector, w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, box := range []inspect.Box{inspect.QueueBox, inspect.DeadBox} {
		err := s.List(ctx, box, inspect.ListOptions{}, func(listed Item) error {
			it, err := s.Show(ctx, box, listed.Message.ID)
			if errors.Is(err, ErrNotFound) {
				return nil // Drained meanwhile
			}
			if err != nil {
				return err
			}
			return enc.Encode(recordOf(box, it))
		})
		if err != nil {
			return fmt.Errorf("export %s: %w", box.Name(), err)
		}
	}
	return nil
}

func recordOf(box inspect.Box, it Item) record {
	m := &it.Message
	r := record{Kind: "message", MessageID: m.ID, Commit: m.Commit, Event: m.Event, Callback: m.Callback,
		Address: m.Address, Props: it.Props, Created: m.Created, Queued: it.Queued, Attempts: it.Attempts,
		Tries: it.Tries, NextAttempt: it.NextAttempt, Reason: it.Reason}
	switch {
	case box == inspect.DeadBox && it.Event:
		r.Kind = "dead_event"
	case box == inspect.DeadBox:
		r.Kind = "dead_message"
	}
	if utf8.Valid(it.Body) {
		body := string(it.Body)
		r.Body = &body
	} else {
		r.BodyBase64 = it.Body
	}
	return r
}

func (r record) item() (box inspect.Box, it Item, err error) {
	switch r.Kind {
	case "message":
		box = inspect.QueueBox
	case "dead_message", "dead_event":
		box = inspect.DeadBox
	default:
		return box, it, fmt.Errorf("unknown kind %q", r.Kind)
	}
	if r.MessageID == "" {
		return box, it, errors.New("message_id is missing")
	}
	it = Item{Props: r.Props, Event: r.Kind == "dead_event", Body: r.BodyBase64, Attempts: r.Attempts,
		Tries: r.Tries, NextAttempt: r.NextAttempt, Queued: r.Queued, Reason: r.Reason}
	it.Message = message.Message{ID: r.MessageID, Commit: r.Commit, Event: r.Event, Callback: r.Callback,
		Address: r.Address, Created: r.Created}
	if r.Body != nil {
		it.Body = []byte(*r.Body)
	}
	return box, it, nil
}

// Import reads what Export wrote into s, keeping ids, ages and counts. After an error the lines before the
// one it names may have been stored; importing again stores the rest.
func Import(ctx context.Context, s Inspector, r io.Reader) (inspect.Imported, error) {
	var done inspect.Imported
	dec := json.NewDecoder(r)
	var items []Item
	var box inspect.Box
	size, line := 0, 0
	flush := func() error {
		if len(items) == 0 {
			return nil
		}
		n, err := s.Add(ctx, box, items)
		done.Stored += n
		if err == nil {
			done.Present += len(items) - n
		}
		items, size = nil, 0
		return err
	}
	for {
		line++
		var rec record
		err := dec.Decode(&rec)
		if err == io.EOF {
			return done, flush()
		}
		var its inspect.Box
		var it Item
		if err == nil {
			its, it, err = rec.item()
		}
		if err != nil {
			return done, errors.Join(fmt.Errorf("read line %d of the import: %w", line, err), flush())
		}
		if its != box || len(items) == ListChunk || size > 8<<20 {
			if err := flush(); err != nil {
				return done, fmt.Errorf("import up to line %d: %w", line-1, err)
			}
		}
		box = its
		items = append(items, it)
		size += len(it.Body)
	}
}
