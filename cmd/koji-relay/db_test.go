package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"koji-relay/internal/pgtest"
	"koji-relay/queue/schema"
)

// runDB runs koji-relay db with args and the answer on standard input.
func runDB(t *testing.T, answer string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(t.Context(), append([]string{"db"}, args...), strings.NewReader(answer), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestDatabaseGoesFromInitToRemove(t *testing.T) {
	t.Parallel()
	conn := pgtest.StartCluster(t).ConnString("postgres")
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	text := "[broker]\nurls = amqp://localhost\ntopic_prefix = koji\n[queue]\ndatabase = " + conn + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	version := strconv.Itoa(schema.Version())
	for _, step := range []struct {
		answer string
		args   []string
		code   int
		want   string // in the output or the error
	}{
		{"", []string{"status", "--config", path}, exitFailure, "schema koji_relay  absent"},
		{"", []string{"upgrade", "--config", path}, exitFailure, "run 'koji-relay db init'"},
		{"", []string{"init", "--config", path}, exitOK,
			"Created table proton_queue and schema koji_relay, version " + version + "."},
		{"", []string{"init", "--config", path}, exitOK,
			"Nothing to do: schema koji_relay has version " + version + "."},
		{"", []string{"upgrade", "--database", conn}, exitOK, "Nothing to do"},
		{"", []string{"upgrade", "--print", "--database", conn}, exitOK, "-- Nothing to do"},
		{"", []string{"status", "--config", path}, exitOK, "proton_queue       present, 0 messages"},
		{"", []string{"status", "--json", "--database", conn}, exitOK, `"ready": true`},
		{"", []string{"remove", "--config", path}, exitUsage, "not confirmed"},
		{"no\n", []string{"remove", "--config", path}, exitUsage,
			"with 0 dead letters and 0 events in the outbox? [y/N]"},
		{"yes\n", []string{"remove", "--config", path}, exitOK, "Removed schema koji_relay"},
		{"", []string{"remove", "--yes", "--config", path}, exitOK, "Nothing to do"},
	} {
		code, stdout, stderr := runDB(t, step.answer, step.args...)
		if code != step.code || !strings.Contains(stdout+stderr, step.want) {
			t.Errorf("db %v: exit %d, want %d with %q:\n%s%s", step.args, code, step.code, step.want, stdout, stderr)
		}
	}
}

func TestPrintedSQLMakesADatabaseThatIsReady(t *testing.T) {
	t.Parallel()
	conn := pgtest.StartCluster(t).ConnString("postgres")
	code, sql, stderr := runDB(t, "", "init", "--print", "--relay-role", "the relay", "--hub-role", "koji")
	if code != exitOK {
		t.Fatal(stderr)
	}
	pgtest.SQL(t, conn, `CREATE ROLE "the relay"; CREATE ROLE koji;`+sql)
	if code, stdout, stderr := runDB(t, "", "status", "--database", conn); code != exitOK {
		t.Errorf("status after the printed SQL:\n%s%s", stdout, stderr)
	}
	if code, sql, _ := runDB(t, "", "remove", "--print"); code != exitOK ||
		!strings.Contains(sql, "DROP SCHEMA") {
		t.Errorf("remove --print gave exit %d: %s", code, sql)
	}
}

func TestUnreachableDatabaseIsNamedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	code, _, stderr := runDB(t, "", "status", "--database",
		"host=127.0.0.1 port=1 user=u password=sesame dbname=koji")
	if code != exitFailure || !strings.Contains(stderr, "connect to 127.0.0.1:1/koji") ||
		strings.Contains(stderr, "sesame") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
