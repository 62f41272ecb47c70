package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"koji-relay/internal/daemon"
	"koji-relay/internal/devbroker"
)

func startBroker(t *testing.T, opts devbroker.Options) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestCheckConnectFailsOnAWarningAboutAUsableBroker(t *testing.T) {
	t.Parallel()
	rabbit := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"})
	code, stdout, stderr := checkFile(t, fmt.Sprintf(`[broker]
urls = amqp://%s
topic_prefix = /topic/koji
dialect = literal
[queue]
store = file
path = %s/queue.db
`, rabbit.Addr(), t.TempDir()), "--connect")
	if code != exitFailure || !strings.Contains(stdout, "leave it at auto") ||
		strings.Contains(stdout, "Nothing to complain") {
		t.Errorf("exit %d\nstdout %s\nstderr %s", code, stdout, stderr)
	}
}

func TestCheckConnectTellsOfEachBroker(t *testing.T) {
	t.Parallel()
	rabbit := startBroker(t, devbroker.Options{
		Users: map[string]string{"koji": "sesame"}, Product: "RabbitMQ", Version: "4.0.5", MaxMessageSize: 1 << 20,
	})
	silent := startBroker(t, devbroker.Options{})
	silent.Script("#", devbroker.Behaviour{NoCredit: true})
	for name, tc := range map[string]struct {
		url, prefix string
		code        int
		want        []string
	}{
		"a usable broker with its facts": {
			"amqp://koji:sesame@" + rabbit.Addr(), "/topic/koji", exitOK,
			[]string{": usable\n", "PLAIN (offered: PLAIN ANONYMOUS)", "RabbitMQ 4.0.5",
				"rabbitmq4, for example /exchanges/amq.topic/koji.build.tag", "with credit", "1.0 MiB", "round trip"},
		},
		"a wrong password": {
			"amqp://koji:seesaw@" + rabbit.Addr(), "/topic/koji", exitFailure,
			[]string{"NOT USABLE", "the broker refused the credentials"},
		},
		"a prefix that this broker cannot serve, with the remedy": {
			"amqp://koji:sesame@" + rabbit.Addr(), "topic://koji", exitFailure,
			[]string{"NOT USABLE", "set topic_prefix = /topic/koji"},
		},
		"a broker that is not there": {
			"amqp://koji:sesame@127.0.0.1:1", "/topic/koji", exitFailure, []string{"NOT USABLE", "connection refused"},
		},
		"a broker that takes no messages": {
			"amqp://" + silent.Addr(), "/topic/koji", exitFailure, []string{"NOT USABLE", "WITHOUT credit"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := fmt.Sprintf("[broker]\nurls = %s\ntopic_prefix = %s\n[queue]\nstore = file\npath = %s/queue.db\n",
				tc.url, tc.prefix, t.TempDir())
			code, stdout, stderr := checkFile(t, text, "--connect")
			if code != tc.code {
				t.Errorf("exit %d, want %d: %s", code, tc.code, stderr)
			}
			for _, want := range tc.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("missing %q in:\n%s", want, stdout)
				}
			}
			if strings.Contains(stdout+stderr, "sesame") || strings.Contains(stdout+stderr, "seesaw") {
				t.Error("the password is printed")
			}

			_, stdout, _ = checkFile(t, text, "--connect", "--json")
			var report daemon.CheckReport
			if err := json.Unmarshal([]byte(stdout), &report); err != nil {
				t.Fatal(err)
			}
			if got := report.Connections.Brokers[0].Usable; got != (tc.code == exitOK) {
				t.Errorf("usable in JSON: %v", got)
			}
		})
	}
}
