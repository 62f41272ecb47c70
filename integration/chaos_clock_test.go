package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// steppedClock is added to package time: the wall clock is the real one plus the seconds in the file that
// KOJI_RELAY_TEST_CLOCK names. The monotonic clock goes on, as it does when somebody sets a machine's clock.
// libfaketime cannot do this to a Go program, which asks the kernel itself.
const steppedClock = `package time

import (
	"sync/atomic"
	"syscall"
)

var wallOffset atomic.Int64

func init() {
	if name, ok := syscall.Getenv("KOJI_RELAY_TEST_CLOCK"); ok {
		go followClock(name)
	}
}

func followClock(name string) {
	for {
		if file, err := open(name); err == nil {
			text := make([]byte, 32)
			n, _ := read(file, text)
			closefd(file)
			if seconds, err := atoi(string(text[:max(n, 0)])); err == nil {
				wallOffset.Store(int64(seconds))
			}
		}
		Sleep(100 * Millisecond)
	}
}
`

// steppableBinary is the program in a build whose clock can be set.
var steppableBinary = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("find the Go library: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	const asks = "sec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(text), asks) != 1 {
		return "", fmt.Errorf("%s does not have the line %q once: adapt this test to %s", source, asks,
			runtime.Version())
	}
	changed := filepath.Join(scratch, "time.go")
	added := filepath.Join(scratch, "stepped.go")
	stepped := strings.Replace(string(text), asks, asks+"\tsec += wallOffset.Load()\n", 1)
	if err := os.WriteFile(changed, []byte(stepped), 0o600); err != nil {
		return "", err
	}
	if err := os.WriteFile(added, []byte(steppedClock), 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {
		source: changed, filepath.Join(filepath.Dir(source), "stepped.go"): added,
	}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(scratch, "overlay.json")
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return "", err
	}
	return build("koji-relay-steppable", "koji-relay/cmd/koji-relay", "-overlay", overlay)
})

// clock is the wall clock of one part.
type clock struct{ file string }

// newClock is a clock that is right.
func newClock(name string) (clock, error) {
	c := clock{filepath.Join(scratch, name)}
	return c, c.set(0)
}

// set makes the clock wrong by offset. It is replaced at once, so that nobody reads half of it.
func (c clock) set(offset time.Duration) error {
	text := fmt.Sprintf("%+d", int(offset.Seconds()))
	if offset == 0 {
		text = "+0"
	}
	if err := os.WriteFile(c.file+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(c.file+".new", c.file)
}

// relayEnv is the environment of a relay with this clock.
func (c clock) relayEnv() []string { return []string{"KOJI_RELAY_TEST_CLOCK=" + c.file} }

// fakeTime is where Debian's libfaketime is; "" without it.
var fakeTime = sync.OnceValue(func() string {
	found, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(found) == 0 {
		return ""
	}
	return found[0]
})

// serverEnv is the environment of a C program with this clock; nil without libfaketime.
func (c clock) serverEnv() []string {
	if fakeTime() == "" {
		return nil
	}
	return []string{"LD_PRELOAD=" + fakeTime(), "FAKETIME_TIMESTAMP_FILE=" + c.file,
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_CACHE_DURATION=1"}
}
