package file

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

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

// The recorder must come to its end on a disk that does not answer. That is made here by a transaction that
// holds the file.
func TestADiskThatDoesNotAnswerIsWaitedForNoLongerThanTheContext(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	holds, err := s.state.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := s.Append(ctx, &history.Batch{Writer: "test"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Append gives %v", err)
		}
		if _, err := s.Begin(ctx, "test"); err == nil {
			t.Error("Begin says that it has begun")
		}
		if err := s.End(ctx, "test"); err == nil {
			t.Error("End says that it has ended")
		}
		cancel()
	}
	if err := holds.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), &history.Batch{Writer: "test"}); err != nil {
		t.Errorf("when the disk answers again, Append gives %v", err)
	}
}
