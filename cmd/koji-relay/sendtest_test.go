package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/inspect"
)

// withBroker points s at a broker, and adds lines to its section [broker].
func (s relaySite) withBroker(t *testing.T, b *devbroker.Broker, lines ...string) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	broker := "amqp://" + b.Addr() + "\n" + strings.Join(lines, "\n")
	changed := strings.Replace(string(text), "amqp://127.0.0.1:1", broker, 1)
	if err := os.WriteFile(s.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

func waitForBroker(t *testing.T, s relaySite) {
	t.Helper()
	waitUntil(t, "a broker is up", func() bool {
		var status admin.Status
		if err := json.Unmarshal([]byte(s.command(t, exitOK, "queue", "status", "--json")), &status); err != nil {
			t.Fatal(err)
		}
		return len(status.Brokers) == 1 && status.Brokers[0].State == inspect.Up
	})
}

func TestSendTestFollowsItsMessage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		behaviour devbroker.Behaviour
		code      int
		want      string
	}{
		"there and back": {devbroker.Behaviour{}, exitOK, "received    after "},
		"rejected": {devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Reject,
			Cause: devbroker.Cause{Condition: "amqp:not-allowed"}}}, exitFailure, "REJECTED by "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			s := newRelaySite(t)
			s.withBroker(t, b)
			b.Script("#", c.behaviour)
			defer s.start(t)()
			waitForBroker(t, s)
			text := s.command(t, c.code, "send-test")
			if !strings.Contains(text, c.want) || !strings.Contains(text, b.Addr()) {
				t.Errorf("prints\n%s", text)
			}
			var sent inspect.TestSent
			if err := json.Unmarshal([]byte(s.command(t, c.code, "send-test", "--json")), &sent); err != nil {
				t.Fatal(err)
			}
			if sent.Received != (c.code == exitOK) || sent.Address != daemon.TestTopic || sent.MessageID == "" {
				t.Errorf("%+v", sent)
			}
			if queued, dead := depths(t, s); queued+dead != 0 {
				t.Errorf("the test message is kept: %d queued, %d dead", queued, dead)
			}
		})
	}
}

func TestSendTestNeedsARelay(t *testing.T) {
	t.Parallel()
	if text := newRelaySite(t).command(t, exitFailure, "send-test"); !strings.Contains(text, "not running") {
		t.Errorf("prints %s", text)
	}
}

// The relay has credentials that systemd gave to it; the commands have not.
func TestCommandsWorkWhereCredentialsAreSystemds(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Mechanisms: []string{"PLAIN"},
		Users: map[string]string{"koji": "sesame"}})
	s := newRelaySite(t)
	s.withBroker(t, b, "user_file = bus-user", "password_file = bus-password")
	if text := s.command(t, exitFailure, "check", "--connect"); !strings.Contains(text,
		"names a systemd credential") {
		t.Errorf("check without a relay: %s", text)
	}
	if text := s.command(t, exitFailure, "tail"); !strings.Contains(text, "systemd's, for the relay alone") {
		t.Errorf("tail without a relay: %s", text)
	}
	startWithCredentials(t, s, map[string]string{"bus-user": "koji", "bus-password": "sesame"})
	text := s.command(t, exitOK, "check", "--connect")
	if !strings.Contains(text, "seen by the running relay") ||
		!strings.Contains(text, "broker amqp://"+b.Addr()+": usable") ||
		!strings.Contains(text, "Nothing to complain about.") || strings.Contains(text, "sesame") {
		t.Errorf("check --connect:\n%s", text)
	}
	waitForBroker(t, s)
	var out, errs bytes.Buffer
	code := make(chan int, 1)
	links := b.Stats().Links
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		code <- run(ctx, []string{"tail", "--count", "1", "--config", s.config, "build.*"}, nil, &out, &errs)
	}()
	if err := b.Wait(ctx, func(st devbroker.Stats) bool { return st.Links > links }); err != nil {
		t.Fatal(err)
	}
	s.post(t, untagCommit)
	if c := <-code; c != exitOK || !strings.Contains(out.String(), "Untag b tag=f39") ||
		!strings.Contains(errs.String(), "subscribed") {
		t.Errorf("tail ends with %d, shows %q and tells %q", c, out.String(), errs.String())
	}
}

// startWithCredentials runs serve in a process of its own, as a unit with LoadCredential= does.
func startWithCredentials(t *testing.T, s relaySite, credentials map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range credentials {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable() // see TestMain
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "koji-relay")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", "--config", s.config)
	cmd.Env = append(os.Environ(), "CREDENTIALS_DIRECTORY="+dir)
	log := &syncBuffer{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve: %v\n%s", err, log)
		}
	})
	socket := filepath.Join(filepath.Dir(s.config), "control.sock")
	waitUntil(t, fmt.Sprintf("the relay answers on %s", socket), func() bool {
		status, err := admin.NewClient(socket).Status(t.Context())
		return err == nil && status.Phase == admin.Running
	})
}
