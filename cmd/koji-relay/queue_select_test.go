package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"sync"
	"testing"
	"time"

	"koji-relay/internal/admin"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/pgtest"
)

// postTopics hands over one commit with a message of each of some topics, and one dead event.
func postTopics(t *testing.T, s relaySite, number int) {
	t.Helper()
	s.post(t, fmt.Sprintf(`{"commit": "6f1f2b6e-3f0d-4d9c-9a4e-%012d", "events": [
		{"callback": "postUntag",
			"kwargs": {"tag": {"name": "f39"}, "build": {"name": "b"}, "user": {"name": "u"}}},
		{"callback": "postTag", "kwargs": {"tag": {"name": "f39"}, "build": {"name": "b"}, "user": {"name": "u"}}},
		{"callback": "postTag", "kwargs": {"tag": {"name": "f40"}, "build": {"name": "b"}, "user": {"name": "u"}}},
		{"callback": "postPackageListChange", "kwargs": {"action": null}}]}`, number))
}

// syncBuffer is a log that a test reads while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func depths(t *testing.T, s relaySite) (queued, dead int64) {
	t.Helper()
	var status admin.Status
	if err := json.Unmarshal([]byte(s.command(t, exitOK, "queue", "status", "--json")), &status); err != nil {
		t.Fatal(err)
	}
	return status.Queue.Depth, status.Queue.DeadLetters
}

func TestConditionsSelectWhatIsDropped(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			t.Parallel()
			s := newRelaySite(t)
			log := &syncBuffer{}
			s.log = slog.New(slog.NewTextHandler(log, nil))
			stop := s.start(t)
			postTopics(t, s, 1)
			postTopics(t, s, 2)
			if running {
				defer stop()
			} else {
				stop()
			}
			for _, c := range []struct {
				args         []string
				want         string
				queued, dead int64 // after it
			}{
				{[]string{"queue", "drop", "--address", "build.tag", "--dry-run"}, "Would drop 4 messages.\n", 6, 2},
				{[]string{"queue", "drop", "--older-than", "7d", "--yes"}, "Dropped 0 messages.\n", 6, 2},
				{[]string{"queue", "drop", "--address", "no.such", "--yes"}, "Dropped 0 messages.\n", 6, 2},
				{[]string{"queue", "drop", "--address", "build.untag", "--older-than", "0s", "--yes"},
					"Dropped 2 messages.\n", 4, 2},
				{[]string{"queue", "drop", "--address", "build.tag", "--older-than", "1h", "--yes"},
					"Dropped 0 messages.\n", 4, 2},
				{[]string{"dead", "drop", "--reason", "nowhere to be found", "--yes"}, "Dropped 0 dead letters.\n", 4, 2},
				{[]string{"dead", "drop", "--all", "--dry-run"}, "Would drop 2 dead letters.\n", 4, 2},
				{[]string{"dead", "drop", "--reason", "ADDRESS", "--yes"}, "Dropped 2 dead letters.\n", 4, 0},
				{[]string{"queue", "retry", "--all"}, "Made 0 messages due now.\n", 4, 0},
				{[]string{"queue", "drop", "--address", "build.tag", "--yes"}, "Dropped 4 messages.\n", 0, 0},
			} {
				if got := s.command(t, exitOK, c.args...); got != c.want {
					t.Errorf("%v prints %q, want %q", c.args, got, c.want)
				}
				if queued, dead := depths(t, s); queued != c.queued || dead != c.dead {
					t.Errorf("after %v: %d and %d, want %d and %d", c.args, queued, dead, c.queued, c.dead)
				}
			}
			if !running {
				return
			}
			me, err := user.Current()
			if err != nil {
				t.Fatal(err)
			}
			want := `msg="changed by an administrator" user=` + me.Username +
				` action=drop box=queue count=2 missing=0 address=build.untag`
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %q in:\n%s", want, log)
			}
			if n := strings.Count(log.String(), "changed by an administrator"); n != 3 {
				t.Errorf("%d changes are logged, want 3: no dry run, and nothing that changed nothing", n)
			}
			if strings.Contains(log.String(), "control action done") {
				t.Error("a change is logged twice")
			}
		})
	}
}

func TestSelectionsThatCouldMeanTwoThingsAreRefused(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	for _, args := range [][]string{
		{"queue", "drop"}, {"queue", "drop", "--all", "id"}, {"queue", "drop", "--all", "--address", "build.tag"},
		{"dead", "retry", "id", "--reason", "x"}, {"queue", "drop", "--older-than", "7"},
		{"queue", "drop", "--older-than", "-1h"}, {"queue", "drop", "--older-than", "soon"},
		{"queue", "drop", "--yes"}, {"queue", "list", "--limit", "-1"},
		{"queue", "drop", "--yes", "--address", "build.*"},
	} {
		s.command(t, exitUsage, args...)
	}
}

func TestMisspeltCommandIsNamedBeforeItsFlags(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		`unknown command "quue"; did you mean queue?`: {"quue", "--config", "x"},
		`unknown command "lst"; did you mean list?`:   {"queue", "lst", "--config", "x"},
		"unknown flag: --confg":                       {"queue", "--confg", "x"},
	} {
		var stderr bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(""), io.Discard, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: exit %d, %q, want %q", args, code, stderr.String(), want)
		}
	}
}

func TestQuestionNamesTheNumber(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	defer s.start(t)()
	postTopics(t, s, 1)
	for _, c := range []struct {
		answer string
		code   int
	}{{"no\n", exitUsage}, {"\n", exitUsage}, {"", exitUsage}, {"y\n", exitOK}} {
		var out bytes.Buffer
		args := []string{"queue", "drop", "--address", "build.tag", "--config", s.config}
		code := run(context.Background(), args, strings.NewReader(c.answer), &out, &out)
		if code != c.code || !strings.Contains(out.String(), "Delete 2 messages of the queue for good? [y/N]") {
			t.Errorf("answer %q: exit %d, %s", c.answer, code, &out)
		}
	}
	var out bytes.Buffer
	run(context.Background(), []string{"dead", "drop", "--all", "--config", s.config}, strings.NewReader("n\n"),
		&out, &out)
	if !strings.Contains(out.String(), "Delete 1 dead letter for good?") {
		t.Errorf("asked %q", &out)
	}
	out.Reset()
	run(context.Background(), []string{"dead", "drop", "nope", "--yes", "--config", s.config},
		strings.NewReader(""), &out, &out)
	if text := out.String(); !strings.Contains(text, "nope is not in the dead letters\n") {
		t.Errorf("of an id that is not there it says %q", text)
	}
}

// The exit code tells a program the same as a person, whichever form is printed.
func TestExitCodesAreTheSameWithJSON(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	both := func(code int, args ...string) {
		t.Helper()
		s.command(t, code, args...)
		s.command(t, code, append(args, "--json")...)
	}
	both(exitFailure, "queue", "drop", "nobody", "--yes")
	both(exitFailure, "queue", "drop", "nobody", "--dry-run")
	both(exitFailure, "queue", "retry", "nobody")
	both(exitFailure, "queue", "show", "nobody")
	both(exitFailure, "dead", "drop", "nobody", "--yes")
	both(exitFailure, "dead", "retry", "nobody")
	both(exitFailure, "reload")
	both(exitFailure, "pause")
	both(exitFailure, "log-level", "debug")
	both(exitOK, "queue", "list")
	both(exitOK, "queue", "status")
	both(exitOK, "queue", "drop", "--all", "--yes")
	defer s.start(t)()
	postTopics(t, s, 1)
	both(exitUsage, "queue", "drop", "--all") // asked, and nobody answers
	both(exitFailure, "dead", "retry", "--all")
	both(exitUsage, "log-level", "loud")
}

func TestRetriedMessagesAreSentAtOnce(t *testing.T) {
	t.Parallel()
	for store, setUp := range map[string]func(*testing.T) (lines string){
		"file": func(t *testing.T) string { return "store = file\npath = " + t.TempDir() + "/retried.db" },
		"postgres": func(t *testing.T) string {
			conn := pgtest.StartCluster(t).ConnString("postgres")
			if code, _, stderr := runDB(t, "", "init", "--database", conn); code != exitOK {
				t.Fatal(stderr)
			}
			return "database = " + conn
		},
	} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			s := newRelaySite(t)
			s.withBroker(t, b)
			s.replaceQueue(t, setUp(t)+"\nmax_attempts = 1\ninterval = 3600")
			once := func(o devbroker.Outcome) {
				b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: o}, Times: 1})
			}
			once(devbroker.Release)
			defer s.start(t)()
			waitForBroker(t, s)
			s.post(t, untagCommit)
			waitUntil(t, "the message is set aside", func() bool { queued, _ := depths(t, s); return queued == 1 })
			retry := func(received int, done string, args ...string) {
				t.Helper()
				before := time.Now()
				if text := s.command(t, exitOK, args...); text != done {
					t.Errorf("%v prints %q", args, text)
				}
				waitUntil(t, "the message is sent", func() bool { return len(b.Received()) == received })
				t.Logf("%v: sent %s after the command began", args, time.Since(before))
			}
			once(devbroker.Reject)
			retry(2, "Made 1 message due now.\n", "queue", "retry", "--address", "build.untag")
			waitUntil(t, "it is a dead letter", func() bool {
				queued, dead := depths(t, s)
				return queued == 0 && dead == 2
			})
			retry(3, "Put 1 dead letter back into the queue.\n", "dead", "retry", "--address", "build.untag")
			waitUntil(t, "it is gone", func() bool { queued, dead := depths(t, s); return queued == 0 && dead == 1 })
		})
	}
}

// replaceQueue gives the section [queue] other lines.
func (s relaySite) replaceQueue(t *testing.T, lines string) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(text), "[queue]\n")
	_, after, _ := strings.Cut(rest, "[relay]\n")
	if err := os.WriteFile(s.config, []byte(before+"[queue]\n"+lines+"\n[relay]\n"+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for range time.Tick(10 * time.Millisecond) {
		if is() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not so: " + what)
		}
	}
}

func TestListsHaveAHeadAndALimit(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	defer s.start(t)()
	if text := s.command(t, exitOK, "queue", "list"); text != "koji-relay: nothing in the queue\n" {
		t.Errorf("an empty list prints %q", text)
	}
	for n := range 20 {
		postTopics(t, s, n)
	}
	text := s.command(t, exitOK, "queue", "list")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 1+listedByDefault+1 || !strings.HasPrefix(lines[0], "CREATED ") ||
		strings.Contains(lines[1], "CREATED") ||
		lines[len(lines)-1] != "koji-relay: these are the oldest 50; --limit 0 lists all" {
		t.Errorf("%d lines:\n%s", len(lines), text)
	}
	if text := s.command(t, exitOK, "queue", "list", "--limit", "0"); strings.Count(text, "\n") != 61 {
		t.Errorf("all are\n%s", text)
	}
	if text := s.command(t, exitOK, "queue", "list", "--json"); strings.Count(text, "\n") != 60 {
		t.Errorf("all in JSON are\n%s", text)
	}
	text = s.command(t, exitOK, "dead", "list", "--limit", "20")
	if !strings.HasPrefix(text, "DIED ") || strings.Contains(text, "these are") ||
		strings.Count(text, "\n") != 21 {
		t.Errorf("dead letters:\n%s", text)
	}
}
