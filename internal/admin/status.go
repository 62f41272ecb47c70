package admin

import (
	"time"

	"koji-relay/internal/inspect"
)

// Status is everything an administrator can see, as /status gives it in JSON. The daemon fills in what it
// knows and sends texts that are already masked; State, Ready, Reasons, UptimeSeconds, Outlook, Rates,
// Minutes, Recent and the counts of HandOver are added here. Times that are not known are zero and left
// out.
type Status struct {
	Version       string    `json:"version"`
	Host          string    `json:"host,omitempty"`
	Generated     time.Time `json:"generated"` // when the daemon looked; zero is replaced by now
	Started       time.Time `json:"started"`
	UptimeSeconds float64   `json:"uptime_seconds"`
	Phase         Phase     `json:"phase"`

	State   State    `json:"state"`
	Ready   bool     `json:"ready"`
	Reasons []Reason `json:"reasons"` // why State is not ok

	Paused      Paused           `json:"paused"`
	HandOver    HandOver         `json:"hand_over"`
	Brokers     []inspect.Broker `json:"brokers"`
	Queue       Queue            `json:"queue"`
	Outbox      Outbox           `json:"outbox"`
	Outlook     Outlook          `json:"outlook"`
	Rates       Rates            `json:"rates"`
	Minutes     []Minute         `json:"minutes"`      // the last hour, oldest first
	Recent      []Fate           `json:"recent"`       // newest first
	DeadLetters []inspect.Item   `json:"dead_letters"` // the newest

	Certificates []Certificate `json:"certificates"`
	LogLevel     string        `json:"log_level,omitempty"`
	Config       Config        `json:"config"`

	// Unit is the name of the relay's systemd unit, for commands to copy; empty = koji-relay.
	Unit string `json:"-"`
}

// Phase is where the daemon is in its life.
type Phase string

// The phases; the zero value counts as Starting.
const (
	Starting Phase = "starting"
	Running  Phase = "running"
	Stopping Phase = "stopping"
)

// State sums up a Status in one word.
type State string

// OK: nothing to do. Degraded: every commit is still taken, but something wants attention. NotReady: a commit
// handed over now would be refused.
const (
	OK       State = "ok"
	Degraded State = "degraded"
	NotReady State = "not_ready"
)

// Reason is one cause of a State that is not OK.
type Reason struct {
	Code    string    `json:"code"`              // stable, for programs
	Text    string    `json:"text"`              // for a person
	Count   int64     `json:"count,omitempty"`   // of messages, events or dead letters, where it is about those
	Since   time.Time `json:"since,omitzero"`    // when it was first seen without a break
	Command string    `json:"command,omitempty"` // shows more of it, or ends it
}

// Paused says what an administrator has halted.
type Paused struct {
	Drain   bool `json:"drain"`   // the queue is not drained
	Publish bool `json:"publish"` // nothing is sent at all; commits are queued
}

// Queue is the state of the durable queue.
type Queue struct {
	Enabled bool   `json:"enabled"`
	Store   string `json:"store"`          // postgres or file
	Path    string `json:"path,omitempty"` // of the file
	// a put would be committed, by the last one and by a probe that writes
	Usable bool   `json:"usable"`
	Full   bool   `json:"full"`            // a put would not fit into max_bytes
	Error  string `json:"error,omitempty"` // why it is not usable
	// Ordered is [queue] preserve_order: nothing is sent while the queue cannot be looked at.
	Ordered bool `json:"preserve_order"`
	// Known says that the numbers below were read. They are zero otherwise.
	Known bool `json:"known"`

	// Drainer is who drains at the moment; nil where it is not known. Between two passes it is nobody.
	Drainer *inspect.Holder `json:"drainer,omitempty"`

	inspect.Statistics
	MaxBytes int64 `json:"max_bytes,omitempty"`
	// MaxAge is [queue] max_age: older messages are given up.
	MaxAge time.Duration `json:"-"`
}

// Outbox is the table in the hub's database of events that did not come over the socket.
type Outbox struct {
	Known  bool      `json:"known"` // the numbers were read; there is no outbox without the Postgres store
	Depth  int64     `json:"depth"` // events that this relay, or one of its name, is to take
	Oldest time.Time `json:"oldest,omitzero"`
	Error  string    `json:"error,omitempty"`
	// Readers are all readers of the outbox, where there are several.
	Readers []inspect.Reader `json:"readers,omitempty"`
	// Reader is who reads it; nil where that is not known.
	Reader *inspect.Holder `json:"reader,omitempty"`
}

// Certificate is one certificate in use.
type Certificate struct {
	Name    string    `json:"name"` // the key that names its file: cert or cacert
	Subject string    `json:"subject,omitempty"`
	Expires time.Time `json:"expires"`
}

// Config is the configuration in effect.
type Config struct {
	Path string `json:"path"`
	// Option is what a command needs to mean this relay: --config with a path that is not the default one.
	Option   string            `json:"-"`
	Loaded   time.Time         `json:"loaded,omitzero"` // when the configuration in effect was read
	Settings []inspect.Setting `json:"settings"`
	Warnings []string          `json:"warnings,omitempty"`
	// Reload is the last attempt to read it again; zero when there was none.
	Reload Reload `json:"reload,omitzero"`
}

// Reload is the result of reading the configuration again.
type Reload struct {
	Time    time.Time `json:"time"`
	OK      bool      `json:"ok"`
	Errors  []string  `json:"errors,omitempty"`  // with OK false: the old configuration stays in effect
	Changed []string  `json:"changed,omitempty"` // keys that took effect
	// NeedRestart are the keys that changed in the file and take effect at the next start only.
	NeedRestart []string `json:"need_restart,omitempty"`
}
