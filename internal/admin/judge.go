package admin

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

const (
	// certificateWarning is how long before its end a certificate degrades the state: two weeks let a ticket
	// to somebody else's department come back in time.
	certificateWarning = 14 * 24 * time.Hour
	// staleAfter is the age of a Status from which on it says nothing about now.
	staleAfter = 30 * time.Second
	// backlogAfter is the age from which on what waits is worth a word: the drain and the reader had their
	// chance.
	backlogAfter = time.Minute
	// brokerDownAfter is how long a broker may be away beside one that is up: a restart of it is no trouble.
	brokerDownAfter = time.Minute
	// outboxOnlyAfter is how long the hub finds the socket unusable before it is worth a word.
	outboxOnlyAfter = 10 * ruleMinute
	// expiresWithin is the part of max_age that is left when a message is about to expire.
	expiresWithin = 4
)

// judge fills in State, Ready and Reasons: the one place where what the relay says of itself is derived.
// Ready answers one question: would a commit handed over at the moment be taken?
func (s *Status) judge(now time.Time) {
	s.Reasons = slices.Concat(s.sending(now), s.storing(), s.waiting(now), s.setUp(now))
	if age := now.Sub(s.Generated); age > staleAfter {
		s.Reasons = append(s.Reasons, Reason{Code: "STALE",
			Text: fmt.Sprintf("what is shown is %s old: the relay is slow to look at itself",
				inspect.Duration(age.Truncate(time.Second)))})
	}
	for i := range s.Reasons {
		s.Reasons[i].Command = s.command(s.Reasons[i].Command)
	}
	s.Ready = s.takes()
	switch s.Phase {
	case Running:
	case Stopping:
		s.Ready = false
		s.Reasons = slices.Insert(s.Reasons, 0, Reason{Code: "STOPPING", Text: "koji-relay is stopping"})
	default:
		s.Ready = false
		s.Reasons = []Reason{{Code: "STARTING", Text: "koji-relay has not started yet"}}
	}
	switch {
	case !s.Ready:
		s.State = NotReady
	case len(s.Reasons) > 0:
		s.State = Degraded
	default:
		s.State = OK
		s.Reasons = []Reason{}
	}
}

// command makes a command one that means this relay, where there are several or its file is at another place.
func (s *Status) command(text string) string {
	if s.Config.Option != "" && strings.HasPrefix(text, "koji-relay ") {
		return text + " " + s.Config.Option
	}
	return strings.Replace(text, "-u koji-relay ", "-u "+s.unit()+" ", 1)
}

func (s *Status) unit() string { return cmp.Or(s.Unit, "koji-relay") }

// Summary is a judged Status in a word and a sentence: the first line of the page, of 'koji-relay status',
// and what systemd shows.
func (s *Status) Summary() (word, sentence string) {
	switch {
	case s.Phase == Stopping:
		return "Stopping", "Commits are handed back to the hub."
	case s.Phase != Running:
		return "Starting", "Commits are not taken yet."
	case s.State == NotReady:
		return "Not ready", "Commits are handed back to the hub."
	case s.HandOver.HandedBack.Events > 0:
		return "Ready, with problems", "Some commits are handed back to the hub."
	case !s.stores():
		return s.word(), "What a broker takes is taken; the rest is handed back to the hub."
	case s.State == Degraded:
		return s.word(), "Every commit is taken."
	case s.untried():
		return s.word(), "Every commit is taken. No message has been tried since the broker was connected."
	}
	return s.word(), "Every commit is taken and sent."
}

func (s *Status) word() string {
	if s.State == OK {
		return "All is well"
	}
	return "Ready, with problems"
}

// takes reports whether a commit would be sent or stored.
func (s *Status) takes() bool {
	sends := s.sends() && !s.Paused.Publish
	if s.Queue.Enabled && !s.Queue.Usable && s.Queue.Ordered {
		sends = false // what would be overtaken cannot be seen
	}
	return sends || s.stores()
}

// stores reports whether what no broker takes would be kept.
func (s *Status) stores() bool { return s.Queue.Enabled && s.Queue.Usable && !s.Queue.Full }

func (s *Status) sends() bool {
	return slices.ContainsFunc(s.Brokers, func(b inspect.Broker) bool { return b.State == inspect.Up })
}

// untried reports whether no broker that is up has answered a message: one without credit or with an alarm
// may let us in all the same.
func (s *Status) untried() bool {
	return !slices.ContainsFunc(s.Brokers, func(b inspect.Broker) bool {
		return b.State == inspect.Up && !b.Untried
	})
}

// sending gives the reasons why messages do not go out at once.
func (s *Status) sending(now time.Time) (all []Reason) {
	if !s.sends() {
		text, command := "no broker is up", "koji-relay check --connect"
		if slices.ContainsFunc(s.Brokers, func(b inspect.Broker) bool { return b.Untried }) { // it is stalled
			text, command = "no broker has answered since it went silent", "koji-relay send-test"
		}
		if s.stores() {
			text += "; messages wait in the queue"
		}
		all = append(all, Reason{Code: "NO_BROKER", Text: text, Command: command})
	} else if missing, since := s.missing(now); len(missing) > 0 {
		all = append(all, Reason{Code: "BROKER_DOWN", Since: since,
			Text:    strings.Join(missing, "; ") + "; another broker takes the messages",
			Command: "koji-relay check --connect"})
	}
	if s.Paused.Publish {
		all = append(all, Reason{Code: "PAUSED", Text: "sending is paused", Command: "koji-relay resume --publish"})
	} else if s.Paused.Drain {
		all = append(all, Reason{Code: "DRAIN_PAUSED", Text: "the queue is not drained",
			Command: "koji-relay resume"})
	}
	return all
}

// missing says of each broker that has not been up for a while what it is, and why; and since when one is so.
func (s *Status) missing(now time.Time) (all []string, since time.Time) {
	for i := range s.Brokers {
		b := &s.Brokers[i]
		if b.State == inspect.Up || seconds(now, b.Since) < brokerDownAfter.Seconds() {
			continue
		}
		text := fmt.Sprintf("broker %s has been %s for %s", b.Name, b.State, inspect.Age(now, b.Since))
		if b.Reason != "" {
			text += ": " + b.Reason
		}
		all = append(all, text)
		if since.IsZero() || b.Since.Before(since) {
			since = b.Since
		}
	}
	return all, since
}

// storing gives the reasons why what no broker takes is not kept.
func (s *Status) storing() (all []Reason) {
	switch q := s.Queue; {
	case !q.Enabled && (!s.sends() || s.Paused.Publish):
		all = append(all, Reason{Code: "QUEUE_OFF",
			Text: "[queue] enabled = off: what no broker takes is handed back to the hub"})
	case q.Enabled && !q.Usable:
		command := "koji-relay check --connect"
		if q.Path != "" {
			command = "df -h " + filepath.Dir(q.Path)
		}
		all = append(all, Reason{Code: "STORE_UNUSABLE",
			Text: fmt.Sprintf("the %s store cannot be used: %s", q.Store, q.Error), Command: command})
	case q.Enabled && q.Full:
		all = append(all, Reason{Code: "QUEUE_FULL", Count: q.Depth,
			Text: fmt.Sprintf("the queue holds %s and max_bytes is %s", inspect.Size(q.Bytes),
				inspect.Size(q.MaxBytes)),
			Command: "koji-relay queue status"})
	}
	if h := s.HandOver.HandedBack; h.Events > 0 {
		all = append(all, Reason{Code: "HANDED_BACK", Count: h.Events,
			Text: fmt.Sprintf("%s handed back to the hub, the last at %s UTC", inspect.Count(h.Events, "event"),
				h.Last.UTC().Format(time.TimeOnly)),
			Command: "journalctl -u koji-relay -p err"})
	}
	if s.Outbox.Error != "" {
		all = append(all, Reason{Code: "OUTBOX_UNREADABLE",
			Text: "events of the outbox are not taken: " + s.Outbox.Error, Command: "koji-relay check --connect"})
	}
	return all
}

// waiting gives the reasons for which messages wait that were handed over.
func (s *Status) waiting(now time.Time) (all []Reason) {
	q := s.Queue
	if q.SetAside > 0 {
		all = append(all, Reason{Code: "TURNED_AWAY", Count: q.SetAside, Text: q.turnedAway(),
			Command: "koji-relay queue list"})
	}
	if n := q.Depth - q.SetAside; n > 0 && s.sends() && seconds(now, q.Oldest) > backlogAfter.Seconds() {
		all = append(all, Reason{Code: "BACKLOG", Count: n,
			Text: fmt.Sprintf("%s in the queue, the oldest for %s", inspect.Count(n, "message"),
				inspect.Age(now, q.Oldest)),
			Command: "koji-relay queue status"})
	}
	if left := s.Outlook.Expires.Sub(now); !s.Outlook.Expires.IsZero() && left < q.MaxAge/expiresWithin {
		all = append(all, Reason{Code: "EXPIRES_SOON", Text: "the oldest message is given up in " +
			inspect.Duration(max(0, left.Truncate(time.Second))) + ", when it is older than max_age",
			Command: "koji-relay queue status"})
	}
	if h := &s.HandOver; h.onlyFor() >= outboxOnlyAfter {
		all = append(all, Reason{Code: "OUTBOX_ONLY", Count: h.Fallback,
			Text: fmt.Sprintf("for %s every commit has come by the outbox; the hub says of the socket: %s",
				inspect.Duration(h.onlyFor().Truncate(time.Second)), h.OnlyOutbox.Why),
			Command: "ls -l " + h.Path})
	}
	if o := s.Outbox; o.Depth > 0 && seconds(now, o.Oldest) > backlogAfter.Seconds() {
		all = append(all, Reason{Code: "OUTBOX_BACKLOG", Count: o.Depth,
			Text: fmt.Sprintf("%s in the outbox, the oldest for %s", inspect.Count(o.Depth, "event"),
				inspect.Age(now, o.Oldest)),
			Command: "koji-relay queue status"})
	}
	if names, held := s.Outbox.away(); len(names) > 0 {
		all = append(all, Reason{Code: "READER_AWAY", Count: held,
			Text: fmt.Sprintf("nobody reads the outbox for %s; %s held for it until max_age",
				strings.Join(names, ", "), inspect.Count(held, "event")),
			Command: "koji-relay outbox readers"})
	}
	if q.DeadLetters > 0 {
		all = append(all, Reason{Code: "DEAD_LETTERS", Count: q.DeadLetters,
			Text:    inspect.Count(q.DeadLetters, "dead letter") + " to decide on: retry or drop",
			Command: "koji-relay dead list"})
	}
	return all
}

// turnedAway says how many messages are set aside, and what most of them met with.
func (q *Queue) turnedAway() string {
	text := fmt.Sprintf("brokers turned away %s; each is tried again", inspect.Count(q.SetAside, "message"))
	const most = 200
	switch reason := inspect.Line(q.AsideReason, most); {
	case reason == "":
		return text
	case q.AsideFor >= q.SetAside:
		return text + ". The reason: " + reason
	default:
		return fmt.Sprintf("%s. The reason of %d: %s", text, q.AsideFor, reason)
	}
}

// away gives the readers that nobody reads for, and how many events the outbox holds for them at the most.
func (o *Outbox) away() (names []string, held int64) {
	for _, r := range o.Readers {
		if r.Away {
			names = append(names, r.Shown())
			held = max(held, r.Depth)
		}
	}
	return names, held
}

// setUp gives what is wrong with configuration and certificates.
func (s *Status) setUp(now time.Time) (all []Reason) {
	if r := s.Config.Reload; !r.Time.IsZero() && !r.OK {
		all = append(all, Reason{Code: "RELOAD_FAILED", Command: "koji-relay check",
			Text: "the configuration file has errors; the one read before stays in effect"})
	}
	for _, c := range s.certificates() {
		day := c.Expires.UTC().Format(time.DateOnly)
		switch left := c.Expires.Sub(now); {
		case left <= 0:
			all = append(all, Reason{Code: "CERTIFICATE_EXPIRED", Command: c.command,
				Text: fmt.Sprintf("the certificate of %s expired on %s", c.Name, day)})
		case left < certificateWarning:
			all = append(all, Reason{Code: "CERTIFICATE_EXPIRES", Command: c.command,
				Text: fmt.Sprintf("the certificate of %s expires on %s", c.Name, day)})
		}
	}
	return all
}

// certificates are those of files and of connections. Ours at a broker is named where it is another one than
// that of the file.
func (s *Status) certificates() (all []namedCertificate) {
	known := make(map[int64]bool)
	for _, c := range s.Certificates {
		known[c.Expires.Unix()] = true
		all = append(all, namedCertificate{"[broker] " + c.Name, c.Expires, "koji-relay check"})
	}
	const command = "koji-relay check --connect"
	for i := range s.Brokers {
		b := &s.Brokers[i]
		if !b.CertExpires.IsZero() {
			all = append(all, namedCertificate{"broker " + b.Name, b.CertExpires, command})
		}
		if !b.ClientCertExpires.IsZero() && !known[b.ClientCertExpires.Unix()] {
			all = append(all, namedCertificate{"the client at broker " + b.Name, b.ClientCertExpires, command})
		}
	}
	return all
}

type namedCertificate struct {
	Name    string
	Expires time.Time
	command string
}

// since knows when each reason was first seen. Its zero value is ready to use; it is not safe for concurrent
// use.
type since map[string]time.Time

// note takes the reasons of a look, and forgets those that are over.
func (s since) note(reasons []Reason, now time.Time) since {
	next := make(since, len(reasons))
	for _, r := range reasons {
		next[r.Code] = now
		if before, ok := s[r.Code]; ok {
			next[r.Code] = before
		}
	}
	return next
}
