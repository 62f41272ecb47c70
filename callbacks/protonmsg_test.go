package callbacks_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

var update = flag.Bool("update", false, "keep what protonmsg made of random events")

// TestTranslationIsWhatProtonmsgSends compares random events, as the hub plugin hands them over, with what
// Koji's protonmsg made of the same values and python-proton put on the wire. testdata/protonmsg.jsonl has
// what the plugin of July 2025 did.
//
// KOJI_RELAY_PROTONMSG renders others: Koji's plugins/hub/protonmsg.py. KOJI_RELAY_KOJI is a directory with
// its library then, KOJI_RELAY_RESTATE_EVENTS how many for each limit, KOJI_RELAY_RESTATE_SEED which. With
// -update they are kept.
func TestTranslationIsWhatProtonmsgSends(t *testing.T) {
	t.Parallel()
	const kept = "testdata/protonmsg.jsonl"
	limits := []int{0, 60, -300}
	var text bytes.Buffer
	if plugin := os.Getenv("KOJI_RELAY_PROTONMSG"); plugin != "" {
		for _, limit := range limits {
			seed := environment(t, "KOJI_RELAY_RESTATE_SEED", 1)
			count := environment(t, "KOJI_RELAY_RESTATE_EVENTS", 120)
			out, err := exec.Command("/usr/bin/python3", "testdata/protonmsg_random.py", plugin,
				os.Getenv("KOJI_RELAY_KOJI"), strconv.Itoa(seed), strconv.Itoa(count), strconv.Itoa(limit)).Output()
			if err != nil {
				t.Fatalf("testdata/protonmsg_random.py: %v", err)
			}
			text.WriteString(`{"limit": ` + strconv.Itoa(limit) + "}\n")
			text.Write(out)
		}
		if *update {
			if err := os.WriteFile(kept, text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	} else {
		recorded, err := os.ReadFile(kept)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(recorded)
	}
	var rules *callbacks.Rules
	same, others := 0, 0
	for lines := bufio.NewReader(&text); !t.Failed(); {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		var r restated
		var head struct{ Limit *int }
		if err := json.Unmarshal(line, &head); err != nil {
			t.Fatal(err)
		}
		if head.Limit != nil {
			if rules, err = callbacks.New(callbacks.Options{ExtraLimit: *head.Limit}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		switch string(r.Want) {
		case `"failed"`, `"odd"`:
			// There the hub call fails, or what is sent is no JSON. The relay has one answer for each event.
			others++
			event := message.Event{Callback: r.Callback, Kwargs: []byte(r.Kwargs)}
			got := rules.Translate(message.Commit{ID: commitID, Events: []message.Event{event}})
			n := len(got.Messages) + len(got.Skipped) + len(got.Undeliverable)
			if n != 1 || !json.Valid([]byte(r.Kwargs)) {
				t.Errorf("%s %s became %+v", r.Callback, r.Kwargs, got)
			}
		default:
			same++
			r.compare(t, rules)
		}
	}
	t.Logf("%d events compared with protonmsg's, %d that it cannot send", same, others)
	if !t.Failed() && (same < 200 || others > same/4) {
		t.Errorf("%d events were compared, and %d not", same, others)
	}
}
