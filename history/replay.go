package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
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

// FromJSON gives the message that a line of `koji-relay history --json` tells of.
func FromJSON(line []byte) (Row, error) {
	var m inspect.HistoryMessage
	if !utf8.Valid(line) {
		return Row{}, errors.New("it is not UTF-8")
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return Row{}, err
	}
	if err := uuid.Validate(m.MessageID); err != nil {
		return Row{}, fmt.Errorf("message_id %q is not a UUID", m.MessageID)
	}
	if m.Address == "" || m.Body == "" {
		return Row{}, nil // an event that made no message
	}
	if m.Event < 0 {
		return Row{}, fmt.Errorf("event %d: the events of a commit are numbered from 0", m.Event)
	}
	props, err := message.DecodeProps(m.Props)
	if err != nil {
		return Row{}, err
	}
	sent := message.Message{ID: m.MessageID, Commit: m.Commit, Event: m.Event, Callback: m.Callback,
		Address: m.Address,
		Props:   props, Body: m.Body, Created: m.Time}
	row, err := NewRow(&sent, m.Via, inspect.Step{Time: m.Time, Kind: m.Fate})
	if err != nil {
		return Row{}, err
	}
	return row, nil
}
