package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Sink is where a replay sends to: the queue, or brokers that the configuration does not name.
type Sink interface {
	// Send takes messages. done counts those taken, refused those that will never be. What is neither was
	// not dealt with, and is given again after an error. Messages that the sink has anyway are neither.
	Send(ctx context.Context, replay *inspect.Replay, messages []message.Message) (done, refused int,
		err error)
	// Waiting counts those of ids that were taken and have not been sent on.
	Waiting(ctx context.Context, ids []string) (int, error)
	// Close ends it.
	Close()
}

// ReplayerOptions configure a Replayer. All are required.
type ReplayerOptions struct {
	Writer string
	// Open gives the sink of a replay.
	Open   func(ctx context.Context, r *inspect.Replay) (Sink, error)
	Note   func(id string, handed time.Time, step inspect.Step) // tells the history
	Logger *slog.Logger
}

// Replayer works through replays, one at a time, oldest first. One relay of a fleet works on a replay.
type Replayer struct {
	store Store
	o     ReplayerOptions

	// Only Run uses these.
	sink    Sink
	current int64    // the replay that sink is for
	taken   []string // by the sink, and not known to be sent on
	trouble retry.Trouble
}

const (
	// replayLease is how long a replay waits for a relay that died.
	replayLease = 15 * time.Second
	// replayIdle is how soon a new replay is noticed.
	replayIdle = time.Second
	// replayPiece bounds what is sent at once: a fifth of a second's worth, so that the rate is even.
	replayPiece = 200
	// replayAhead is how many seconds' worth may wait in the queue: with no broker up, the history is not
	// copied there.
	replayAhead = 5
)

// NewReplayer prepares a replayer; it starts nothing.
func NewReplayer(s Store, o ReplayerOptions) *Replayer { return &Replayer{store: s, o: o} }

// Run works until ctx ends, and returns nil then. What it had in hand goes on after the next start.
func (r *Replayer) Run(ctx context.Context) error {
	defer r.close()
	for ctx.Err() == nil {
		wait, err := r.piece(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if r.trouble.Failed(err) {
				r.tell(err)
			}
			wait = r.trouble.Delay()
		default:
			r.trouble.Recovered(r.o.Logger, "replays work again")
		}
		retry.Pause(ctx, wait)
	}
	return nil
}

func (r *Replayer) close() {
	if r.sink != nil {
		r.sink.Close()
	}
	r.sink, r.current, r.taken = nil, 0, nil
}

// piece sends the next messages of the oldest replay, and gives the time to wait before the next ones.
func (r *Replayer) piece(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	p, err := r.store.ClaimReplay(ctx, r.o.Writer, replayLease)
	if err != nil || p == nil {
		return replayIdle, err
	}
	if p.ID != r.current {
		r.close()
		if r.sink, err = r.o.Open(ctx, p); err != nil {
			return 0, r.stuck(ctx, p, err)
		}
		r.current = p.ID
	}
	if wait, err := r.holdBack(ctx, p); wait > 0 || err != nil {
		return wait, err
	}
	n := min(replayPiece, max(1, int(p.Rate/5)))
	messages, cursor, last, err := r.next(ctx, p, n)
	if err != nil {
		return 0, r.stuck(ctx, p, err)
	}
	done, refused, err := r.sink.Send(ctx, p, messages)
	if err != nil {
		return 0, r.stuck(ctx, p, err)
	}
	for i := range messages {
		r.o.Note(messages[i].ID, messages[i].Created, inspect.Step{Kind: inspect.Replayed,
			Reason: fmt.Sprintf("by replay %d", p.ID)})
		r.taken = append(r.taken, messages[i].ID)
	}
	p.Done, p.Refused, p.Skipped = p.Done+done, p.Refused+refused, p.Skipped+len(messages)-done-refused
	p.Cursor, p.Error = cursor, ""
	if last && len(messages) == 0 {
		return 0, r.finish(ctx, p)
	}
	if _, err := r.store.SaveReplay(ctx, p, r.o.Writer, replayLease); err != nil {
		return 0, err
	}
	return time.Duration(float64(len(messages))/p.Rate*float64(time.Second)) - time.Since(began), nil
}

// holdBack waits while much of what was sent is in the queue still.
func (r *Replayer) holdBack(ctx context.Context, p *inspect.Replay) (time.Duration, error) {
	ahead := max(replayPiece, int(p.Rate*replayAhead))
	if len(r.taken) < ahead {
		return 0, nil
	}
	waiting, err := r.sink.Waiting(ctx, r.taken)
	if err != nil {
		return 0, err
	}
	if waiting == 0 {
		r.taken = nil
	}
	if waiting <= ahead/2 {
		r.taken = r.taken[len(r.taken)-min(len(r.taken), waiting):]
		return 0, nil
	}
	p.Waiting = waiting
	_, err = r.store.SaveReplay(ctx, p, r.o.Writer, replayLease)
	return replayIdle, err
}

// tell logs why nothing goes on.
func (r *Replayer) tell(err error) {
	if r.current == 0 {
		r.o.Logger.Warn("replays cannot be looked for", "error", err)
		return
	}
	r.o.Logger.Warn("a replay does not go on", "replay", r.current, "error", err)
}

// finish ends a replay when nothing of it waits any more.
func (r *Replayer) finish(ctx context.Context, p *inspect.Replay) error {
	waiting, err := r.sink.Waiting(ctx, r.taken)
	if err != nil {
		return err
	}
	if p.Waiting = waiting; waiting == 0 {
		p.State, p.Ended = inspect.ReplayDone, time.Now()
	}
	if _, err := r.store.SaveReplay(ctx, p, r.o.Writer, replayLease); err != nil {
		return err
	}
	if waiting > 0 {
		retry.Pause(ctx, replayIdle)
		return nil
	}
	r.o.Logger.Info("a replay is done", "replay", p.ID, "messages", p.Done, "skipped", p.Skipped, "refused",
		p.Refused)
	r.close()
	return nil
}

// stuck notes why a replay does not go on.
func (r *Replayer) stuck(ctx context.Context, p *inspect.Replay, err error) error {
	p.Error = err.Error()
	if _, saveErr := r.store.SaveReplay(ctx, p, r.o.Writer, replayLease); saveErr != nil {
		return saveErr
	}
	return err
}

// next gives messages behind the cursor of p; last says that there are no more. Events that made no
// message, and what cannot be a message, are passed over.
func (r *Replayer) next(ctx context.Context, p *inspect.Replay, n int) (messages []message.Message,
	cursor inspect.Ref, last bool, err error) {
	cursor = p.Cursor
	if p.File {
		lines, err := r.store.Lines(ctx, p.ID, cursor.Line, n)
		for i := range lines {
			if m, ok := again(&lines[i]); ok {
				messages = append(messages, m)
			}
			cursor.Line++
		}
		return messages, cursor, len(lines) == 0, err
	}
	rows, refs, err := page(ctx, r.store, p.Query, Ref{Handed: cursor.Handed, ID: cursor.ID}, n)
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
