package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// TestChaosTruthFindsFaults: each comparison of what a relay says with what is so finds what is not.
func TestChaosTruthFindsFaults(t *testing.T) {
	t.Parallel()
	const there, elsewhere = "127.0.0.1:1", "127.0.0.1:2"
	arrivals := [3][]delivery{{{ID: "a"}, {ID: "b"}}, {{ID: "c"}}}
	sent := func(n float64) metrics {
		return textMetrics(t, "koji_relay_messages_sent_total", "broker", there, n)
	}
	right := history{{"a", there}, {"b", there}, {"c", elsewhere}}
	for _, row := range []struct {
		name  string
		check func(*chaos)
		wrong bool
	}{
		{"the history is right", func(c *chaos) { c.compare(right, 0) }, false},
		{"accepted, and nowhere", func(c *chaos) {
			c.compare(append(right[:3:3], [2]string{"d", there}), 0)
		}, true},
		{"accepted by another broker", func(c *chaos) {
			c.compare(history{{"a", elsewhere}, {"b", there}, {"c", elsewhere}}, 0)
		}, true},
		{"accepted by a broker that nobody knows", func(c *chaos) {
			c.compare(history{{"a", there}, {"b", "127.0.0.1:3"}, {"c", elsewhere}}, 0)
		}, true},
		{"not in the history", func(c *chaos) { c.compare(right[:2], 0) }, true},
		{"not in the history, as a gap says", func(c *chaos) { c.compare(right[:2], 1) }, false},

		{"the counter is right", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(2))
			c.sentMeansArrived(arrivals)
		}, false},
		{"the counter of a killed relay was behind", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(1))
			c.sentMeansArrived(arrivals)
		}, false},
		{"counted twice", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(3))
			c.sentMeansArrived(arrivals)
		}, true},
		{"counted by two processes", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(2))
			c.witnesses[0].counted.restarted()
			c.witnesses[0].counted.see(1, sent(1))
			c.sentMeansArrived(arrivals)
		}, true},
		{"an answer of a process that has ended", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(1))
			c.witnesses[0].counted.restarted()
			c.witnesses[0].counted.see(0, sent(2))
			c.sentMeansArrived(arrivals)
		}, false},
		{"the counter goes back", func(c *chaos) {
			c.witnesses[0].counted.see(0, sent(2))
			c.witnesses[0].counted.see(0, sent(1))
			c.sentMeansArrived(arrivals)
		}, true},

		{"a command that works", func(c *chaos) { c.clerk.run(0, "true") }, false},
		{"a command that says why not", func(c *chaos) { c.clerk.run(0, "said") }, false},
		{"a command that fails and says nothing", func(c *chaos) { c.clerk.run(0, "silent") }, true},
		{"a command that falls over", func(c *chaos) { c.clerk.run(0, "panic") }, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			quiet := &recorder{TB: t}
			c := &chaos{TB: quiet, binary: fakeCommand(t)}
			c.account, c.clerk = newAccount(c), newClerk(c)
			for i, listen := range []string{there, elsewhere, "127.0.0.1:4", "", ""} {
				c.ways[i] = &way{&toxiproxy.Proxy{Listen: listen}}
			}
			for i := range c.relays {
				c.relays[i], c.witnesses[i] = &relay{}, &witness{counted: newCounted()}
			}
			row.check(c)
			if quiet.failed != row.wrong {
				t.Errorf("the run failed: %v, want %v", quiet.failed, row.wrong)
			}
		})
	}
	counters := map[string]int{`commits_received_total{via="socket"}`: quietCommits,
		`events_received_total{callback="postTag"}`: quietCommits * quietEvents,
		`events_handled_total{result="sent"}`:       quietCommits*quietEvents - 1,
		`events_handled_total{result="queued"}`:     1, `queue_put_total`: 1,
		`handoff_duration_seconds_count`: quietCommits}
	if err := countersGrew(metrics{}, quietMetrics(t, counters)); err != nil {
		t.Errorf("right counters: %v", err)
	}
	for name, n := range counters {
		for _, wrong := range []int{n - 1, n + 1} {
			spoilt := maps.Clone(counters)
			spoilt[name] = wrong
			if countersGrew(metrics{}, quietMetrics(t, spoilt)) == nil {
				t.Errorf("%s is %d, not %d: not found", name, wrong, n)
			}
		}
	}
	for _, said := range []statusSaid{{State: "ok"}, {State: "not_ready"}, {err: os.ErrNotExist}} {
		if said.nothingWaits() == nil {
			t.Errorf("status %+v: not found", said)
		}
	}
}

// history is messages, each with a broker that accepted it.
type history [][2]string

// compare compares h with messages a and b at the first broker and c at the second.
func (c *chaos) compare(h history, gaps int) {
	said := &told{accepted: make(map[string][]string), known: make(map[string]bool), gaps: gaps}
	for _, m := range h {
		said.known[m[0]] = true
		said.accepted[m[0]] = append(said.accepted[m[0]], m[1])
	}
	c.account.compareHistory(said, map[string]int{c.ways[0].Listen: 0, c.ways[1].Listen: 1},
		[3][]delivery{{{ID: "a"}, {ID: "b"}}, {{ID: "c"}}})
}

// quietMetrics is what a relay serves that has these counters.
func quietMetrics(t *testing.T, counters map[string]int) metrics {
	t.Helper()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		family, _, _ := strings.Cut(strings.TrimSuffix(name, "_count"), "{")
		kind := "counter"
		if family+"_count" == name {
			kind = "histogram"
		}
		if line := fmt.Sprintf("# TYPE koji_relay_%s %s\n", family, kind); !strings.Contains(text.String(), line) {
			text.WriteString(line)
		}
		fmt.Fprintf(&text, "koji_relay_%s %d\n", name, counters[name])
	}
	return parseMetrics(t, text.String())
}

// textMetrics is one counter as a relay serves it.
func textMetrics(t *testing.T, name, label, value string, n float64) metrics {
	t.Helper()
	return parseMetrics(t, fmt.Sprintf("# TYPE %s counter\n%s{%s=%q} %v\n", name, name, label, value, n))
}

func parseMetrics(t *testing.T, text string) metrics {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	m, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fakeCommand is a program in the place of koji-relay, whose commands end in different ways.
func fakeCommand(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "koji-relay")
	text := `#!/bin/sh
case $1 in
true) exit 0 ;;
said) echo "koji-relay: no answer" >&2; exit 1 ;;
silent) exit 1 ;;
panic) echo "panic: nil pointer" >&2; exit 2 ;;
esac
`
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}
