// Package journal writes log records to the systemd journal. What the journal does not take goes to a handler
// that stands behind it.
package journal

import (
	"context"
	"encoding"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
)

// handler writes records to the systemd journal: the level becomes the priority, each attribute a field of
// its own (commit -> COMMIT), and MESSAGE is the message followed by the attributes, since that is all that
// journalctl shows by itself. What the journal does not take goes to the fallback. It may be used
// concurrently.
type handler struct {
	send     func(message string, priority journal.Priority, fields map[string]string) error
	fallback slog.Handler // decides which levels are logged, too
	prefix   string       // of the group that is open, with a dot
	attrs    []attribute
}

// attribute is one attribute with the names of its groups in its key.
type attribute struct{ key, value string }

// NewHandler gives a handler for the journal of this machine. Its levels are those of fallback, which also
// takes what the journal refuses.
func NewHandler(fallback slog.Handler) slog.Handler { return newHandler(journal.Send, fallback) }

func newHandler(send func(string, journal.Priority, map[string]string) error,
	fallback slog.Handler) *handler {
	return &handler{send: send, fallback: fallback}
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.fallback.Enabled(ctx, l)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		next.attrs = appendAttr(next.attrs, h.prefix, a)
	}
	next.fallback = h.fallback.WithAttrs(attrs)
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	next.fallback = h.fallback.WithGroup(name)
	return &next
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendAttr(attrs, h.prefix, a)
		return true
	})
	message := strings.Builder{}
	message.WriteString(r.Message)
	fields := make(map[string]string, len(attrs)+1)
	for _, a := range attrs {
		fmt.Fprintf(&message, " %s=%s", a.key, quoted(a.value))
		if name := fieldName(a.key); name != "" {
			fields[name] = a.value
		}
	}
	fields["SYSLOG_IDENTIFIER"] = "koji-relay"
	if err := h.send(message.String(), priority(r.Level), fields); err != nil {
		return h.fallback.Handle(ctx, r)
	}
	return nil
}

// appendAttr flattens groups.
func appendAttr(attrs []attribute, prefix string, a slog.Attr) []attribute {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Key == "" && v.Any() == nil {
			return attrs // slog's empty attribute
		}
		return append(attrs, attribute{prefix + a.Key, attrText(v)})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		attrs = appendAttr(attrs, prefix, member)
	}
	return attrs
}

// attrText is what slog's text handler prints, without quotes.
func attrText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		if m, ok := v.Any().(encoding.TextMarshaler); ok {
			if text, err := m.MarshalText(); err == nil {
				return string(text)
			}
		}
		return fmt.Sprintf("%+v", v.Any())
	}
	return v.String()
}

// quoted is s as a word: in quotes where its end could not be seen otherwise.
func quoted(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// reservedFields have a meaning of their own in the journal (systemd.journal-fields(7)) that none of ours
// has. MESSAGE_ID, for one, names a kind of record, by which journalctl looks up explanations.
var reservedFields = []string{
	"MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "INVOCATION_ID", "USER_INVOCATION_ID", "DOCUMENTATION", "TID",
	"UNIT", "USER_UNIT",
}

var reservedPrefixes = []string{"CODE_", "SYSLOG_", "OBJECT_", "COREDUMP_"}

// fieldName makes a field name of a key: A-Z, 0-9 and underscores, at most 64. Names that the journal uses
// itself get RELAY_ in front. A key gives "" where nothing of it remains.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	name = strings.TrimLeft(name, "_") // fields that begin so are the journal's own
	if name == "" {
		return ""
	}
	reserved := slices.Contains(reservedFields, name) ||
		slices.ContainsFunc(reservedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	if reserved || name[0] >= '0' && name[0] <= '9' {
		name = "RELAY_" + name
	}
	return name[:min(len(name), 64)]
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
