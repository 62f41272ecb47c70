package devbroker_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/internal/devbroker"
)

// protonPython is a Python that has python-proton. Without one the test skips, or fails where real
// servers are required.
func protonPython(t *testing.T) string {
	t.Helper()
	python := os.Getenv("KOJI_RELAY_PROTON_PYTHON")
	if python == "" {
		python = "/usr/bin/python3"
	}
	out, err := exec.Command(python, "-c", "import proton").CombinedOutput()
	if err == nil {
		return python
	}
	if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
		t.Fatalf("%s has no python-proton: %v\n%s", python, err, out)
	}
	t.Skipf("%s has no python-proton", python)
	return ""
}

func TestProtonAgrees(t *testing.T) {
	t.Parallel()
	python := protonPython(t)
	b := start(t, devbroker.Options{
		Mechanisms: []string{"ANONYMOUS", "PLAIN"}, Users: map[string]string{"koji": "s3cret"},
		Product: "devbroker", Version: "1.0", TopicPrefix: "topic://", MaxFrameSize: 4096, Credit: 20,
	})
	for pattern, outcome := range map[string]devbroker.Outcome{
		"script.reject": devbroker.Reject, "script.release": devbroker.Release, "script.modify": devbroker.Modify,
	} {
		b.Script(pattern, devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: outcome}})
	}
	b.Script("script.refuse", devbroker.Behaviour{
		Refuse: devbroker.RefuseLink, RefuseCause: devbroker.Cause{Condition: "amqp:not-found", Description: "no"},
	})
	cmd := exec.CommandContext(soon(t), python, "testdata/second_opinion.py", b.URL(), "koji", "s3cret")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the script: %v", err)
	}
	var seen, want any
	if err := json.Unmarshal(out, &seen); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{
		"container": "devbroker",
		"properties": {"product": "devbroker", "version": "1.0", "topic-prefix": "topic://"},
		"sent": "ACCEPTED",
		"received": {"id": "id-1", "body": "{\"a\": 1}", "durable": true, "properties":
			{"type": "Tag", "id": 5, "big": 123456, "parent": null, "expire": true, "weight": 1.5}},
		"big_sent": "ACCEPTED", "big_same": true, "pipelined": 100,
		"reject": "REJECTED", "release": "RELEASED", "modify": "MODIFIED", "refuse": "amqp:not-found",
		"again": "again", "anonymous": "ACCEPTED", "anonymous_received": "to", "dynamic": "dynamic"
	}`), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("proton saw (-want +got):\n%s", diff)
	}
}
