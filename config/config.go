// Package config reads protonmsg.conf into a complete, validated, printable Config.
//
// It promises that a file which Koji's protonmsg plugin could read means the same here (the parser's rules
// are Python ConfigParser's), that every mistake is reported at once with file and line, and that nothing it
// prints holds a password. It never connects to anything, and it changes nothing.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

// DefaultPath is where the hub's protonmsg plugin had its configuration.
const DefaultPath = "/etc/koji-hub/plugins/protonmsg.conf"

// Config is one configuration file with every default filled in. Each field is the key of the same name,
// described once in the table of keys. It is not modified once loaded and may be shared.
type Config struct {
	Path    string
	Broker  Broker
	Message Message
	Queue   Queue
	History History
	Relay   Relay
	// Warnings are what does not keep the relay from running but is not as its author meant it: unknown and
	// retired names, parts without effect.
	Warnings []Problem

	settings []inspect.Setting
	places   []place // of each setting; the zero value for a default
}

// Broker is the section [broker].
type Broker struct {
	URLs                   []BrokerURL // in order of preference, at least one
	Cert, Key, CACert      string      // paths; empty = none
	LegacyTLS              bool
	TopicPrefix            string
	VirtualHost            string // for URLs without one; empty = the broker's default
	ConnectTimeout         time.Duration
	SendTimeout            time.Duration
	TestMode               bool
	TestModeFail           int // percent
	URLOrder               string
	Dialect                string
	SASL                   string
	UserFile, PasswordFile string // paths; empty = none
	Unroutable             string
	IdleTimeout            time.Duration
}

// Message is the section [message].
type Message struct {
	ExtraLimit  int // counted characters; 0 = no limit; never negative
	ExtraKeep   []string
	TTL         time.Duration // 0 = none
	Events      []string      // globs of callback names, or the one word "protonmsg"
	ExcludeTags []string      // globs of tag names
	Durable     bool
	Priority    uint8
	BodySection string
}

// Queue is the section [queue].
type Queue struct {
	Enabled       bool
	Store         string
	Database      ConnString // HubDatabase, or how to connect
	Path          string
	BatchSize     int
	BatchBytes    int64
	MaxAge        time.Duration
	retiredAge    time.Duration // the key "age"; 0 = absent
	Expired       string
	DeadMaxAge    time.Duration
	MaxBytes      int64 // 0 = no bound
	PreserveOrder bool
	MaxAttempts   int
	Interval      time.Duration
	StoreTimeout  time.Duration
	RateLimit     int // messages a second; 0 = none
}

// History is the section [history].
type History struct {
	Keep     time.Duration // 0 = off
	MaxBytes int64
	Store    string
	Path     string // of a directory
}

// HistoryDir gives the directory of a history in files, by itself or because the queue is one; else the empty
// string.
func (c *Config) HistoryDir() string {
	switch {
	case c.History.Store == StoreFile:
		return c.History.Path
	case c.Queue.Store == StoreFile:
		return c.Queue.Path + ".history"
	}
	return ""
}

// HistoryKept reports whether there is a history. Where the queue is off, it must have a store of its own.
func (c *Config) HistoryKept() bool {
	return c.History.Keep > 0 && (c.Queue.Enabled || c.History.Store == StoreFile)
}

// Relay is the section [relay].
type Relay struct {
	Name             string // of the reader of the outbox; empty for the one without a name
	Socket           string
	SocketGroup      string // empty = none
	SocketMode       uint32
	Control          string
	Admin            string // loopback host:port; empty = off
	HandoffTimeout   time.Duration
	MaxRequestBytes  int64
	MaxInflightBytes int64
	LogLevel         string
	LogFormat        string
}

// Values of the keys that choose among words. The words are those of the file.
const (
	OrderListed, OrderRandom           = "listed", "random"
	StorePostgres, StoreFile           = "postgres", "file"
	StoreQueue                         = "queue" // of the history: that of the queue
	Drop, Enqueue, DeadLetter          = "drop", "queue", "dead_letter"
	SectionValue, SectionData          = "value", "data"
	SASLPlain, SASLExternal, SASLAnon  = "plain", "external", "anonymous"
	LogText, LogJSON, LogJournal, Auto = "text", "json", "journal", "auto"
)

// Problem is one thing wrong at one place of a file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // from 1; 0 = the file as a whole
	Section string `json:"section,omitempty"`
	Key     string `json:"key,omitempty"`
	Value   string `json:"value,omitempty"` // as written, secrets masked
	Text    string `json:"text"`            // what is wrong; remedy
}

// String is the one line shown to an administrator.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Section != "" {
		fmt.Fprintf(&b, "[%s]", p.Section)
		if p.Key != "" {
			b.WriteString(" " + p.Key)
		}
		if p.Value != "" {
			b.WriteString(" = " + oneLine(p.Value))
		}
		b.WriteString(": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// oneLine keeps a value of several lines, or a very long one, from hiding the text behind it.
func oneLine(value string) string {
	const limit = 120
	value = strings.Join(strings.Fields(value), " ")
	if len(value) > limit {
		value = strings.ToValidUTF8(value[:limit], "") + "..."
	}
	return value
}

// Error is everything wrong with a configuration, in the order of the file.
type Error struct {
	Problems []Problem
	Warnings []Problem
}

// Error gives one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads the file (or, as Koji does, every *.conf of a directory) and checks each value and how the
// values go together. A file that cannot be read gives the operating system's error, wrapped; a file with
// mistakes gives an *Error. The files that the configuration names are looked at by Verify.
func Load(path string) (*Config, error) {
	doc, err := readDocument(path)
	if err != nil {
		return nil, err
	}
	return fromDocument(path, doc)
}

func fromDocument(path string, doc *document) (*Config, error) {
	c := &Config{Path: path}
	r := &reading{config: c, doc: doc, problems: slices.Clone(doc.problems), wrong: map[string]bool{}}
	if !doc.unread {
		r.readKeys()
		r.warnUnknown()
		r.crossCheck()
	}
	sortProblems(r.problems, doc.files)
	sortProblems(c.Warnings, doc.files)
	if len(r.problems) > 0 {
		return nil, &Error{Problems: r.problems, Warnings: c.Warnings}
	}
	c.effective()
	return c, nil
}

func sortProblems(problems []Problem, files []string) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(slices.Index(files, a.File), slices.Index(files, b.File)),
			cmp.Compare(a.Line, b.Line))
	})
}

// reading is one pass over a document.
type reading struct {
	config   *Config
	doc      *document
	problems []Problem
	wrong    map[string]bool // "section.key" of values that could not be taken
}

// readKeys takes every key of the table from the document, or its default.
func (r *reading) readKeys() {
	for i := range keys {
		k := &keys[i]
		e := r.doc.lookup(k.section, k.name)
		switch {
		case e != nil:
			r.readEntry(k, e)
		case k.required:
			r.problems = append(r.problems, r.missing(k))
			r.wrong[k.id()] = true
		case k.inUse():
			if err := k.set(r.config, k.def); err != nil && k.def != "" {
				panic(fmt.Sprintf("default of [%s] %s: %v", k.section, k.name, err))
			}
			r.config.add(k.setting(k.def, place{}), place{})
		}
	}
}

func (r *reading) readEntry(k *key, e *entry) {
	p := Problem{File: e.place.file, Line: e.place.line, Section: k.section, Key: k.name}
	if k.gone != "" {
		p.Value, p.Text = k.show(e.raw), "retired, not read; "+k.gone
		r.config.Warnings = append(r.config.Warnings, p)
		return
	}
	value, err := r.doc.expand(k.section, e)
	if err != nil {
		// The raw text: it is what the administrator has to change.
		p.Value, p.Text = k.show(e.raw), err.Error()
		r.problems = append(r.problems, p)
		r.wrong[k.id()] = true
		return
	}
	p.Value = k.show(value)
	if k.retired != "" {
		p.Text = "retired; write " + k.retired + " instead"
		if successor := r.doc.lookup(k.section, k.retired); successor != nil {
			p.Text = fmt.Sprintf("retired; remove it, for %s stands on line %d", k.retired, successor.place.line)
		}
		r.config.Warnings = append(r.config.Warnings, p)
	}
	value = strings.TrimFunc(value, isSpace) // it may begin on the line below its key
	if err = oneLineOnly(k, value); err == nil {
		err = k.set(r.config, value)
	}
	if err != nil {
		r.refuse(p, err)
		r.wrong[k.id()] = true
		return
	}
	if k.warn != nil {
		r.config.Warnings = append(r.config.Warnings, p.each(k.warn(value))...)
	}
	if k.inUse() {
		r.config.add(k.setting(value, e.place), e.place)
	}
}

// oneLineOnly catches a setting that was indented by mistake: Python makes it a part of the one above.
func oneLineOnly(k *key, value string) error {
	if !k.lines && strings.Contains(value, "\n") {
		return bad("goes on in the next line, because that is indented; remove the space before it if it is a " +
			"setting of its own")
	}
	return nil
}

// refuse adds a problem for each thing that a setter found.
func (r *reading) refuse(p Problem, err error) {
	var several valueErrors
	if !errors.As(err, &several) {
		several = append(several, nil)
		if !errors.As(err, &several[0]) {
			several[0] = &valueError{text: err.Error()}
		}
	}
	if afterValue.MatchString(p.Value) {
		several[len(several)-1].text += "; a comment after a value is a part of it"
	}
	r.problems = append(r.problems, p.each(several)...)
}

// afterValue finds what looks like a comment behind a value, where it is a part of that.
var afterValue = regexp.MustCompile(`\s[#;]`)

// each is p for each thing that was found about its value.
func (p Problem) each(found valueErrors) []Problem {
	problems := make([]Problem, len(found))
	for i, e := range found {
		problems[i] = p
		problems[i].Text = e.text
		if e.part != "" {
			problems[i].Value = e.part
		}
	}
	return problems
}

func (r *reading) missing(k *key) Problem {
	p := Problem{File: r.doc.lastFile(), Section: k.section, Key: k.name,
		Text: "missing; add a line such as: " + k.name + " = " + k.sample}
	if s := r.doc.section(k.section); s != nil {
		p.File, p.Line = s.place.file, s.place.line
	} else {
		p.Text = fmt.Sprintf("missing, and so is its section; add [%s] and a line such as: %s = %s", k.section,
			k.name, k.sample)
	}
	return p
}
