package file

import (
	"testing"

	"koji-relay/queue"
)

func openAt(tb testing.TB, path string, l queue.Limits) *Store {
	tb.Helper()
	f, err := Open(path, Options{Limits: l})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}
