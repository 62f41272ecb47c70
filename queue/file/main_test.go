package file

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestMain(m *testing.M) {
	if storetest.Crashing() {
		storetest.CrashingProcess(func(where string) (queue.Store, error) {
			return Open(where, Options{InUseTimeout: 10 * time.Second})
		})
	}
	if os.Getenv(fullDisk) != "" {
		fullDiskProcess()
		return
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left over:", err)
			code = 1
		}
	}
	os.Exit(code)
}
