package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/pgtest"
)

func TestReadersAreListedAndForgotten(t *testing.T) {
	t.Parallel()
	conn := pgtest.StartCluster(t).ConnString("postgres")
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	text := "[broker]\nurls = amqp://localhost\ntopic_prefix = koji\n[queue]\ndatabase = " + conn + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runDB(t, "", "init", "--config", path); code != exitOK {
		t.Fatal(stderr)
	}
	for _, step := range []struct {
		before, answer string
		args           []string
		code           int
		want           string // in the output or the error
	}{
		{"", "", []string{"readers"}, exitOK, "No relay has read the outbox yet."},
		{`INSERT INTO koji_relay.reader VALUES ('', '*', now()), ('new-bus', '*', now() - interval '1 hour');
			INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
			SELECT md5(i::text)::uuid, 0, 'postTag', '{}' FROM generate_series(1, 5) i;
			INSERT INTO koji_relay.outbox_taken SELECT id, '', commit FROM koji_relay.outbox WHERE id < 4`, "",
			[]string{"readers"}, exitOK, "nobody at the moment (away)"},
		{"", "", []string{"readers", "--json"}, exitOK, `"events": 5`},
		{"", "", []string{"drop"}, exitUsage, "give --older-than"},
		{"", "", []string{"drop", "--older-than", "soon"}, exitUsage, "--older-than soon"},
		// A named reader needs them, and an administrator's own DELETE is held: see the next step.
		{`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs, created)
			SELECT md5(i::text)::uuid, 1, 'postTag', '{}', now() - interval '2 hours' FROM generate_series(1, 1200) i;
			DELETE FROM koji_relay.outbox WHERE event = 1 AND created < now() - interval '1 hour'`, "",
			[]string{"drop", "--older-than", "1h", "--dry-run"}, exitOK, "drop would change: 1200"},
		{"", "", []string{"drop", "--older-than", "1h"}, exitUsage,
			"Drop 1200 events of the outbox for good? [y/N]"},
		{"", "y\n", []string{"drop", "--older-than", "1h"}, exitOK, "drop: 1200"},
		{"", "", []string{"drop", "--older-than", "1h"}, exitOK, "drop: 0"},
		{"", "", []string{"readers", "--json"}, exitOK, `"events": 5`},
		{"", "", []string{"forget"}, exitUsage, "give one name of a reader"},
		{"", "", []string{"forget", ""}, exitUsage, "--unnamed"},
		{"", "", []string{"forget", "--unnamed", "new-bus"}, exitUsage, `leave out "new-bus" or --unnamed`},
		{"", "", []string{"forget", "new-bus"}, exitUsage,
			"Forget reader new-bus, which has not taken 5 events of the outbox? [y/N]"},
		{"", "", []string{"forget", "--yes", "other"}, exitFailure, "there is no reader other"},
		{"", "yes\n", []string{"forget", "new-bus"}, exitOK,
			"Forgot reader new-bus. Deleted 3 events that it alone held."},
		{"", "", []string{"readers"}, exitOK, "(no name)  2"},
		{"", "", []string{"forget", "--unnamed", "--yes"}, exitOK, "Forgot reader (no name)"},
	} {
		if step.before != "" {
			pgtest.SQL(t, conn, step.before)
		}
		var out, errOut bytes.Buffer
		args := append([]string{"outbox"}, append(step.args, "--config", path)...)
		code := run(t.Context(), args, strings.NewReader(step.answer), &out, &errOut)
		if got := out.String() + errOut.String(); code != step.code || !strings.Contains(got, step.want) {
			t.Errorf("%v: exit %d, want %d with %q:\n%s", args, code, step.code, step.want, got)
		}
	}
}

// TestCheckTellsOfReaders: who is registered, and a complaint of one that is away, which is not the relay
// that is checked.
func TestCheckTellsOfReaders(t *testing.T) {
	t.Parallel()
	conn := pgtest.StartCluster(t).ConnString("postgres")
	broker := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"}).Addr()
	text := "[broker]\nurls = amqp://" + broker + "\ntopic_prefix = /topic/koji\n" +
		"[queue]\ndatabase = " + conn + "\n"
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runDB(t, "", "init", "--config", path); code != exitOK {
		t.Fatal(stderr)
	}
	for _, step := range []struct {
		sql, relay string
		code       int
		want       []string
	}{
		{"SELECT 1", "", exitOK, []string{"reader (no name)",
			"not registered: it gets what the hub does from its "}},
		{"INSERT INTO koji_relay.reader VALUES ('', '*', now() - interval '1 hour')", "", exitOK,
			[]string{"0 events to take, away since"}},
		{"INSERT INTO koji_relay.reader VALUES ('new-bus', '*', now())", "", exitOK,
			[]string{"reader (no name)", "reader new-bus", "Nothing to complain"}},
		{`UPDATE koji_relay.reader SET seen = now() - interval '1 hour';
			INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
				VALUES (gen_random_uuid(), 0, 'postTag', '{}')`,
			"", exitFailure, []string{"nobody reads the outbox for new-bus, since ", "1 event held for it",
				"koji-relay outbox forget new-bus"}},
		{"SELECT 1", "new-bus", exitFailure, []string{"nobody reads the outbox for (no name)", "forget --unnamed"}},
		{"DELETE FROM koji_relay.reader", "third", exitOK, []string{"reader third", "not registered"}},
	} {
		pgtest.SQL(t, conn, step.sql)
		file := text
		if step.relay != "" {
			file += "path = " + filepath.Join(t.TempDir(), "queue.db") + "\n[relay]\nname = " + step.relay + "\n"
		}
		code, stdout, stderr := checkFile(t, file, "--connect")
		for _, want := range step.want {
			if code != step.code || !strings.Contains(stdout, want) {
				t.Errorf("%s, as %q: exit %d, want %d with %q:\n%s%s", step.sql, step.relay, code, step.code, want,
					stdout, stderr)
			}
		}
	}
}
