package integration

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"koji-relay/internal/pgtest"
)

// onAFullDisk leads a relay whose queue is a file through a full disk.
func onAFullDisk(t *testing.T, broker, db *server) []scraped {
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=32m"); err != nil {
		skipOrFail(t, "mount a small disk: %v; run as root", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) }) // its relay ends later
	s := newAlertSite(t, broker, db, "fulldisk", false,
		settings{"queue.store": "file", "queue.path": filepath.Join(disk, "queue.db")})
	others := filepath.Join(disk, "others")
	return unwritable(t, s, func() {
		f, err := os.Create(others)
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		f.Close()
	}, func() {
		if err := os.Remove(others); err != nil {
			t.Fatal(err)
		}
	})
}

// onAStandby leads a relay to a server that was the primary, and is a standby now.
func onAStandby(t *testing.T, broker, db *server) []scraped {
	primary := pgtest.StartCluster(t, "fsync = off")
	pgtest.SQL(t, primary.ConnString("postgres"), "CREATE DATABASE koji")
	s := newAlertSite(t, broker, db, "standby", false, nil)
	to := func(c *pgtest.Cluster) {
		s.relay.configure(t, s.settings.with(settings{"queue.database": c.ConnString("koji")}))
	}
	to(primary)
	s.relay.command(t, "", "db", "init")
	standby := primary.Standby(t)
	return unwritable(t, s, func() {
		s.relay.kill(t)
		to(standby)
		s.relay.start(t)
		s.until("its brokers are up", is("koji_relay_broker_up", 2))
	}, func() { standby.Promote(t) })
}

// unwritable leads a relay through a store that can be read and not written, with a broker and without one:
// all that it says of itself is compared with what the hub is answered. It gives scrapes of before, without a
// broker, and after it.
func unwritable(t *testing.T, s *alertSite, begin, end func()) []scraped {
	const soon = 2 * time.Minute // promised are 5 s; a busy machine gets more
	answered := func(when string, body []byte, want int) {
		t.Helper()
		if got := s.post(body); got != want {
			t.Errorf("%s the hub was answered %d, want %d", when, got, want)
		}
	}
	s.relay.says(t, s.admin, soon, "ok", "")
	seen := []scraped{s.scrape()}
	begin()
	s.relay.says(t, s.admin, soon, "degraded", "STORE_UNUSABLE")
	answered("with a broker", tag(), http.StatusOK)
	answered("for a topic that nobody has bound", unboundCommit(), http.StatusServiceUnavailable)
	s.relay.says(t, s.admin, soon, "degraded", "HANDED_BACK")
	s.ways[0].cut()
	s.ways[1].cut()
	s.relay.says(t, s.admin, soon, "not_ready", "STORE_UNUSABLE")
	answered("without a broker", tag(), http.StatusServiceUnavailable) // a small one, too
	s.relay.says(t, s.admin, soon, "not_ready", "STORE_UNUSABLE")
	seen = append(seen, s.scrape())
	end()
	s.relay.says(t, s.admin, soon, "degraded", "NO_BROKER")
	answered("with a store again", tag(), http.StatusOK)
	s.ways[0].mend()
	s.ways[1].mend()
	s.relay.says(t, s.admin, soon, "ok", "")
	return append(seen, s.scrape())
}
