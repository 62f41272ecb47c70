package callbacks_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// A busy hub: the golden run's commits, tags and task changes for the most part, one of 100 kB among them.
func BenchmarkGoldenCommits(b *testing.B) {
	for _, options := range []struct {
		name string
		o    callbacks.Options
	}{
		{"protonmsg", callbacks.Options{}},
		{"all", callbacks.Options{Events: []string{"*"}}},
		{"trimmed", callbacks.Options{ExtraLimit: 500}},
	} {
		b.Run(options.name, func(b *testing.B) {
			rules := newRules(b, options.o)
			var lines [][]byte
			size := 0
			golden(b, "commits.extra0.jsonl", func(line []byte) {
				lines = append(lines, bytes.Clone(line))
				size += len(line)
			})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			events := 0
			for b.Loop() {
				for _, line := range lines {
					c, err := callbacks.DecodeCommit(line)
					if err != nil {
						b.Fatal(err)
					}
					events += len(c.Events)
					rules.Translate(c)
				}
			}
			b.ReportMetric(float64(events)/float64(b.N), "events/op")
		})
	}
}

// The least that reading the golden commits could cost.
func BenchmarkGoldenValid(b *testing.B) {
	var lines [][]byte
	size := 0
	golden(b, "commits.extra0.jsonl", func(line []byte) {
		lines = append(lines, bytes.Clone(line))
		size += len(line)
	})
	b.SetBytes(int64(size))
	for b.Loop() {
		for _, line := range lines {
			if !json.Valid(line) {
				b.Fatal("not JSON")
			}
		}
	}
}

// One build tagged: the commonest commit, on the hub's time.
func BenchmarkOneTag(b *testing.B) {
	line := []byte(withEvents(
		`{"event": 0, "callback": "preTag", "kwargs": {}}, {"event": 1, "callback": "postTag", "kwargs": ` +
			`{"tag": {"name": "f39"}, "build": {"name": "bash", "version": "5.2", "release": "1", ` +
			`"extra": {"source": {"original_url": "` +
			strings.Repeat("x", 700) + `"}}}, "user": {"name": "mike"}, "force": null}}`))
	rules := newRules(b, callbacks.Options{})
	b.ReportAllocs()
	for b.Loop() {
		c, err := callbacks.DecodeCommit(line)
		if err != nil {
			b.Fatal(err)
		}
		if len(rules.Translate(c).Messages) != 1 {
			b.Fatal("no message")
		}
	}
}

// A container build by a content generator: 8 MB of extra, sent whole and cut.
func BenchmarkLargeExtra(b *testing.B) {
	extra := `{"image": {"index": [` +
		strings.Repeat(`{"digest": "sha256:0123456789abcdef", "n": 1.5, "t": "\u00e9"}, `, 120_000) + `null]}}`
	c := message.Commit{ID: commitID, Events: []message.Event{{Callback: "postTag", Kwargs: []byte(
		`{"tag": {"name": "f39"}, "build": {"name": "bash", "extra": ` + extra + `}, "user": {"name": "mike"}}`)}}}
	for _, row := range []struct {
		name  string
		limit int
	}{{"whole", 0}, {"cut", 500}} {
		b.Run(row.name, func(b *testing.B) {
			rules := newRules(b, callbacks.Options{ExtraLimit: row.limit})
			b.SetBytes(int64(len(c.Events[0].Kwargs)))
			b.ReportAllocs()
			for b.Loop() {
				rules.Translate(c)
			}
		})
	}
}
