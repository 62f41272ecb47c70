package main

import (
	"io"
	"log/slog"
	"os"

	systemd "github.com/coreos/go-systemd/v22/journal"

	"koji-relay/config"
	"koji-relay/internal/journal"
)

// newLogger logs in the form that log_format says. "auto" is the journal where stderr is connected to it,
// text on a terminal, and else JSON; a journal that is asked for and not there becomes JSON, with a warning.
func newLogger(stderr io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	plain := slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: withUnit})
	switch {
	case format == config.LogText || format == config.Auto && isTerminal(stderr):
		return slog.New(slog.NewTextHandler(stderr, opts))
	case format == config.Auto && isJournal(stderr):
		return slog.New(journal.NewHandler(plain))
	case format == config.LogJournal && systemd.Enabled():
		return slog.New(journal.NewHandler(plain))
	case format == config.LogJournal:
		log := slog.New(plain)
		log.Warn("log_format = journal, but no systemd journal is here; logging JSON to standard error")
		return log
	}
	return slog.New(plain)
}

// withUnit writes a duration as in the other forms: 28.752s. JSON's own would be a number of nanoseconds.
func withUnit(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.String())
	}
	return a
}

// newAuditLog logs what a command does by itself, while no relay runs: to the journal, where there is one.
func newAuditLog() *slog.Logger {
	if !systemd.Enabled() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(journal.NewHandler(slog.NewTextHandler(io.Discard, nil)))
}

// isJournal reports whether w is the stream that systemd connected to the journal.
func isJournal(w io.Writer) bool {
	if w != io.Writer(os.Stderr) {
		return false
	}
	is, err := systemd.StderrIsJournalStream()
	return err == nil && is && systemd.Enabled()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
