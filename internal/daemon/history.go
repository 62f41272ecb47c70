package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"koji-relay/config"
	"koji-relay/history"
	historyfile "koji-relay/history/file"
	historypg "koji-relay/history/postgres"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// recorder is the history as the stages see it, through watch. Its methods do not block.
type recorder interface {
	Message(m *message.Message, via string, step inspect.Step)
	Step(id string, handed time.Time, step inspect.Step)
	Found(m *message.Message, step inspect.Step)
}

// noHistory is [history] keep = 0.
type noHistory struct{}

func (noHistory) Message(*message.Message, string, inspect.Step) {}
func (noHistory) Step(string, time.Time, inspect.Step)           {}
func (noHistory) Found(*message.Message, inspect.Step)           {}

// OpenHistory opens the history of c, for serve and for the commands that look into it while no relay runs.
// It is nil where none is kept. A database that cannot be reached is no error: it is the recorder's
// trouble.
func OpenHistory(c *config.Config) (history.Store, error) {
	if !c.HistoryKept() {
		return nil, nil
	}
	if dir := c.HistoryDir(); dir != "" {
		s, err := historyfile.Open(dir)
		if err != nil {
			return nil, fmt.Errorf("open the history: %w", err)
		}
		return s, nil
	}
	conn, err := c.DatabaseConn()
	if err != nil {
		return nil, fmt.Errorf("find the history's database: %w", err)
	}
	s, err := historypg.Open(historypg.Options{ConnString: conn.Reveal()})
	if err != nil {
		return nil, fmt.Errorf("open the history: %w", err)
	}
	return s, nil
}

// startHistory begins to record. It is stopped late, so that it hears of all that the others do at their end.
func (d *Daemon) startHistory(parts *stops) error {
	store, err := OpenHistory(d.opts.Config)
	if err != nil || store == nil {
		return err
	}
	parts.add(part{"history store", 5 * time.Second, func(ctx context.Context) error {
		return inTime(ctx, store.Close)
	}}.lenient(d.log))
	d.historyStore = store
	d.history = history.NewRecorder(store, d.historyOptions(d.opts.Config))
	d.watch.history = d.history
	parts.add(startPart("history", 5*time.Second, d.fatal, d.history.Run).lenient(d.log))
	return nil
}

func (d *Daemon) historyOptions(c *config.Config) history.Options {
	host, _ := os.Hostname()
	return history.Options{
		Writer: host + ":" + c.Relay.Control,
		Keep:   c.History.Keep, MaxBytes: c.History.MaxBytes,
		Logger: d.log,
		Sign:   signPath(c),
		Missed: d.watch.metrics.HistoryMissed,
	}
}

// signPath is beside the control socket, where a restart finds it again and no disk is slow.
func signPath(c *config.Config) string {
	if c.Relay.Control == "" {
		return ""
	}
	return c.Relay.Control + ".history"
}

// step gives an outcome as the history tells it.
func step(kind inspect.StepKind, o message.Outcome) inspect.Step {
	s := inspect.Step{Kind: kind, Broker: o.Broker, Reason: o.Reason}
	if kind == inspect.Accepted {
		return s
	}
	if s.Reason = o.State.String(); o.Why() != "" {
		s.Reason += ": " + o.Why()
	}
	return s
}

// event gives an undeliverable event as the history keeps it: with its kwargs for a body.
func event(b *message.Undeliverable) *message.Message {
	return &message.Message{ID: b.ID, Commit: b.Commit, Event: b.Event, Callback: b.Callback,
		Body:    string(b.Kwargs),
		Created: time.Now()}
}

// flushTime bounds how long the outbox waits for the history.
const flushTime = time.Second

// flushHistory writes what was recorded. An event leaves the outbox after that: with delivery = outbox a
// kill costs the history nothing, since what it misses is taken again.
func (d *Daemon) flushHistory(ctx context.Context) {
	if d.history == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	if err := d.history.Flush(ctx); err != nil {
		d.log.Debug("the outbox does not wait for the history", "error", err)
	}
}
