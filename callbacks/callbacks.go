// Package callbacks turns what the hub hands over into messages: one table of rules, protonmsg's, extended to
// the pre events and to callbacks it does not know. It also reads the hub API's JSON, because only the raw
// text of an event makes the body that protonmsg sent.
//
// It promises that a body is the text that came, byte for byte, but for an `extra` over the limit (cut out)
// and a repo event's absent task_id (appended), and that an event it cannot translate is named with a reason
// and leaves its neighbours alone. It does no I/O, reads no clock, keeps no state between calls, and never
// decodes and re-encodes a body.
package callbacks

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"koji-relay/internal/fnmatch"
	"koji-relay/internal/message"
)

// Protonmsg is the name that stands, in Options.Events, for the ten callbacks that protonmsg publishes.
const Protonmsg = "protonmsg"

// Options are the keys of the [message] section that concern translation. The zero value is protonmsg's
// behaviour.
type Options struct {
	// Events are patterns of callback names (package fnmatch) or the word "protonmsg"; empty means "protonmsg".
	Events []string
	// ExtraLimit is the greatest length of `extra` that is sent, in characters of Python's json.dumps; 0 means
	// no limit, a negative number counts as its absolute value.
	ExtraLimit int
	// ExtraKeep are the keys of `extra` that stay when it is over the limit.
	ExtraKeep []string
	// ExcludeTags are patterns (package fnmatch) of tags whose tag and untag events, post and pre, make no
	// message.
	ExcludeTags []string
}

// Rules translates commits. It is immutable: any number of goroutines may use one.
type Rules struct {
	globs      []string
	patterns   []*fnmatch.Pattern // of globs, without Protonmsg
	wanted     map[string]bool    // the answer of the globs for each callback of the table
	extraLimit int
	extraKeep  map[string]bool
	excluded   []*fnmatch.Pattern // tags
}

// Translation is what the events of one commit became, each in the commit's order:
// len(Messages) + len(Undeliverable) + len(Skipped) is the number of its events.
type Translation struct {
	Messages      []message.Message // Created is left zero: this package reads no clock
	Undeliverable []message.Undeliverable
	Skipped       []message.Skipped // not asked for, excluded, or of a kind that protonmsg passes over
	Trimmed       int               // of Messages: those whose extra was cut because of ExtraLimit
}

// Names are the hub's callbacks that the table knows, post and pre, protonmsg's ten first.
func Names() []string {
	names := make([]string, 0, 2*len(rules))
	for _, before := range []string{"post", "pre"} {
		for _, r := range rules {
			names = append(names, before+r.event)
		}
	}
	return names
}

// New checks the options. The error names a pattern that cannot be understood.
func New(o Options) (*Rules, error) {
	r := &Rules{
		globs:      o.Events,
		wanted:     make(map[string]bool, len(table)),
		extraLimit: o.ExtraLimit,
		extraKeep:  make(map[string]bool, len(o.ExtraKeep)),
	}
	var err error
	if r.excluded, err = fnmatch.CompileAll(o.ExcludeTags); err != nil {
		return nil, fmt.Errorf("exclude_tags: %w", err)
	}
	if len(r.globs) == 0 {
		r.globs = []string{Protonmsg}
	}
	named := slices.DeleteFunc(slices.Clone(r.globs), func(glob string) bool { return glob == Protonmsg })
	if r.patterns, err = fnmatch.CompileAll(named); err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	if r.extraLimit < 0 {
		r.extraLimit = -r.extraLimit
	}
	if r.extraLimit < 0 { // the one integer without an absolute value
		r.extraLimit = math.MaxInt
	}
	for _, key := range o.ExtraKeep {
		r.extraKeep[key] = true
	}
	for name := range table {
		r.wanted[name] = r.match(name)
	}
	return r, nil
}

// Events are the patterns of the callbacks that become messages, with Protonmsg spelled out: what the hub has
// to collect.
func (r *Rules) Events() []string {
	var patterns []string
	for _, glob := range r.globs {
		if glob != Protonmsg {
			patterns = append(patterns, glob)
			continue
		}
		for _, rule := range rules {
			patterns = append(patterns, "post"+rule.event)
		}
	}
	return patterns
}

// wants reports whether events of this callback become messages.
func (r *Rules) wants(callback string) bool {
	if want, known := r.wanted[callback]; known {
		return want
	}
	// The hub announces its own commit by these two; they tell consumers nothing and carry nothing.
	if callback == "preCommit" || callback == "postCommit" {
		return false
	}
	return r.match(callback)
}

func (r *Rules) match(callback string) bool {
	if t := table[callback]; t != nil && !t.pre && slices.Contains(r.globs, Protonmsg) {
		return true
	}
	return fnmatch.Any(r.patterns, callback)
}

// Translate gives the messages of c in order. It does not block, keeps nothing of c, and is pure: the same
// commit gives the same messages, with the same ids.
func (r *Rules) Translate(c message.Commit) Translation {
	var t Translation
	for _, event := range c.Events {
		m, verdict := r.translate(c.ID, event)
		switch {
		case verdict.skip != "":
			t.Skipped = append(t.Skipped, message.Skipped{Message: m, Reason: verdict.skip})
		case verdict.reason != "":
			t.Undeliverable = append(t.Undeliverable, message.Undeliverable{
				ID:       m.ID,
				Commit:   c.ID,
				Event:    event.Number,
				Callback: event.Callback,
				Kwargs:   bytes.Clone(event.Kwargs),
				Reason:   verdict.reason,
			})
		default:
			if t.Messages == nil {
				t.Messages = make([]message.Message, 0, len(c.Events))
			}
			t.Messages = append(t.Messages, m)
			if verdict.trimmed {
				t.Trimmed++
			}
		}
	}
	return t
}

// Why an event makes no message, as the history tells it.
const (
	NotAskedFor = "[message] events does not ask for it"
	PassedOver  = "not a change of state or not signed; protonmsg passes it over too"
	Excluded    = "[message] exclude_tags names its tag"
)

// verdict says why an event gives no message; the zero value says that it gives one.
type verdict struct {
	skip   string // why it need not give one
	reason string // it should have given one and cannot
	// trimmed: it gives one, without its extra.
	trimmed bool
}

// translate forms one message. The id is set whatever the verdict; of an event that is skipped, what can be
// known without a body.
func (r *Rules) translate(commit string, event message.Event) (message.Message, verdict) {
	m, v := r.form(commit, event)
	if !r.wants(event.Callback) {
		return m, verdict{skip: NotAskedFor}
	}
	return m, v
}

func (r *Rules) form(commit string, event message.Event) (message.Message, verdict) {
	m := message.Message{Commit: commit, Event: event.Number, Callback: event.Callback}
	id, err := MessageID(commit, event.Number)
	if err != nil {
		// DecodeCommit lets no such commit through. A dead letter needs some id, the same at every attempt.
		m.ID = uuid.NewSHA1(uuid.Nil, fmt.Appendf(nil, "%s/%d", commit, event.Number)).String()
		return m, verdict{reason: err.Error()}
	}
	m.ID = id
	rule := table[event.Callback]
	if rule == nil {
		rule = unknown(event.Callback)
	}
	if !utf8.Valid(event.Kwargs) {
		return m, verdict{reason: "kwargs are not valid UTF-8 at byte " + strconv.Itoa(invalidUTF8(event.Kwargs))}
	}
	found, err := rule.find(event.Kwargs)
	if err != nil {
		return m, verdict{reason: err.Error()}
	}
	if rule.skips(&found) {
		m.Props = rule.formProps(&found)
		return m, verdict{skip: PassedOver}
	}
	address, reason := rule.formAddress(&found)
	if reason != "" {
		return m, verdict{reason: "no address: " + reason}
	}
	m.Address = address
	m.Props = rule.formProps(&found)
	if rule.moves && r.excludes(m.Props) {
		return m, verdict{skip: Excluded}
	}
	if !r.wants(event.Callback) {
		return m, verdict{}
	}
	trimmed := r.trims(&found)
	m.Body = r.formBody(rule, event.Kwargs, &found, trimmed)
	return m, verdict{trimmed: trimmed}
}

// Wants reports whether events of this callback become messages.
func (r *Rules) Wants(callback string) bool { return r.wants(callback) }

// Excludes reports whether tag and untag events of this tag make no message.
func (r *Rules) Excludes(tag string) bool { return fnmatch.Any(r.excluded, tag) }

// excludes reports whether the message is about a tag that the administrator excluded.
func (r *Rules) excludes(props []message.Prop) bool {
	i := slices.IndexFunc(props, func(p message.Prop) bool { return p.Key == "tag" })
	tag, ok := props[i].Value.(string)
	return ok && r.Excludes(tag)
}

// trims reports whether extra is longer than extra_limit lets it be.
func (r *Rules) trims(f *found) bool {
	return r.extraLimit > 0 && f.extra != nil && pythonLen(f.extra) > r.extraLimit
}

// formBody is the event's text with protonmsg's two changes.
func (r *Rules) formBody(rule *boundRule, kwargs []byte, f *found, trimmed bool) string {
	if trimmed {
		var b strings.Builder
		b.Grow(len(kwargs) - len(f.extra))
		b.Write(kwargs[:f.build.start])
		r.cutExtra(&b, kwargs[f.build.start:f.build.end])
		b.Write(kwargs[f.build.end:])
		return b.String()
	}
	if rule.taskID && !f.taskID {
		const member = `"task_id": null`
		var b strings.Builder
		b.Grow(len(kwargs) + len(", ") + len(member))
		b.Write(kwargs[:f.end])
		if f.members > 0 {
			b.WriteString(", ")
		}
		b.WriteString(member)
		b.Write(kwargs[f.end:])
		return b.String()
	}
	return string(kwargs)
}

// MessageID is the UUIDv5 of the decimal event number in the namespace of the commit's UUID: the same event
// has the same id by whatever way and however often it comes.
func MessageID(commit string, event int) (string, error) {
	namespace, err := parseUUID(commit)
	if err != nil {
		return "", err
	}
	if event < 0 {
		return "", fmt.Errorf("event number %d is negative", event)
	}
	return uuid.NewSHA1(namespace, strconv.AppendInt(nil, int64(event), 10)).String(), nil
}

// parseUUID accepts the 36-character form alone: uuid.Parse knows three more, which would give one commit
// several spellings in logs and tables.
func parseUUID(s string) (uuid.UUID, error) {
	if len(s) == 36 {
		if id, err := uuid.Parse(s); err == nil {
			return id, nil
		}
	}
	const shown = 64
	if len(s) > shown {
		s = s[:shown] + "…"
	}
	return uuid.Nil, fmt.Errorf("commit %q is not a UUID such as 7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55", s)
}

// invalidUTF8 is the offset of the first byte of text that is not UTF-8.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
	return len(text)
}
