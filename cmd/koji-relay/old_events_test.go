package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/pgtest"
)

// What a trial left in the outbox would go out on the production prefix. check --connect says so before the
// start, and serve says what it does.
func TestOldEventsOfTheOutboxAreNamed(t *testing.T) {
	t.Parallel()
	conn := pgtest.StartCluster(t).ConnString("postgres")
	dir, err := os.MkdirTemp("", "kro") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := filepath.Join(dir, "protonmsg.conf")
	text := fmt.Sprintf("[broker]\nurls = amqp://%s\ntopic_prefix = /topic/koji\n[queue]\n"+
		"database = %s\n[relay]\n"+
		"socket = %s/hub.sock\ncontrol = %s/control.sock\nadmin =\nlog_format = text\n",
		startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"}).Addr(), conn, dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runDB(t, "", "init", "--config", conf); code != exitOK {
		t.Fatal(stderr)
	}
	insert := func(age string) {
		pgtest.SQL(t, conn, `INSERT INTO koji_relay.outbox (commit, event, created, callback, kwargs)
			VALUES (gen_random_uuid(), 0, now() - interval '`+age+`', 'postTag', '{}')`)
	}
	const remedy = "koji-relay outbox drop --older-than 1h"

	insert("1 minute")
	if code, stdout, stderr := checkFile(t, text, "--connect"); code != exitOK {
		t.Errorf("with a new event: exit %d\n%s%s", code, stdout, stderr)
	}
	insert("3 days")
	code, stdout, stderr := checkFile(t, text, "--connect")
	if code != exitFailure || !strings.Contains(stdout, "the outbox holds 2 events") ||
		!strings.Contains(stdout, remedy) {
		t.Errorf("with an old event: exit %d\n%s%s", code, stdout, stderr)
	}

	self, err := os.Executable() // see TestMain
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	serve := exec.CommandContext(t.Context(), self, "serve", "--config", conf)
	serve.Args[0], serve.Stderr = "koji-relay", &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { serve.Wait() }) // the context ends it
	waitUntil(t, "the relay is ready", func() bool { return strings.Contains(log.String(), "msg=ready") })
	if got := log.String(); !strings.Contains(got, "the outbox holds old events, which are published now") ||
		!strings.Contains(got, "events=2") || !strings.Contains(got, remedy) {
		t.Errorf("the log of the start:\n%s", got)
	}
}
