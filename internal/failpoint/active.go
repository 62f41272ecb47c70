//go:build failpoints

// Package failpoint lets a test kill the program between two named steps. It promises that a build without
// the tag failpoints contains nothing of it; it never does anything but kill its own process.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled says whether this build can be killed at a failpoint.
const Enabled = true

// KOJI_RELAY_FAILPOINT=NAME[:N] kills the process when it hits NAME for the Nth time (default the first).
var name, nth = parse(os.Getenv("KOJI_RELAY_FAILPOINT"))

var hits atomic.Int64

func parse(text string) (string, int64) {
	name, count, _ := strings.Cut(text, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	return name, n
}

// Hit kills the process with SIGKILL, after a line on standard error, if the environment says so. It does not
// return then: no deferred call runs, no buffer is flushed, as with a crash.
func Hit(at string) {
	if at != name || hits.Add(1) != nth {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s\n", at)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
