package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// TestImage builds the container image and runs it as compose.yaml has it, under a root that cannot be
// written and without capabilities: a stand-in for the hub hands over, and the messages wait in PostgreSQL,
// for nobody has bound their topic.
func TestImage(t *testing.T) {
	t.Parallel()
	mode, err := where()
	if err != nil {
		skipOrFail(t, "containers: %v", err)
	}
	if mode == "native" {
		t.Log("not shown here: an image needs a container engine")
		return
	}
	id := "koji-relay-image-" + uuid.NewString()[:8]
	build := exec.Command("../packaging/image/build", id)
	build.Env = append(os.Environ(), "ENGINE=docker", "HUB=1", "VERSION=1.2.3")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("docker", "rmi", "-f", id, id+"-hub").Run() })
	if out, err := exec.Command("docker", "run", "--rm", "--read-only", id, "--version").Output(); err != nil ||
		strings.TrimSpace(string(out)) != "koji-relay version 1.2.3" {
		t.Fatalf("the image runs %q %v", out, err)
	}
	inspect := exec.Command("docker", "image", "inspect", "-f", "{{.Config.User}} {{len .RootFS.Layers}}", id)
	if out, err := inspect.Output(); err != nil || !strings.HasPrefix(string(out), "65532:65532 ") {
		t.Errorf("the image runs as %q %v", out, err)
	}

	compose := func(args ...string) (string, error) {
		cmd := exec.Command("docker-compose", append([]string{"-p", id, "-f", "../packaging/image/compose.yaml"},
			args...)...)
		cmd.Env = append(os.Environ(), "RELAY_IMAGE="+id,
			"POSTGRES_IMAGE="+imageName("postgres-15"), "RABBITMQ_IMAGE="+imageName("rabbitmq-4.0"))
		out, err := cmd.Output()
		if exit, ok := err.(*exec.ExitError); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return string(out), err
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := compose("logs", "--no-color", "--tail", "20")
			t.Log(log)
		}
		if out, err := compose("down", "-v", "-t", "2"); err != nil {
			t.Errorf("take the containers down: %v\n%s", err, out)
		}
	})
	if _, err := compose("up", "-d"); err != nil {
		t.Fatal(err)
	}
	waiting := func() (n int64, err error) {
		out, err := compose("exec", "-T", "relay", "/usr/bin/koji-relay", "queue", "status", "--json")
		if err != nil {
			return 0, err
		}
		var status struct {
			Queue struct{ Depth int64 }
		}
		err = json.Unmarshal([]byte(out), &status)
		return status.Queue.Depth, err
	}
	eventually(t, 90*time.Second, "the relay with its database",
		func() error { _, err := waiting(); return err })
	eventually(t, 60*time.Second, "all commits of the stand-in hub are taken", func() error {
		out, err := compose("logs", "--no-color", "hub")
		if err == nil && !strings.Contains(out, `{"taken":100,"fallbacks":{},`) {
			err = fmt.Errorf("it says %s", out)
		}
		return err
	})
	if n, err := waiting(); err != nil || n < 100 {
		t.Errorf("%d messages wait in the queue, want 100 or more: %v", n, err)
	}
}
