package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Arguments that nobody can mean are refused with exit code 2 and a text that names them, before anything is
// asked of a relay or a database.
func TestOddArgumentsAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := filepath.Join(dir, "protonmsg.conf")
	text := "[broker]\nurls = amqp://127.0.0.1:1\ntopic_prefix = /topic/koji\n" +
		"[queue]\nstore = file\npath = " + filepath.Join(dir, "queue.db") + "\n" +
		"[relay]\ncontrol = " + filepath.Join(dir, "c.sock") + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"history --since -1h":                 "--since -1h: give how long ago",
		"history --since 2999-01-01":          "has not come yet",
		"history --since 1h --until 2h":       "not after --since",
		"history --limit -1":                  "--limit -1: give a number",
		"history --limit x":                   `"x" for "--limit" flag: no number`,
		"history --fate lost":                 "--fate lost: give one of",
		"replay --since 2999-01-01 --dry-run": "has not come yet",
		"replay --since 1h --rate -1":         "--rate -1: give messages a second",
		"replay --since 1h --rate NaN":        "--rate NaN: give messages a second",
		"replay cancel x":                     "is not the number of a replay",
		"audit --since 2999-01-01":            "what is looked at ends at",
		"audit --since 1h --until 2h":         "what is looked at ends at",
		"audit --limit 99999999999999999999":  `"99999999999999999999" for "--limit" flag: no number`,
		"queue drop --older-than -1h":         "--older-than -1h: give a number with a unit",
		"queue drop --reason= --yes":          "name one or more IDs",
		"queue list --limit -1":               "--limit -1: give a number",
		"dead drop --older-than 1y":           "--older-than 1y: give a number with a unit",
		"outbox drop --older-than -1h --yes":  "--older-than -1h: give a number with a unit",
		"outbox drop --yes":                   "give --older-than",
		"log-level loud":                      `log level "loud": give one of debug, info, warn, error`,
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(context.Background(), append(strings.Fields(args), "--config", conf), strings.NewReader(""),
				&out, &errs)
			if code != exitUsage || !strings.Contains(errs.String(), want) || out.Len() > 0 {
				t.Errorf("exit code %d, want 2 and %q\n%s%s", code, want, errs.String(), out.String())
			}
			if strings.Contains(errs.String(), "strconv") {
				t.Errorf("it says %s", errs.String())
			}
		})
	}
}
