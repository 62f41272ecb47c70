package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	tclog "github.com/testcontainers/testcontainers-go/log"
)

// scratch holds what the whole run shares: certificates, the built program. Removed at the end.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		// The reaper is an image of its own, which cannot be had where no registry answers. What it is for,
		// .ci/servers does by label.
		os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
		tclog.SetDefault(silent{})
		// The race detector keeps each process that ends for a second, in case that a goroutine still does harm. It
		// reports what it finds at once, and the tests end hundreds of processes.
		os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
		var err error
		if scratch, err = os.MkdirTemp("", "koji-relay-test-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(scratch)
		defer removeServers()
		return m.Run()
	}())
}

// required reports whether absent servers are a failure.
func required() bool { return os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" }

// skipOrFail ends t: something that it needs is not there.
func skipOrFail(t testing.TB, format string, args ...any) {
	t.Helper()
	if required() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// binary is the path of the built program.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("KOJI_RELAY_BINARY"); path != "" {
		return path, nil
	}
	return build("koji-relay", "koji-relay/cmd/koji-relay")
})

// build makes a program statically, as the packages do: it runs in any container, and what both need is
// compiled once.
func build(name, pkg string, flags ...string) (path string, err error) {
	path = filepath.Join(scratch, name)
	cmd := exec.Command("go", slices.Concat([]string{"build", "-trimpath", "-o", path}, flags, []string{pkg})...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return path, nil
}

// eventually calls check until it returns nil, for real I/O that gives no signal; t fails with its last
// error when limit has passed.
func eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	if err := poll(limit, check); err != nil {
		t.Fatalf("%s: not within %v: %v", what, limit, err)
	}
}

func poll(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		began := time.Now()
		err := check()
		left := time.Until(deadline)
		if err == nil || left <= 0 {
			return err
		}
		// A look that starts a program takes processor time from what it waits for: it rests for twice as long.
		<-time.After(min(max(50*time.Millisecond, 2*time.Since(began)), time.Second, left))
	}
}

// within is a context for calls of a test; what hangs fails instead of stopping the whole run.
func within(t testing.TB, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit,
		errors.New("the test waited "+limit.String()))
	t.Cleanup(cancel)
	return ctx
}
