package queue

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"koji-relay/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashDir) != "" {
		crashingProcess()
	}
	if os.Getenv(fullDisk) != "" {
		fullDiskProcess()
		return
	}
	code := m.Run()
	pgtest.Stop()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left over:", err)
			code = 1
		}
	}
	os.Exit(code)
}
