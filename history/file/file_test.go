package file

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
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

// While the disk does not answer nothing else waits for longer than it said, and searches do not wait at all.
func TestADiskThatDoesNotAnswerHoldsUpNoSearch(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	today := time.Now().UTC().Truncate(24 * time.Hour)
	old, m := storetest.Tagged(1, today.Add(-10*24*time.Hour)), storetest.Tagged(2, today)
	storetest.Append(t, s, inspect.Accepted, old, m)
	holds, err := s.state.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holds.Rollback() }()
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if _, err := s.Tidy(soon(), 24*time.Hour, 1<<40); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Tidy gives %v", err)
	}
	if err := s.AddReplay(soon(), &inspect.Replay{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AddReplay gives %v", err)
	}
	if _, err := s.SaveReplay(soon(), &inspect.Replay{ID: 1}, "test"); !errors.Is(err,
		context.DeadlineExceeded) {
		t.Errorf("SaveReplay gives %v", err)
	}
	if shown, err := history.Show(t.Context(), s, m.ID); err != nil || shown.MessageID != m.ID {
		t.Errorf("Show gives %+v, %v", shown, err)
	}
	err = history.Search(t.Context(), s, inspect.HistoryQuery{Tag: "f4*"},
		func(*inspect.HistoryMessage) error { return nil })
	if err != nil {
		t.Errorf("Search gives %v", err)
	}
}

// The recorder gives a batch again that it has waited for too long.
func TestABatchThatIsWrittenLateIsWrittenOnce(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	m := storetest.Tagged(1, time.Now().UTC().Truncate(time.Second))
	row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Accepted})
	if err != nil {
		t.Fatal(err)
	}
	b := &history.Batch{Writer: "test", Rows: []history.Row{row}}
	holds, err := s.state.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Append(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Append gives %v", err)
	}
	if err := holds.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	rows, _, err := s.Load(t.Context(), []string{m.ID}, false)
	if err != nil || len(rows) != 1 {
		t.Errorf("it is stored %d times, %v", len(rows), err)
	}
}

// A day is dropped at once: whoever reads it comes to the end, and nobody waits for that.
func TestADayIsDroppedUnderASearch(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	today := time.Now().UTC().Truncate(24 * time.Hour)
	old := today.Add(-10 * 24 * time.Hour)
	storetest.Append(t, s, inspect.Accepted, storetest.Tagged(1, old), storetest.Tagged(2, today))
	name := old.Format(dayFormat)
	search := dayFile{name, s.days[name]}
	err := search.view(func(tx *bbolt.Tx) error {
		usage, err := s.Tidy(t.Context(), 7*24*time.Hour, 1<<40)
		if err != nil || len(usage.Dropped) != 1 {
			t.Errorf("it dropped %v, error %v", usage.Dropped, err)
		}
		storetest.Append(t, s, inspect.Accepted, storetest.Tagged(3, today))
		if k, _ := tx.Bucket([]byte("row")).Cursor().First(); k == nil {
			t.Error("the search does not find what it began with")
		}
		if _, err := os.Stat(s.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is there: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	s.dropped.Wait()
	if err := search.view(func(*bbolt.Tx) error { return errors.New("seen") }); err != nil {
		t.Errorf("a search that comes too late gives %v", err)
	}
}
