package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// control is what an administrator can change in a running daemon, as the control socket's handler wants it.
type control struct {
	*Daemon
	admin.QueueControl
	admin.HistoryControl
}

func (d *Daemon) control() admin.Control {
	if d.store == nil {
		return control{d, noQueue{}, d.historyControl()}
	}
	q := queueControl{store: d.store, translate: d.current.translate, log: d.log, wake: d.drainer.Wake,
		history: noHistory{}}
	if d.history != nil {
		q.history = d.history
	}
	return control{d, q, d.historyControl()}
}

func (c control) Reload(ctx context.Context) admin.Reload {
	if err := c.Daemon.Reload(ctx); ctx.Err() != nil {
		return admin.Reload{Time: time.Now(), Errors: []string{err.Error()}}
	}
	return c.effective.Load().reload
}

func (c control) SetLogLevel(_ context.Context, level string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return &admin.Error{Code: admin.CodeBadRequest,
			Text: "log level " + level + " is none of debug, info, warn, error"}
	}
	c.opts.Level.Set(l)
	c.log.Info("log level changed until the next start or reload", "log_level", strings.ToLower(l.String()))
	return nil
}

func (c control) Pause(_ context.Context, what admin.Pausable) error {
	return c.pause(what, true)
}

func (c control) Resume(_ context.Context, what admin.Pausable) error {
	return c.pause(what, false)
}

// pause halts or resumes the drain, or all sending, which includes the drain.
func (c control) pause(what admin.Pausable, on bool) error {
	if on && c.drainer == nil {
		return errNoQueue
	}
	if what == admin.Publish {
		c.publishPaused.Store(on)
	}
	switch {
	case c.drainer == nil:
	case on:
		c.drainer.Pause()
	default:
		c.drainer.Resume()
	}
	text := "resumed by an administrator"
	if on {
		text = "paused by an administrator"
	}
	c.log.Info(text, "what", string(what))
	return nil
}

var errNoQueue = &admin.Error{Code: admin.CodeRefused, Text: "there is no queue: [queue] enabled = off"}

// queueControl does what the commands ask on a store, in a running relay or without one.
type queueControl struct {
	store     store
	translate translate // by the configuration in force
	log       *slog.Logger
	wake      func() // the drain, when there may be something due
	history   recorder
}

// translate makes messages of a commit, by some configuration.
type translate func(message.Commit) callbacks.Translation

// NewQueueControl is for the commands that work on the store while no relay runs.
func NewQueueControl(c *config.Config, opened store, log *slog.Logger) (admin.QueueControl, error) {
	rules, err := callbacks.New(RulesOptions(c))
	if err != nil {
		return nil, fmt.Errorf("prepare translation: %w", err)
	}
	return queueControl{store: opened, translate: rules.Translate, log: log, wake: func() {},
		history: noHistory{}}, nil
}

// explain gives the errors that the control socket knows their codes.
func explain(err error) error {
	if errors.Is(err, queue.ErrNotFound) {
		return &admin.Error{Code: admin.CodeNotFound, Text: err.Error()}
	}
	return err
}

func (q queueControl) List(ctx context.Context, b inspect.Box, o inspect.ListOptions,
	each func(inspect.Item) error) error {
	return explain(q.store.List(ctx, b, o, func(it queue.Item) error { return each(it.Shown(b)) }))
}

func (q queueControl) Show(ctx context.Context, b inspect.Box, id string) (inspect.Item, error) {
	it, err := q.store.Show(ctx, b, id)
	if err != nil {
		return inspect.Item{}, explain(err)
	}
	shown := it.Shown(b)
	shown.Body = string(it.Body)
	if json.Valid([]byte(it.Props)) {
		shown.Props = json.RawMessage(it.Props)
	}
	return shown, nil
}

func (q queueControl) Export(ctx context.Context, w io.Writer) error {
	return queue.Export(ctx, q.store, w)
}

func (q queueControl) Import(ctx context.Context, r io.Reader) (inspect.Imported, error) {
	done, err := queue.Import(ctx, q.store, r)
	q.wake()
	return done, err
}

// noQueue answers the queue's commands where there is none.
type noQueue struct{}

func (noQueue) List(context.Context, inspect.Box, inspect.ListOptions, func(inspect.Item) error) error {
	return errNoQueue
}

func (noQueue) Show(context.Context, inspect.Box, string) (inspect.Item, error) {
	return inspect.Item{}, errNoQueue
}

func (noQueue) Retry(context.Context, inspect.Box, inspect.Selection) (inspect.Changed, error) {
	return inspect.Changed{}, errNoQueue
}

func (noQueue) Drop(context.Context, inspect.Box, inspect.Selection) (inspect.Changed, error) {
	return inspect.Changed{}, errNoQueue
}

func (noQueue) Export(context.Context, io.Writer) error { return errNoQueue }

func (noQueue) Import(context.Context, io.Reader) (inspect.Imported, error) {
	return inspect.Imported{}, errNoQueue
}
