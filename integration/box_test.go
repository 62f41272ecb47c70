package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// box is a clean Debian of its own, in which packages are installed. It shares the network of this machine,
// so that the relay in it reaches the brokers of the tests.
type box struct {
	name string // of the container
	tree string // else: of the directory
}

// newBox starts a box; with systemd it is the first process there, else nothing runs. Without a container
// engine only the latter can be had: nil. More arguments are the engine's.
func newBox(t testing.TB, systemd bool, more ...string) *box {
	t.Helper()
	mode, err := where()
	if err != nil {
		skipOrFail(t, "a clean Debian: %v", err)
	}
	if mode == "native" {
		if systemd {
			return nil
		}
		return newTreeBox(t)
	}
	image := "koji-relay-test/systemd"
	if !systemd {
		image = imageName("debian-bookworm")
		if exec.Command("docker", "image", "inspect", image).Run() != nil {
			image = "debian:bookworm" // where a registry answers, this is the base of ours
		}
	}
	b := &box{name: "koji-relay-box-" + uuid.NewString()[:8]}
	args := []string{"run", "-d", "--name", b.name, "--label", "koji-relay.run=" + os.Getenv("KOJI_RELAY_RUN")}
	if len(more) == 0 {
		more = []string{"--network", "host"}
	}
	args = append(args, more...)
	if systemd {
		if out, err := exec.Command("../packaging/testimage/build").CombinedOutput(); err != nil {
			t.Fatalf("make a Debian with systemd: %v\n%s", err, out)
		}
		// Not --privileged: this much is enough, and may be allowed where that is not.
		args = append(args, "--cgroupns", "private", "--cap-add", "SYS_ADMIN", "--security-opt",
			"seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--env", "container=docker",
			"--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", image)
	} else {
		args = append(args, image, "sleep", "600")
	}
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", b.name).Run() })
	if out, err := exec.Command("docker", args...).CombinedOutput(); err != nil {
		t.Fatalf("start a clean Debian: %v\n%s", err, out)
	}
	if systemd {
		eventually(t, 30*time.Second, "systemd in a container", func() error {
			out, err := b.try("systemctl is-system-running || [ $? = 1 ] && systemctl is-active multi-user.target")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	return b
}

// newTreeBox is a copy of the tree that the native servers are made from, entered with chroot.
func newTreeBox(t testing.TB) *box {
	t.Helper()
	const source = "../.cache/images/bookworm"
	if _, err := os.Stat(source + "/.complete"); err != nil {
		skipOrFail(t, "a clean Debian: %v; run integration/images/build --native", err)
	}
	tree, err := os.MkdirTemp(scratch, "box")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tree) })
	if out, err := exec.Command("cp", "-a", source+"/.", tree).CombinedOutput(); err != nil {
		t.Fatalf("copy a Debian: %v\n%s", err, out)
	}
	if err := os.Chmod(tree, 0o755); err != nil { // MkdirTemp lets nobody else in
		t.Fatal(err)
	}
	return &box{tree: tree}
}

// command runs a program in the box as user ("" = root). With its standard input, if it has one.
func (b *box) command(ctx context.Context, user string, args ...string) *exec.Cmd {
	if b.tree != "" {
		full := []string{b.tree}
		if user != "" {
			full = append(full, "setpriv", "--reuid", user, "--regid", user, "--init-groups")
		}
		cmd := exec.CommandContext(ctx, "chroot", append(full, args...)...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
		return cmd
	}
	full := []string{"exec", "-i"}
	if user != "" {
		full = append(full, "--user", user)
	}
	return exec.CommandContext(ctx, "docker", append(append(full, b.name), args...)...)
}

// try runs a shell script in the box, by sh or another shell, and gives all that it printed.
func (b *box) try(script string, shell ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := b.command(ctx, "", append(shell, "sh")[0], "-ec", script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run is try for a script that must not fail.
func (b *box) run(t testing.TB, script string) string {
	t.Helper()
	out, err := b.try(script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// fails is try for a script that must fail.
func (b *box) fails(t testing.TB, script string) string {
	t.Helper()
	out, err := b.try(script)
	if err == nil {
		t.Errorf("%s: succeeded\n%s", script, out)
	}
	return out
}

// prints fails t unless the script prints just this.
func (b *box) prints(t testing.TB, want, script string) {
	t.Helper()
	if got := b.run(t, script); got != want {
		t.Errorf("%s: printed %q, want %q", script, got, want)
	}
}

// becomes waits until the script prints just this, whether it fails or not.
func (b *box) becomes(t testing.TB, want, script string) {
	t.Helper()
	eventually(t, 20*time.Second, script, func() error {
		if got, _ := b.try(script); got != want {
			return fmt.Errorf("it prints %q, want %q", got, want)
		}
		return nil
	})
}

// write puts a file into the box, for root.
func (b *box) write(t testing.TB, path, mode string, content []byte) {
	t.Helper()
	cmd := b.command(within(t, time.Minute), "", "sh", "-ec",
		`mkdir -p "$(dirname "$0")"; cat >"$0"; chmod "$1" "$0"`, path, mode)
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write %s: %v\n%s", path, err, out)
	}
}

// put copies a file of this machine into the directory / of the box.
func (b *box) put(t testing.TB, path string) (inside string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	inside = "/" + filepath.Base(path)
	b.write(t, inside, "755", content)
	return inside
}

// hub is the workers of a hub in the box, as user.
func (b *box) hub(t testing.TB, user string, args ...string) *workers {
	t.Helper()
	args = append([]string{"/workers", "-commit", oneTag(t)}, args...)
	return startWorkers(t, b.command(context.Background(), user, args...))
}
