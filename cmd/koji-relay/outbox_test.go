package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		{"", "", []string{"forget"}, exitUsage, "give one name of a reader"},
		{"", "", []string{"forget", ""}, exitUsage, "--unnamed"},
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
