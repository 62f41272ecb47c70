package postgres

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestMain(m *testing.M) {
	if storetest.Crashing() {
		storetest.CrashingProcess(func(where string) (queue.Store, error) {
			return Open(context.Background(), Options{ConnString: where})
		})
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
