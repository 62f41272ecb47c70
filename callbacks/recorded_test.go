package callbacks_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

const recordedCommit = "00000000-0000-4000-8000-000000000001"

// recordedEvent is an event of a real hub: what the hub plugin handed over, and what protonmsg of the same
// Koji sent. It sent nothing of some.
type recordedEvent struct {
	Callback string `json:"callback"`
	Text     string `json:"text"`
	Messages []struct {
		ExtraLimit []int    `json:"extra_limit"` // it was the same with these
		Target     string   `json:"target"`
		TTL        float64  `json:"ttl"` // seconds; 7200 were configured
		Props      [][3]any `json:"props"`
		Body       *string  `json:"body"` // nil: the text
	} `json:"messages"`
}

// TestRecordedHubsGiveProtonmsgsMessagesToTheByte: hubs from Koji 1.28 on, each with its own protonmsg. What
// differs from protonmsg stands in docs/migration.md: up to Koji 1.35.3 it does not know ttl.
func TestRecordedHubsGiveProtonmsgsMessagesToTheByte(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("../testdata/koji/*.jsonl")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d recordings: %v", len(paths), err)
	}
	compared, addresses, methods := 0, make(map[string]bool), make(map[string]bool)
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var commit struct {
				Method string          `json:"method"`
				Events []recordedEvent `json:"events"`
			}
			d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
			d.UseNumber()
			if err := d.Decode(&commit); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			for _, event := range commit.Events {
				methods[commit.Method] = true
				for _, limit := range []int{0, 60} {
					want, ttl := event.sent(limit)
					got := event.translated(t, limit)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s: %s, %s with extra_limit %d (-protonmsg +ours):\n%s", path,
							commit.Method, event.Callback, limit, diff)
					}
					if want == nil {
						continue
					}
					addresses[want.Address] = true
					compared++
					if known := strings.HasPrefix(filepath.Base(path), "master-"); known != (ttl == 7200) {
						t.Errorf("%s: protonmsg sent with a ttl of %v s", path, ttl)
					}
				}
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	for want := range strings.FieldsSeq(`package.add package.update package.block
		package.unblock package.remove task.free task.open task.closed task.canceled task.failed task.assigned
		build.building build.complete build.failed build.canceled build.deleted
		build.tag build.untag build.promote
		import.rpm import.build import.archive import.cg import.image sign.rpm repo.init repo.done`) {
		if !addresses[want] {
			t.Errorf("no recorded message to %s", want)
		}
	}
	if !methods["the scheduler"] {
		t.Error("no task that the scheduler assigned outside of a call")
	}
	t.Logf("%d messages of %d recordings", compared, len(paths))
}

// sent is what protonmsg sent of the event with that limit, nil for nothing, and its ttl.
func (e recordedEvent) sent(limit int) (*goldenMessage, float64) {
	for _, m := range e.Messages {
		if slices.Contains(m.ExtraLimit, limit) {
			body := e.Text
			if m.Body != nil {
				body = *m.Body
			}
			return &goldenMessage{Commit: recordedCommit, Callback: e.Callback,
				Address: strings.TrimPrefix(m.Target, "topic://koji."), Props: m.Props, Body: body}, m.TTL
		}
	}
	return nil, 0
}

// translated is what koji-relay makes of the event.
func (e recordedEvent) translated(t *testing.T, limit int) *goldenMessage {
	t.Helper()
	rules := newRules(t, callbacks.Options{ExtraLimit: limit})
	tr := rules.Translate(message.Commit{ID: recordedCommit, Events: []message.Event{
		{Callback: e.Callback, Kwargs: []byte(e.Text)}}})
	if len(tr.Messages) == 0 {
		if len(tr.Skipped) != 1 {
			t.Errorf("%s is neither a message nor skipped: %+v", e.Callback, tr)
		}
		return nil
	}
	m := asGolden(tr.Messages[0])
	return &m
}
