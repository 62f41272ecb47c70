// Package logbuffer keeps the log from holding up the program. Records are written by a goroutine of their
// own; what cannot be written is lost, counted, and told of when the log works again.
//
// It never makes who logs wait for longer than a moment, whatever became of who reads the log.
package logbuffer

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// room is how many records wait to be written: some seconds of a busy hub.
	room = 1024
	// moment is how long a burst of records waits for room. A log that is stuck costs it once, and not each
	// record.
	moment = 100 * time.Millisecond
)

// Handler is a slog.Handler in front of another one. It may be used concurrently.
type Handler struct {
	to slog.Handler
	*buffer
}

// buffer is what all handlers made of one by WithAttrs and WithGroup share.
type buffer struct {
	records chan record
	stuck   atomic.Bool // nothing was written for a moment
	lost    atomic.Int64
}

type record struct {
	to slog.Handler
	slog.Record
}

// New makes a Handler. Nothing is written until Run.
func New(to slog.Handler) *Handler {
	return &Handler{to, &buffer{records: make(chan record, room)}}
}

// Lost is how many records were lost since the start.
func (b *buffer) Lost() int64 { return b.lost.Load() }

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.to.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.to.WithAttrs(attrs), h.buffer}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.to.WithGroup(name), h.buffer}
}

// Handle implements slog.Handler. Values are turned into text here: they may change later.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	one := record{h.to, slog.NewRecord(r.Time, r.Level, r.Message, r.PC)}
	r.Attrs(func(a slog.Attr) bool {
		one.AddAttrs(settled(a))
		return true
	})
	select {
	case h.records <- one:
		return nil
	default:
	}
	if !h.stuck.Load() {
		select {
		case h.records <- one:
			return nil
		case <-time.After(moment):
			h.stuck.Store(true)
		}
	}
	h.lost.Add(1)
	return nil
}

// settled is a without what could change after the call.
func settled(a slog.Attr) slog.Attr {
	a.Value = a.Value.Resolve()
	switch v := a.Value.Any().(type) {
	case error:
		a.Value = slog.StringValue(v.Error())
	case fmt.Stringer:
		if a.Value.Kind() == slog.KindAny {
			a.Value = slog.StringValue(v.String())
		}
	}
	return a
}

// Run writes until ctx ends, and then what is waiting. It blocks as long as the log does.
func (b *buffer) Run(ctx context.Context) {
	told := int64(0)
	for {
		select {
		case r := <-b.records:
			told = b.write(r, told)
			continue
		default:
		}
		select {
		case r := <-b.records:
			told = b.write(r, told)
		case <-ctx.Done():
			return
		}
	}
}

// write writes one record, and the number of those that were lost before it. It returns how many of the lost
// ones the reader knows of.
func (b *buffer) write(r record, told int64) int64 {
	if err := r.to.Handle(context.Background(), r.Record); err != nil {
		b.lost.Add(1)
		return told
	}
	b.stuck.Store(false)
	lost := b.lost.Load()
	if lost == told {
		return told
	}
	warning := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were lost: nobody took them", 0)
	warning.AddAttrs(slog.Int64("lines", lost-told))
	if r.to.Handle(context.Background(), warning) != nil {
		return told
	}
	return lost
}
