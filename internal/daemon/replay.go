package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"koji-relay/config"
	"koji-relay/history"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/relay"
)

// defaultReplayRate is used where [queue] rate_limit names none: messages a second.
const defaultReplayRate = 100

// historyControl is what commands ask of the history, in a running relay or without one.
type historyControl struct {
	store  history.Store
	config func() *config.Config
	queued bool // there is a queue
}

// NewHistoryControl is for the commands that work on the history while no relay runs.
func NewHistoryControl(c *config.Config, s history.Store) admin.HistoryControl {
	return historyControl{s, func() *config.Config { return c }, c.Queue.Enabled}
}

func (d *Daemon) historyControl() admin.HistoryControl {
	if d.historyStore == nil {
		return noHistoryControl{}
	}
	return historyControl{d.historyStore, func() *config.Config { return d.effective.Load().config },
		d.store != nil}
}

// explainHistory gives the errors that the control socket knows their codes.
func explainHistory(err error) error {
	switch {
	case errors.Is(err, history.ErrNotFound):
		return &admin.Error{Code: admin.CodeNotFound, Text: err.Error()}
	case errors.Is(err, history.ErrQuery):
		return &admin.Error{Code: admin.CodeBadRequest, Text: err.Error()}
	}
	return err
}

func (h historyControl) History(ctx context.Context, q inspect.HistoryQuery,
	each func(*inspect.HistoryMessage) error) error {
	return explainHistory(history.Search(ctx, h.store, q, each))
}

func (h historyControl) HistoryMessage(ctx context.Context, id string) (*inspect.HistoryMessage, error) {
	m, err := history.Show(ctx, h.store, id)
	return m, explainHistory(err)
}

func (h historyControl) HistoryGaps(ctx context.Context, since, until time.Time) ([]inspect.Gap, error) {
	return h.store.Gaps(ctx, since, until)
}

func (h historyControl) PlanReplay(ctx context.Context, r inspect.Replay) (inspect.Plan, error) {
	if err := h.complete(&r); err != nil {
		return inspect.Plan{}, err
	}
	plan, err := history.PlanReplay(ctx, h.store, r.Query)
	plan.Rate = r.Rate
	return plan, explainHistory(err)
}

// complete fills in what a command left open, and refuses what cannot be done.
func (h historyControl) complete(r *inspect.Replay) error {
	refuse := func(text string) error { return &admin.Error{Code: admin.CodeBadRequest, Text: text} }
	if r.URL == "" && !h.queued {
		return &admin.Error{Code: admin.CodeRefused,
			Text: "there is no queue to replay through: [queue] enabled = off; give --url"}
	}
	if !(r.Rate >= 0) || math.IsInf(r.Rate, 0) { // NaN is neither
		return refuse(fmt.Sprintf("the rate is %v; give messages a second", r.Rate))
	}
	c := h.config()
	if r.Rate == 0 {
		r.Rate = defaultReplayRate
		if c.Queue.RateLimit > 0 {
			r.Rate = float64(c.Queue.RateLimit)
		}
	}
	if r.URL != "" {
		if u, err := url.Parse(r.URL); err != nil || u.Scheme != "amqp" && u.Scheme != "amqps" ||
			u.Host == "" {
			return refuse("the URL is none of a broker: write amqp://host or amqps://host")
		}
		if r.TopicPrefix == "" {
			r.TopicPrefix = c.Broker.TopicPrefix
		}
	} else if r.TopicPrefix != "" {
		return refuse("a topic prefix of its own needs a URL: the queue goes to the brokers of the configuration")
	}
	// What is handed over from now on is not part of it.
	if r.Created = time.Now(); r.Query.Until.IsZero() || r.Query.Until.After(r.Created) {
		r.Query.Until = r.Created
	}
	r.Query.Limit = 0
	return nil
}

func (h historyControl) StartReplay(ctx context.Context, r inspect.Replay, lines io.Reader) (inspect.Replay,
	error) {
	if err := h.complete(&r); err != nil {
		return r, err
	}
	var rows []history.Row
	if r.File {
		var err error
		if rows, err = readLines(lines); err != nil {
			return r, &admin.Error{Code: admin.CodeBadRequest, Text: err.Error()}
		}
		if r.Total = len(rows); r.Total == 0 {
			return r, &admin.Error{Code: admin.CodeBadRequest, Text: "the file has no message that can be sent"}
		}
		for i := range rows {
			r.Bytes += int64(rows[i].Size)
		}
	} else {
		plan, err := history.PlanReplay(ctx, h.store, r.Query)
		if err != nil {
			return r, explainHistory(err)
		}
		r.Total, r.Bytes = plan.Messages, plan.Bytes
	}
	if err := h.fewEnough(ctx); err != nil {
		return r, err
	}
	r.State = inspect.ReplayRuns
	if err := h.store.AddReplay(ctx, &r, rows); err != nil {
		return r, err
	}
	return masked(r), nil
}

// maxReplays bounds what is at work at once: each replay has a batch in memory, and may have a connection.
const maxReplays = 100

func (h historyControl) fewEnough(ctx context.Context) error {
	all, err := h.store.Replays(ctx)
	running := 0
	for i := range all {
		if all[i].State == inspect.ReplayRuns {
			running++
		}
	}
	if err == nil && running >= maxReplays {
		return &admin.Error{Code: admin.CodeRefused, Text: fmt.Sprintf(
			"%s run, and no more may; wait, or cancel one: see 'koji-relay replay list'",
			inspect.Count(running, "replay"))}
	}
	return err
}

func masked(r inspect.Replay) inspect.Replay {
	if r.URL != "" {
		r.URL = history.MaskURL(r.URL)
	}
	return r
}

const (
	// maxLine bounds a line of a file.
	maxLine = 64 << 20
	// maxLines bounds what the messages of a file take in memory.
	maxLines = 128 << 20
)

// readLines reads what `koji-relay history --json` wrote. Events that made no message are passed over.
func readLines(r io.Reader) ([]history.Row, error) {
	var rows []history.Row
	size := 0
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(in)
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
			if bytes.HasPrefix(line, []byte{0x1f, 0x8b}) {
				return nil, errors.New("it is packed by gzip: zcat FILE | koji-relay replay --from - --yes")
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read line %d: %w", n, err)
		}
		if len(bytes.TrimSpace(line)) > 0 {
			row, wrong := history.FromJSON(line)
			if syntax := (*json.SyntaxError)(nil); err != nil && errors.As(wrong, &syntax) {
				wrong = fmt.Errorf("the file ends within it; take the line out to send those before it: %w", wrong)
			}
			if wrong != nil {
				return nil, fmt.Errorf("line %d is not of koji-relay history --json: %w", n, wrong)
			}
			if row.ID != "" {
				const overhead = 512 // its struct and its ids
				rows, size = append(rows, row), size+overhead+len(row.Content)
			}
			if size > maxLines {
				return nil, fmt.Errorf("the messages until line %d take more than %s; "+
					"send the file in parts: split -l %d", n, inspect.Size(maxLines), n/2)
			}
		}
		if err != nil {
			return rows, nil
		}
	}
}

// readLine reads until the end of a line or, with io.EOF, of the file.
func readLine(in *bufio.Reader) (line []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if line = append(line, part...); !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("it has more than %s, and is not of koji-relay history --json",
				inspect.Size(maxLine))
		}
	}
}

func (h historyControl) Replays(ctx context.Context) ([]inspect.Replay, error) {
	all, err := h.store.Replays(ctx)
	for i := range all {
		all[i] = masked(all[i])
	}
	return all, err
}

func (h historyControl) CancelReplay(ctx context.Context, id int64) error {
	ran, err := h.store.CancelReplay(ctx, id)
	if err == nil && !ran {
		return &admin.Error{Code: admin.CodeNotFound, Text: fmt.Sprintf("no replay %d is running", id)}
	}
	return err
}

// noHistoryControl answers where no history is kept.
type noHistoryControl struct{}

var errNoHistory = &admin.Error{Code: admin.CodeRefused, Text: history.ErrOff.Error()}

func (noHistoryControl) History(context.Context, inspect.HistoryQuery,
	func(*inspect.HistoryMessage) error) error {
	return errNoHistory
}

func (noHistoryControl) HistoryMessage(context.Context, string) (*inspect.HistoryMessage, error) {
	return nil, errNoHistory
}

func (noHistoryControl) HistoryGaps(context.Context, time.Time, time.Time) ([]inspect.Gap, error) {
	return nil, errNoHistory
}

func (noHistoryControl) PlanReplay(context.Context, inspect.Replay) (inspect.Plan, error) {
	return inspect.Plan{}, errNoHistory
}

func (noHistoryControl) StartReplay(context.Context, inspect.Replay, io.Reader) (inspect.Replay, error) {
	return inspect.Replay{}, errNoHistory
}

func (noHistoryControl) Replays(context.Context) ([]inspect.Replay, error) { return nil, errNoHistory }

func (noHistoryControl) CancelReplay(context.Context, int64) error { return errNoHistory }

// startReplays works through replays.
func (d *Daemon) startReplays(parts *stops) {
	if d.historyStore == nil {
		return
	}
	turn := semaphore.NewWeighted(1)
	r := history.NewReplayer(d.historyStore, history.ReplayerOptions{
		Writer: d.historyOptions(d.opts.Config).Writer, Note: d.history.Step, Logger: d.log,
		Open: func(ctx context.Context, r *inspect.Replay) (history.Sink, error) {
			return d.openSink(ctx, r, turn)
		},
	})
	parts.add(startPart("replays", 5*time.Second, d.fatal, r.Run))
}

// openSink gives the sink of a replay. Those that put into the queue take turns there: hubs want its
// connections.
func (d *Daemon) openSink(ctx context.Context, r *inspect.Replay,
	turn *semaphore.Weighted) (history.Sink, error) {
	if r.URL == "" {
		if d.store == nil {
			return nil, errNoQueue
		}
		return queueSink{d.store, d.drainer.Wake, turn}, nil
	}
	return openBrokerSink(ctx, d.effective.Load().config, r, d.log)
}

// queueSink puts messages into the queue as set aside and due: the drain takes those in batches of their
// own, every fourth one while others wait, and they are no backlog that new messages would wait behind
// (preserve_order). They are new in age, so that max_age does not take them away, and keep their
// creation-time.
type queueSink struct {
	store store
	wake  func()
	turn  *semaphore.Weighted // of all replays, one at a time
}

func (q queueSink) Send(ctx context.Context, r *inspect.Replay, messages []message.Message) (done,
	refused int, err error) {
	if len(messages) == 0 {
		return 0, 0, nil
	}
	now := time.Now()
	items := make([]queue.Item, len(messages))
	for i := range messages {
		props, err := message.EncodeProps(messages[i].Props)
		if err != nil {
			return 0, 0, err
		}
		items[i] = queue.Item{Message: messages[i], Props: string(props), Body: []byte(messages[i].Body),
			Queued:      now,
			NextAttempt: now, Reason: fmt.Sprintf("replay %d", r.ID)}
		items[i].Message.Body = ""
	}
	if err := q.turn.Acquire(ctx, 1); err != nil {
		return 0, 0, err
	}
	done, err = q.store.Add(ctx, inspect.QueueBox, items)
	q.turn.Release(1)
	q.wake()
	return done, 0, err
}

func (q queueSink) Waiting(ctx context.Context, ids []string) (int, error) {
	if len(ids) == 0 {
		return 0, nil
	}
	if err := q.turn.Acquire(ctx, 1); err != nil {
		return 0, err
	}
	defer q.turn.Release(1)
	return q.store.Holds(ctx, ids)
}

func (queueSink) Close() {}

// brokerSink sends to the broker that a replay names, over a relay of its own.
type brokerSink struct {
	relay interface {
		SendPatiently(ctx context.Context, messages []message.Message) []message.Outcome
	}
	stop func()
	log  *slog.Logger

	dealt         map[string]bool // messages of a batch that is not taken as a whole yet
	done, refused int             // of these
}

func openBrokerSink(ctx context.Context, c *config.Config, r *inspect.Replay,
	log *slog.Logger) (history.Sink, error) {
	o := RelayOptions(c, log)
	o.Brokers, o.TopicPrefix, o.TestMode = []relay.Broker{{URL: r.URL}}, r.TopicPrefix, false
	sending, err := relay.New(o)
	if err != nil {
		return nil, fmt.Errorf("prepare sending to %s: %w", history.MaskURL(r.URL), err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := sending.Run(running); err != nil {
			log.Error("the replay's connection ended", "error", err)
		}
	}()
	return &brokerSink{relay: sending, stop: func() { cancel(); <-done }, log: log,
		dealt: map[string]bool{}}, nil
}

// Send implements history.Sink. When a batch is given again, it sends those that the broker has not taken.
func (b *brokerSink) Send(ctx context.Context, _ *inspect.Replay, batch []message.Message) (done,
	refused int, err error) {
	var messages []message.Message
	for i := range batch {
		if !b.dealt[batch[i].ID] {
			messages = append(messages, batch[i])
		}
	}
	var reasons []string
	for i, o := range b.relay.SendPatiently(ctx, messages) {
		switch o.Next {
		case message.Done:
			b.done++
		case message.Count, message.Dead:
			b.refused++
			b.log.Warn("a replayed message was refused", "message_id", messages[i].ID, "broker", o.Broker,
				"reason", o.Reason)
		default:
			reasons = append(reasons, o.Reason)
			continue
		}
		b.dealt[messages[i].ID] = true
	}
	if len(reasons) > 0 {
		return 0, 0, fmt.Errorf("%d of %s not taken: %s", len(reasons),
			inspect.Count(len(batch), "message"), strings.TrimSpace(reasons[0]))
	}
	done, refused = b.done, b.refused
	b.done, b.refused = 0, 0
	clear(b.dealt)
	return done, refused, nil
}

func (b *brokerSink) Waiting(context.Context, []string) (int, error) { return 0, nil }

func (b *brokerSink) Close() { b.stop() }
