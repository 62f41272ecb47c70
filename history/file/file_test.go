package file

import (
	"errors"
	"path/filepath"
	"testing"

	"koji-relay/history"
	"koji-relay/history/storetest"
)

func open(tb testing.TB, dir string) *Store {
	tb.Helper()
	s, err := Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) history.Store {
		return open(t, filepath.Join(t.TempDir(),
			"history"))
	})
}

func TestOneProcessHasTheDirectoryOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	if _, err := Open(dir); !errors.Is(err, history.ErrInUse) {
		t.Errorf("opening it again gives %v", err)
	}
}
