package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/daemon"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
	"koji-relay/relay"
)

func TestTailShowsWhatArrives(t *testing.T) {
	t.Parallel()
	b, err := devbroker.New(devbroker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	conf := filepath.Join(t.TempDir(), "protonmsg.conf")
	text := "[broker]\nurls = " + b.URL() + "\ntopic_prefix = /topic/koji\n[queue]\nenabled = off\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	send := func(n int) {
		cfg, err := loadConfig(conf)
		if err != nil {
			t.Error(err)
			return
		}
		r, err := relay.New(daemon.RelayOptions(cfg, slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		<-r.Up()
		for range n {
			r.Send(ctx, []message.Message{{
				ID: "id-1", Address: "build.tag", Body: `{"a": "<b>"}`, Created: time.Now(),
				Props: []message.Prop{{Key: "type", Value: "Tag"}, {Key: "name", Value: "bash"},
					{Key: "version", Value: "5.2"}, {Key: "release", Value: "1"}, {Key: "tag", Value: "f\x1b[31m42"},
					{Key: "user", Value: "alice"}},
			}})
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	tail := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		links := b.Stats().Links
		code := make(chan int, 1)
		go func() {
			code <- run(context.Background(), append([]string{"tail", "--config", conf}, args...), nil, &out, &errs)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := b.Wait(ctx, func(s devbroker.Stats) bool { return s.Links > links }); err != nil {
			t.Fatal(err)
		}
		send(2)
		if c := <-code; c != exitOK {
			t.Fatalf("exit code %d: %s", c, errs.String())
		}
		if !strings.Contains(errs.String(), "subscribed") {
			t.Errorf("it does not tell from when on it shows messages: %q", errs.String())
		}
		return out.String()
	}

	lines := strings.Split(strings.TrimSpace(tail("--count", "2", "build.*")), "\n")
	if len(lines) != 2 {
		t.Fatalf("lines %q", lines)
	}
	if want := "Tag bash-5.2-1 tag=f\uFFFD[31m42 user=alice  id-1"; !strings.HasSuffix(lines[0], want) {
		t.Errorf("line %q does not end with %q", lines[0], want)
	}

	var got struct {
		MessageID string `json:"message_id"`
		Body      string
		Section   string
		Props     map[string]any
	}
	if err := json.Unmarshal([]byte(tail("--json", "--count", "1")), &got); err != nil {
		t.Fatal(err)
	}
	if got.MessageID != "id-1" || got.Body != `{"a": "<b>"}` || got.Section != "value" ||
		got.Props["user"] != "alice" {
		t.Errorf("message %+v", got)
	}
}

func TestTailEndsWhenInterrupted(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "protonmsg.conf")
	text := "[broker]\nurls = amqp://127.0.0.1:1\ntopic_prefix = koji\n[queue]\nenabled = off\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"tail", "--config", conf}, nil, &out, &errs); code != exitOK {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
}

func TestTailRefusesBadArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--count", "-1"}, {"build..tag"}, {"bu*"}, {""},
		{"--config", "/nonexistent"}} {
		var out, errs bytes.Buffer
		if code := run(context.Background(), append([]string{"tail"}, args...), nil, &out,
			&errs); code != exitUsage {
			t.Errorf("%q: exit code %d, %s", args, code, errs.String())
		}
	}
}

func TestSummaryReadsWell(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		props map[string]any
		want  string
	}{
		{map[string]any{"type": "TaskStateChange", "id": int64(5), "parent": nil, "method": "build", "old": "FREE",
			"new": "OPEN"},
			"TaskStateChange method=build id=5 FREE->OPEN"},
		{map[string]any{"type": "BuildStateChange", "name": "bash", "version": "5", "release": "1", "old": nil,
			"new": "BUILDING"},
			"BuildStateChange bash-5-1 BUILDING"},
		{nil, "-"},
	} {
		if got := summary(row.props); got != row.want {
			t.Errorf("%q, not %q", got, row.want)
		}
	}
}
