package file

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"koji-relay/history"
	"koji-relay/history/storetest"
)

// BenchmarkSearch models an administrator's questions after a week. Ten million messages, the number that is
// promised for: KOJI_RELAY_HISTORY_ROWS=10000000. KOJI_RELAY_HISTORY_DIR may name a directory for them, which
// is filled once and kept.
func BenchmarkSearch(b *testing.B) {
	dir := os.Getenv("KOJI_RELAY_HISTORY_DIR")
	if dir == "" {
		dir = filepath.Join(b.TempDir(), "history")
	}
	_, err := os.Stat(filepath.Join(dir, "filled"))
	s := open(b, dir)
	n := storetest.SiteSize()
	if err != nil {
		fill(b, s, n)
		if err := os.WriteFile(filepath.Join(dir, "filled"), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	storetest.Search(b, s, n)
}

// fill stores n messages, and waits for the disk only at the end.
func fill(tb testing.TB, s *Store, n int) {
	tb.Helper()
	s.state.NoSync = true
	began := time.Now()
	storetest.Fill(tb, n, func(b *history.Batch) error {
		err := s.Append(tb.Context(), b)
		for _, db := range s.days {
			db.NoSync = true
		}
		return err
	})
	for _, db := range s.days {
		if err := db.Sync(); err != nil {
			tb.Fatal(err)
		}
		db.NoSync = false
	}
	usage, err := s.Tidy(tb.Context(), 30*24*time.Hour, 1<<50)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("%d messages in %v; %.0f bytes each", n, time.Since(began), float64(usage.Bytes)/float64(n))
}
