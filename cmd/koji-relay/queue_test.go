package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

// relaySite is a configuration with a file store and a broker that does not exist.
type relaySite struct {
	config, socket string
	log            *slog.Logger
}

func newRelaySite(t *testing.T) relaySite {
	t.Helper()
	dir := t.TempDir()
	s := relaySite{filepath.Join(dir, "relay.conf"), filepath.Join(dir, "hub.sock"),
		slog.New(slog.DiscardHandler)}
	text := fmt.Sprintf("[broker]\nurls = amqp://127.0.0.1:1\ntopic_prefix = /topic/koji\n[message]\nevents "+
		"= *\n[queue]\nstore = file\npath = %s\n[relay]\nsocket = %s\ncontrol = %s\nadmin =\n",
		filepath.Join(dir, "queue.db"), s.socket, filepath.Join(dir, "control.sock"))
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// start runs the relay in this process and returns its orderly stop.
func (s relaySite) start(t *testing.T) (stop func()) {
	t.Helper()
	cfg, err := config.Load(s.config)
	if err != nil {
		t.Fatal(err)
	}
	d := daemon.New(daemon.Options{
		Config: cfg,
		Load:   func() (*config.Config, error) { return config.Load(s.config) },
		Logger: s.log, Level: new(slog.LevelVar), Version: "test",
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, context.Background()) }()
	client := admin.NewClient(cfg.Relay.Control)
	for deadline := time.Now().Add(10 * time.Second); ; {
		status, err := client.Status(ctx)
		if err == nil && status.Phase == admin.Running {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the relay does not start: %v", err)
		}
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (s relaySite) post(t *testing.T, body string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.socket)
		}}
	resp, err := (&http.Client{Transport: transport}).Post("http://hub/v1/commits", "application/json",
		strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("hand over: %s: %s", resp.Status, text)
	}
}

// command runs one command line and returns what it printed.
func (s relaySite) command(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	code := run(context.Background(), append(args, "--config", s.config), strings.NewReader(""), &out, &out)
	if code != want {
		t.Errorf("%v: exit %d, want %d\n%s", args, code, want, &out)
	}
	return out.String()
}

const (
	untagCommit = `{"commit": "6f1f2b6e-3f0d-4d9c-9a4e-0d3f2f3f4a5b", "events": [
		{"callback": "postUntag",
			"kwargs": {"tag": {"name": "f39"}, "build": {"name": "b"}, "user": {"name": "u"}}},
		{"callback": "postPackageListChange", "kwargs": {"action": null}}]}`
	untagID   = "c0ffee00"
	untagBody = `{"tag": {"name": "f39"}, "build": {"name": "b"}, "user": {"name": "u"}}`
)

// TestQueueCommandsWorkOnTheRelayAndOnTheStore runs the same commands with and without a running relay.
func TestQueueCommandsWorkOnTheRelayAndOnTheStore(t *testing.T) {
	t.Parallel()
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running=%v", running), func(t *testing.T) {
			t.Parallel()
			s := newRelaySite(t)
			stop := s.start(t)
			s.post(t, untagCommit)
			if running {
				defer stop()
			} else {
				stop()
			}

			var status admin.Status
			if err := json.Unmarshal([]byte(s.command(t, exitOK, "queue", "status", "--json")), &status); err != nil {
				t.Fatal(err)
			}
			if q := status.Queue; q.Depth != 1 || q.DeadLetters != 1 || len(q.ByTopic) != 1 ||
				q.ByTopic[0].Address != "build.untag" {
				t.Errorf("status: %+v", q)
			}
			if text := s.command(t, exitOK, "queue", "status"); !strings.Contains(text, "build.untag") ||
				strings.Contains(text, "not running") == running {
				t.Errorf("status in words:\n%s", text)
			}

			var listed inspect.Item
			if err := json.Unmarshal([]byte(s.command(t, exitOK, "queue", "list", "--json")), &listed); err != nil {
				t.Fatal(err)
			}
			var shown inspect.Item
			if err := json.Unmarshal([]byte(s.command(t, exitOK, "queue", "show", listed.MessageID, "--json")),
				&shown); err != nil {
				t.Fatal(err)
			}
			if shown.Body != untagBody || shown.MessageID != listed.MessageID {
				t.Errorf("show: %+v", shown)
			}
			if text := s.command(t, exitOK, "dead", "list"); !strings.Contains(text, "(event postPackageListChange)") {
				t.Errorf("dead list:\n%s", text)
			}

			if text := s.command(t, exitUsage, "queue", "drop", "--all"); !strings.Contains(text, "--yes") {
				t.Errorf("drop without a terminal: %s", text)
			}
			if text := s.command(t, exitFailure, "queue", "drop", untagID, "--yes"); !strings.Contains(text, untagID) {
				t.Errorf("drop of an id that is not there: %s", text)
			}
			if text := s.command(t, exitFailure, "queue", "show", untagID); !strings.Contains(text,
				"not in the queue") {
				t.Errorf("show of an id that is not there: %s", text)
			}

			file := filepath.Join(t.TempDir(), "export.jsonl")
			s.command(t, exitOK, "queue", "export", file)
			s.command(t, exitOK, "queue", "drop", "--all", "--yes")
			s.command(t, exitOK, "dead", "drop", "--all", "--yes")
			if text := s.command(t, exitOK, "queue", "import", file); !strings.Contains(text, "stored: 2") {
				t.Errorf("import:\n%s", text)
			}
			if text := s.command(t, exitOK, "queue", "import", file); !strings.Contains(text, "there already: 2") {
				t.Errorf("second import:\n%s", text)
			}
			if text := s.command(t, exitOK, "queue", "show", listed.MessageID); !strings.Contains(text, untagBody) {
				t.Errorf("after the import:\n%s", text)
			}
		})
	}
}

func TestRunningRelayIsSteered(t *testing.T) {
	t.Parallel()
	s := newRelaySite(t)
	if text := s.command(t, exitFailure, "pause"); !strings.Contains(text, "not running") {
		t.Errorf("pause without a relay: %s", text)
	}
	defer s.start(t)()
	if text := s.command(t, exitOK, "pause", "--json"); !strings.Contains(text, `"paused": true`) ||
		!strings.Contains(text, `"what": "drain"`) {
		t.Errorf("pause --json: %s", text)
	}
	if text := s.command(t, exitOK, "queue", "status"); !strings.Contains(text, "the drain; koji-relay resume") {
		t.Errorf("after pause:\n%s", text)
	}
	text := s.command(t, exitOK, "pause", "--publish")
	if text != "All sending is halted. Commits are queued.\n" {
		t.Errorf("pause --publish says %q", text)
	}
	if text := s.command(t, exitOK, "queue", "status"); !strings.Contains(text, "all sending") {
		t.Errorf("after pause --publish:\n%s", text)
	}
	s.command(t, exitOK, "resume", "--publish")
	if text := s.command(t, exitOK, "queue", "status"); strings.Contains(text, "paused") {
		t.Errorf("after resume:\n%s", text)
	}
	s.command(t, exitOK, "log-level", "debug")
	if text := s.command(t, exitUsage, "log-level", "loud"); !strings.Contains(text, "loud") {
		t.Errorf("a level that is none: %s", text)
	}

	change := func(old, new string) {
		text, err := os.ReadFile(s.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.config, bytes.Replace(text, []byte(old), []byte(new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("events = *", "events = postTag")
	if text := s.command(t, exitOK, "reload"); !strings.Contains(text, "changed: message.events") {
		t.Errorf("reload: %s", text)
	}
	change("events = postTag", "priority = high")
	if text := s.command(t, exitFailure, "reload"); !strings.Contains(text, "old configuration stays") ||
		!strings.Contains(text, "[message] priority = high") {
		t.Errorf("reload of a bad file: %s", text)
	}
}
