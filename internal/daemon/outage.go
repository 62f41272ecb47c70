package daemon

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"koji-relay/internal/retry"
)

// refusals logs that events are refused: the cause once, another cause once, and the end with counts. It may
// be used concurrently.
type refusals struct {
	log *slog.Logger

	mu              sync.Mutex // guards the fields below
	trouble         retry.Trouble
	began, last     time.Time
	commits, events int
}

// settledAfter is the time without a refusal after which a commit that needed no store ends an outage.
const settledAfter = 10 * time.Second

// refused notes a commit with events that were neither sent nor stored.
func (r *refusals) refused(commit string, events int, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.commits == 0 {
		r.began = time.Now()
	}
	r.last = time.Now()
	r.commits++
	r.events += events
	if r.trouble.FailedBy(root(cause)) {
		r.log.Error("events are refused, the hub keeps them: neither sent nor stored", "commit", commit,
			"events", events, "error", oneLine(cause))
	}
}

// taken notes a commit that was taken as a whole; stored says that the store proved that it works.
func (r *refusals) taken(stored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !stored && time.Since(r.last) < settledAfter {
		return
	}
	if refused, _ := r.trouble.Over(); refused == 0 {
		return
	}
	r.log.Info("events are taken again", "refused_commits", r.commits, "refused_events", r.events,
		"after", time.Since(r.began).Round(time.Second))
	r.commits, r.events = 0, 0
}

// root is the innermost cause that is a text for a person: what stands around it names the commit, which is
// another one each time.
func root(err error) string {
	var told interface{ Cause() string }
	if errors.As(err, &told) {
		return told.Cause()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return retry.Cause(err)
		}
		err = inner
	}
}

// oneLine is the text of err in one line. A database's errors may have several.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// brokerless logs that no broker is up, and when one is again. It may be used concurrently.
type brokerless struct {
	log *slog.Logger

	mu    sync.Mutex // guards the fields below
	since time.Time  // zero while a broker is up
	told  bool
}

// brokerlessGrace is how long no broker may be up without a word: at a start, or while one is restarted.
const brokerlessGrace = 5 * time.Second

// look is told the names of all brokers, the one that is used (empty for none), and whether messages are
// stored.
func (b *brokerless) look(all []string, used string, stores bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if used != "" {
		if b.told {
			b.log.Info("a broker is up again", "broker", used, "after", time.Since(b.since).Round(time.Second))
		}
		b.since, b.told = time.Time{}, false
		return
	}
	if b.since.IsZero() {
		b.since = time.Now()
	}
	if len(all) == 0 || b.told || time.Since(b.since) < brokerlessGrace {
		return
	}
	b.told = true
	text := "no broker is up, and no message can be stored: commits are handed back to the hub"
	if stores {
		text = "no broker is up: messages are kept in the queue until one is"
	}
	b.log.Error(text, "brokers", strings.Join(all, " "))
}
