package daemon

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// wantLines fails unless the log has just these lines, each given by parts of it.
func wantLines(t *testing.T, log string, want ...[]string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines are logged, want %d:\n%s", len(lines), len(want), log)
	}
	for i, parts := range want {
		for _, part := range parts {
			if !strings.Contains(lines[i], part) {
				t.Errorf("line %d has no %q:\n%s", i, part, lines[i])
			}
		}
	}
}

func TestRefusalsAreToldOnceForEachCauseAndWithTheirEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, text := logged()
		r := &refusals{log: log}
		r.taken(true)
		down := errors.New("connect: connection refused\n\tto 10.0.0.1")
		for n := range 50 { // what is around the cause differs from commit to commit
			r.refused("c", 2, fmt.Errorf("put %d messages in koji: %w", n, down))
			r.taken(false) // one that needed no store
			pass(100 * time.Millisecond)
		}
		r.refused("c", 3, errors.New("the queue is full"))
		pass(time.Minute)
		r.taken(true)
		r.taken(true)
		wantLines(t, text.String(),
			[]string{"level=ERROR", "put 0 messages in koji: connect: connection refused to 10.0.0.1"},
			[]string{"level=ERROR", "the queue is full"},
			[]string{"level=INFO", "taken again", "refused_commits=51", "refused_events=103", "after=1m5s"})
	})
}

// The driver has several errors for one cause, and a commit that is refused is of another size each time.
func TestRefusalsOfOneTextAreOneCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, text := logged()
		r := &refusals{log: log}
		for n := range 50 {
			inner := plainError{"no answer in time", fmt.Errorf("variant %d", n%3)}
			r.refused("c", 2, fmt.Errorf("put %d messages in koji: %w: %w", n, errors.New("read-only"), inner))
			r.refused("c", 2, fmt.Errorf("put %d messages in koji: %w", n, inner))
		}
		wantLines(t, text.String(), []string{"level=ERROR", "no answer in time"})
	})
}

// plainError is an error with a text for a person.
type plainError struct {
	text string
	error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.error }
func (e plainError) Cause() string { return e.text }

func TestRefusalsEndWhenNothingNeedsTheStoreForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, text := logged()
		r := &refusals{log: log}
		r.refused("c", 1, errors.New("down"))
		pass(settledAfter)
		r.taken(false)
		wantLines(t, text.String(), []string{"down"}, []string{"taken again", "refused_commits=1"})
	})
}

func TestHavingNoBrokerIsAnErrorWithAnEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, text := logged()
		b := &brokerless{log: log}
		all := []string{"one:5672", "two:5672"}
		b.look(all, "", true) // it has just started
		pass(brokerlessGrace - time.Second)
		b.look(all, "two:5672", true)
		pass(time.Hour)
		for range 20 {
			b.look(all, "", true)
			pass(2 * time.Second)
		}
		b.look(all, "one:5672", true)
		b.look(nil, "", true) // test mode has none
		pass(time.Hour)
		b.look(nil, "", true)
		wantLines(t, text.String(),
			[]string{"level=ERROR", "no broker is up", `brokers="one:5672 two:5672"`},
			[]string{"level=INFO", "a broker is up again", "broker=one:5672", "after=40s"})
	})
}
