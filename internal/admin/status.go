package admin

import (
	"fmt"
	"koji-relay/internal/inspect"
	"slices"
	"time"
)

// Status is everything an administrator can see, as /status gives it in JSON. The daemon fills in what it knows
// and sends texts that are already masked; State, Ready, Reasons, UptimeSeconds, Rates, Minutes and Recent are
// added here. Times that are not known are zero and left out.
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
	Brokers     []inspect.Broker `json:"brokers"`
	Queue       Queue            `json:"queue"`
	Outbox      Outbox           `json:"outbox"`
	Rates       Rates            `json:"rates"`
	Minutes     []Minute         `json:"minutes"`      // the last hour, oldest first
	Recent      []Fate           `json:"recent"`       // newest first
	DeadLetters []inspect.Item   `json:"dead_letters"` // the newest

	Certificates []Certificate `json:"certificates"`
	LogLevel     string        `json:"log_level,omitempty"`
	Config       Config        `json:"config"`
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
	Code string `json:"code"` // stable, for programs
	Text string `json:"text"` // for a person, with the remedy where there is one
}

// Paused says what an administrator has halted.
type Paused struct {
	Drain   bool `json:"drain"`   // the queue is not drained
	Publish bool `json:"publish"` // nothing is sent at all; commits are queued
}

// Queue is the state of the durable queue.
type Queue struct {
	Enabled bool   `json:"enabled"`
	Store   string `json:"store"`           // postgres or file
	Usable  bool   `json:"usable"`          // a put would be committed
	Error   string `json:"error,omitempty"` // why it is not usable
	// Ordered is [queue] preserve_order: nothing is sent while the queue cannot be looked at.
	Ordered bool `json:"preserve_order"`
	// Known says that the numbers below were read. They are zero otherwise.
	Known bool `json:"known"`

	inspect.Statistics
	MaxBytes int64 `json:"max_bytes,omitempty"`
}

// Outbox is the table in the hub's database of events that did not come over the socket.
type Outbox struct {
	Known  bool      `json:"known"` // the numbers were read; there is no outbox without the Postgres store
	Depth  int64     `json:"depth"` // events
	Oldest time.Time `json:"oldest,omitzero"`
	Error  string    `json:"error,omitempty"`
}

// Certificate is one certificate in use.
type Certificate struct {
	Name    string    `json:"name"` // the key that names its file: cert or cacert
	Subject string    `json:"subject,omitempty"`
	Expires time.Time `json:"expires"`
}

// Config is the configuration in effect.
type Config struct {
	Path     string    `json:"path"`
	Loaded   time.Time `json:"loaded,omitzero"` // when the configuration in effect was read
	Settings []Setting `json:"settings"`
	Warnings []string  `json:"warnings,omitempty"`
	// Reload is the last attempt to read it again; zero when there was none.
	Reload Reload `json:"reload,omitzero"`
}

// Setting is one key with its effective value, secrets masked.
type Setting struct {
	Section string `json:"section"`
	Key     string `json:"key"`
	Value   string `json:"value"`
	Source  string `json:"source"` // file:line, or "default"
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

const (
	// certificateWarning is how long before its end a certificate degrades the state: two weeks let a ticket
	// to somebody else's department come back in time.
	certificateWarning = 14 * 24 * time.Hour
	// staleAfter is the age of a Status from which on it says nothing about now.
	staleAfter = 30 * time.Second
)

// judge fills in State, Ready and Reasons. Ready answers one question: would a commit handed over at the moment
// be taken?
func (s *Status) judge(now time.Time) {
	s.Reasons = []Reason{}
	add := func(code, format string, args ...any) {
		s.Reasons = append(s.Reasons, Reason{Code: code, Text: fmt.Sprintf(format, args...)})
	}
	sends := slices.ContainsFunc(s.Brokers, func(b inspect.Broker) bool { return b.State == inspect.Up })
	if !sends {
		add("NO_BROKER", "no broker is up; messages wait in the queue")
	}
	if s.Paused.Publish {
		sends = false
		add("PAUSED", "sending is paused; run 'koji-relay resume --publish' to go on")
	} else if s.Paused.Drain {
		add("DRAIN_PAUSED", "the queue is not drained; run 'koji-relay resume' to go on")
	}
	stores := s.Queue.Enabled && s.Queue.Usable
	switch q := s.Queue; {
	case !q.Enabled && !sends:
		add("QUEUE_OFF", "[queue] enabled = off: what no broker takes is handed back to the hub")
	case q.Enabled && !q.Usable:
		add("STORE_UNUSABLE", "the %s store cannot be used: %s", q.Store, q.Error)
		sends = sends && !q.Ordered
	case q.Enabled && q.MaxBytes > 0 && q.Bytes >= q.MaxBytes:
		stores = false
		add("QUEUE_FULL", "the queue holds %d bytes and max_bytes is %d", q.Bytes, q.MaxBytes)
	}
	if s.Outbox.Error != "" {
		add("OUTBOX_UNREADABLE", "the outbox cannot be read: %s", s.Outbox.Error)
	}
	if r := s.Config.Reload; !r.Time.IsZero() && !r.OK {
		add("RELOAD_FAILED", "the configuration file has errors; the one read before stays in effect")
	}
	for _, c := range s.Certificates {
		switch left := c.Expires.Sub(now); {
		case left <= 0:
			add("CERTIFICATE_EXPIRED", "the certificate of %s expired on %s", c.Name, c.Expires.UTC().Format(time.DateOnly))
		case left < certificateWarning:
			add("CERTIFICATE_EXPIRES", "the certificate of %s expires on %s", c.Name, c.Expires.UTC().Format(time.DateOnly))
		}
	}
	if age := now.Sub(s.Generated); age > staleAfter {
		add("STALE", "what is shown is %s old: the relay is slow to look at itself", age.Round(time.Second))
	}
	s.Ready = sends || stores
	switch s.Phase {
	case Running:
	case Stopping:
		s.Ready = false
		s.Reasons = slices.Insert(s.Reasons, 0, Reason{"STOPPING", "koji-relay is stopping"})
	default:
		s.Ready = false
		s.Reasons = []Reason{{"STARTING", "koji-relay has not started yet"}}
	}
	switch {
	case !s.Ready:
		s.State = NotReady
	case len(s.Reasons) > 0:
		s.State = Degraded
	default:
		s.State = OK
	}
}
