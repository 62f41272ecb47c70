package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"koji-relay/config"
)

// This test and the next cannot be parallel: they change the environment of the process.
func TestAutoLogsJSONWhereStderrIsNotTheJournal(t *testing.T) {
	for _, stream := range []string{"", "1:2", "nonsense"} {
		t.Setenv("JOURNAL_STREAM", stream)
		f, err := os.Create(t.TempDir() + "/stderr")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		newLogger(f, config.Auto, new(slog.LevelVar)).Info("hello", "commit", "c")
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(text) || !strings.Contains(string(text), `"commit":"c"`) {
			t.Errorf("JOURNAL_STREAM=%q: logged %q, want JSON", stream, text)
		}
		newLogger(os.Stderr, config.Auto, new(slog.LevelVar)) // does not fail either
	}
}

func TestLogFormatIsObeyed(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "")
	level := new(slog.LevelVar)
	var out bytes.Buffer
	newLogger(&out, config.LogText, level).Info("hello", "commit", "c")
	if want := "level=INFO msg=hello commit=c\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("text is %q, want %q at its end", out.String(), want)
	}
	out.Reset()
	newLogger(&out, config.LogJSON, level).Info("hello", "commit", "c")
	if !json.Valid(out.Bytes()) {
		t.Errorf("%q is not JSON", out.String())
	}
	if journal.Enabled() {
		t.Log("a journal runs here, so its absence was not tried")
		return
	}
	out.Reset()
	log := newLogger(&out, config.LogJournal, level)
	log.Info("hello")
	if text := out.String(); !strings.Contains(text, "no systemd journal") ||
		!strings.Contains(text, `"msg":"hello"`) {
		t.Errorf("without a journal, log_format = journal wrote %q", text)
	}
}

func TestDurationsInJSONHaveTheirUnit(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	newLogger(&out, config.LogJSON, &slog.LevelVar{}).Info("works again", "after", 28752*time.Millisecond)
	if !strings.Contains(out.String(), `"after":"28.752s"`) {
		t.Errorf("logged %s", out.String())
	}
}
