package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/history"
	"koji-relay/history/file"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

func TestTimesThatCannotBeMeantAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ since, until, want string }{
		{"2h", "", ""}, {"", "2h", ""}, {"2h", "1h", ""}, {"2026-11-26", "2126-11-27", ""},
		{"2126-11-26", "", "has not come yet"}, {"1h", "2h", "not after --since"},
		{"2026-11-26", "2026-11-26", "not after --since"}, {"-5h", "", "give how long ago it was"},
	} {
		err := historyTimes{&c.since, &c.until}.set(&inspect.HistoryQuery{})
		var usage usageError
		if (err != nil) != (c.want != "") || err != nil &&
			(!errors.As(err, &usage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("--since %q --until %q: %v, want %q", c.since, c.until, err, c.want)
		}
	}
}

// A relay can begin while somebody follows the history in files, and what it records is printed.
func TestFollowerLeavesTheHistoryToTheRelay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, kept := filepath.Join(dir, "protonmsg.conf"), filepath.Join(dir, "queue.db.history")
	text := "[broker]\nurls = amqp://localhost\ntopic_prefix = koji\n[queue]\nstore = file\npath = " + dir +
		"/queue.db\n[relay]\ncontrol = " + dir + "/control.sock\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	lines, out := io.Pipe()
	go func() {
		run(ctx, []string{"history", "--follow", "--since", "1m", "--config", path}, strings.NewReader(""), out,
			io.Discard)
		out.Close()
	}()
	first, second := storetest.Tagged(1, time.Now()), storetest.Tagged(2, time.Now())
	record := func(m message.Message) {
		store, err := file.Open(kept)
		for errors.Is(err, history.ErrInUse) && ctx.Err() == nil {
			store, err = file.Open(kept)
		}
		if err != nil {
			t.Fatal(err)
		}
		storetest.Append(t, store, inspect.Accepted, m)
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	printed := bufio.NewScanner(lines)
	for _, m := range []message.Message{first, second} {
		record(m)
		if !printed.Scan() || !strings.Contains(printed.Text(), m.ID) {
			t.Errorf("the follower says %q, %v; want message %s", printed.Text(), printed.Err(), m.ID)
		}
	}
	cancel()
	_, _ = io.Copy(io.Discard, lines) // until it has ended
}
