package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"unicode/utf8"

	"github.com/google/uuid"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// next gives messages behind the cursor of p; last says that there are no more. Events that made no
// message, and what cannot be a message, are passed over.
func next(ctx context.Context, s Store, p *inspect.Replay, n int) (messages []message.Message,
	cursor inspect.Ref, last bool, err error) {
	cursor = p.Cursor
	if p.File {
		lines, err := s.Lines(ctx, p.ID, cursor.Line, n)
		for i := range lines {
			if m, ok := again(&lines[i]); ok {
				messages = append(messages, m)
			}
			cursor.Line++
		}
		return messages, cursor, len(lines) == 0, err
	}
	rows, refs, err := page(ctx, s, p.Query, Ref{Handed: cursor.Handed, ID: cursor.ID}, n)
	for i := range rows {
		if m, ok := again(&rows[i]); ok {
			messages = append(messages, m)
		}
	}
	if len(refs) > 0 {
		end := refs[len(refs)-1]
		cursor = inspect.Ref{Handed: end.Handed, ID: end.ID}
	}
	return messages, cursor, len(refs) == 0, err
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
		rows = append(rows, m.row())
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
