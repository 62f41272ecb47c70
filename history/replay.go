package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// replayBatch is what stands behind the cursor of a replay.
type replayBatch struct {
	messages []message.Message
	damaged  int // what should be a message, and cannot be read
	cursor   inspect.Ref
	last     bool // there are no more
}

// next gives what is behind the cursor of p. Events that made no message are passed over.
func next(ctx context.Context, s Store, p *inspect.Replay, n int) (b replayBatch, err error) {
	b.cursor = p.Cursor
	var rows []Row
	if p.File {
		var line int
		if rows, line, err = s.Lines(ctx, p.ID, b.cursor.Line, n); len(rows) > 0 {
			b.cursor.Line = line
		}
		b.last = len(rows) == 0
	} else {
		var refs []Ref
		rows, refs, err = page(ctx, s, p.Query, Ref{Handed: b.cursor.Handed, ID: b.cursor.ID}, n)
		if b.last = len(refs) == 0; !b.last {
			end := refs[len(refs)-1]
			b.cursor = inspect.Ref{Handed: end.Handed, ID: end.ID}
		}
	}
	for i := range rows {
		if m, ok := again(&rows[i]); ok {
			b.messages = append(b.messages, m)
		} else if p.File || rows[i].Address != "" && rows[i].First.Kind != inspect.Skipped {
			b.damaged++
		}
	}
	return b, err
}

// ReadReplay gives a replay as it is stored. One that cannot be read says so, and how to be rid of it.
func ReadReplay(id int64, text []byte) (r inspect.Replay) {
	err := json.Unmarshal(text, &r)
	states := []inspect.ReplayState{inspect.ReplayRuns, inspect.ReplayDone, inspect.ReplayCancelled}
	if err == nil && !slices.Contains(states, r.State) {
		err = fmt.Errorf("its state is %q", r.State)
	}
	if err != nil {
		r = inspect.Replay{State: inspect.ReplayUnreadable,
			Error: fmt.Sprintf("its record is damaged: %v; end it with 'koji-relay replay cancel %d'", err, id)}
	}
	r.ID = id // the text was made before it had one
	return r
}

// page gives the rows of one page of a search, oldest first, and the places that it looked at.
func page(ctx context.Context, s Store, q inspect.HistoryQuery, after Ref, n int) ([]Row, []Ref, error) {
	q.OldestFirst, q.Content = true, true
	p, err := prepare(ctx, s, q)
	if err != nil || p.none {
		return nil, nil, err
	}
	refs, err := s.Find(ctx, p, after, n)
	if err != nil {
		return nil, nil, err
	}
	messages, err := load(ctx, s, p, refs)
	var rows []Row
	for _, m := range messages {
		row := m.row()
		row.First.Kind = m.Fate // as it is now
		rows = append(rows, row)
	}
	return rows, refs, err
}

// row gives a message as it was recorded.
func (m *told) row() Row {
	return Row{Handed: m.Time, ID: m.MessageID, Commit: m.Commit, Event: m.Event, Callback: m.Callback,
		Address: m.Address,
		Content: m.content}
}

// again gives the message of a row as it was sent: the same id, bytes and creation-time. It is false for an
// event.
func again(r *Row) (message.Message, bool) {
	if r.Content == nil || r.Address == "" {
		return message.Message{}, false
	}
	props, body, err := Unpack(r.Content)
	if err != nil {
		return message.Message{}, false
	}
	m := message.Message{ID: r.ID, Commit: r.Commit, Event: r.Event, Callback: r.Callback, Address: r.Address,
		Body: string(body), Created: r.Handed}
	m.Props, err = message.DecodeProps(props)
	return m, err == nil
}

// MaskURL hides the password of a URL.
func MaskURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(unreadable)" // it is never printed as it is
	}
	return u.Redacted()
}

// PlanReplay counts what a replay of q would send.
func PlanReplay(ctx context.Context, s Store, q inspect.HistoryQuery) (inspect.Plan, error) {
	plan := inspect.Plan{Topics: map[string]int{}}
	q.OldestFirst = true
	err := Search(ctx, s, q, func(m *inspect.HistoryMessage) error {
		if m.Fate != inspect.Skipped && m.Address != "" {
			plan.Messages++
			plan.Bytes += int64(m.Size)
			plan.Topics[m.Address]++
		}
		return nil
	})
	return plan, err
}

// FromJSON gives the message that a line of `koji-relay history --json` tells of; an empty Row for an event
// that made no message.
func FromJSON(line []byte) (Row, error) {
	var m inspect.HistoryMessage
	if !utf8.Valid(line) {
		return Row{}, errors.New("it is not UTF-8")
	}
	err := json.Unmarshal(line, &m)
	if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
		return Row{}, fmt.Errorf("%s: unexpected %s", wrong.Field, wrong.Value)
	}
	if err != nil {
		return Row{}, err
	}
	if id, err := uuid.Parse(m.MessageID); err != nil || id.String() != m.MessageID {
		return Row{}, fmt.Errorf("message_id %q is not a UUID in lower case with dashes", m.MessageID)
	}
	if m.Address == "" || m.Fate == inspect.Skipped {
		return Row{}, nil
	}
	if err := checkLine(&m); err != nil {
		return Row{}, err
	}
	props, err := message.DecodeProps(m.Props)
	if err != nil {
		return Row{}, err
	}
	sent := message.Message{ID: m.MessageID, Commit: m.Commit, Event: m.Event, Callback: m.Callback,
		Address: m.Address,
		Props:   props, Body: m.Body, Created: m.Time}
	row, err := NewRow(&sent, "", inspect.Step{})
	if err != nil {
		return Row{}, err
	}
	row.Keys = Keys{} // it is sent, and not searched
	return row, nil
}

// checkLine refuses what no history gives, with what to do.
func checkLine(m *inspect.HistoryMessage) error {
	switch {
	case m.Unreadable != "":
		return fmt.Errorf("unreadable %q: it cannot be sent; take the line out", m.Unreadable)
	case m.Body == "":
		return errors.New("it has no body and cannot be sent; take the line out")
	case !json.Valid([]byte(m.Body)):
		return errors.New("its body is not JSON; take the line out, or put the body right")
	case m.Size < 0 || m.Size > 0 && m.Size != len(m.Body):
		return fmt.Errorf("size %d, and its body has %d bytes: one was changed; "+
			"where the body is right leave size out", m.Size, len(m.Body))
	case m.Event < 0 || m.Event > math.MaxInt32:
		return fmt.Errorf("event %d: the events of a commit are numbered from 0", m.Event)
	case m.Time.Before(time.Unix(0, 0)):
		return fmt.Errorf("time %s: write when it was handed over, 1970 or later", m.Time.Format(time.RFC3339))
	case m.Time.After(time.Now().Add(24 * time.Hour)):
		return fmt.Errorf("time %s has not come yet; write when it was handed over", m.Time.Format(time.RFC3339))
	case strings.ContainsRune(m.Address+m.Callback, 0):
		return errors.New("address or callback has the character U+0000; take the line out")
	}
	return nil
}
