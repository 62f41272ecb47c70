package postgres

import (
	"os"
	"syscall"
	"testing"
	"time"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestKilledProcessLosesNothingAndRepeatsOnlyUnderTheSameID(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	storetest.KillRepeatedly(t, conn, func() storetest.Store { return open(t, conn, queue.Limits{}) })
}

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(tb testing.TB, l queue.Limits) storetest.Store { return open(tb, hubDatabase(tb), l) })
}

// TestServerKilledDuringPutDrainAndDeleteLosesNothing kills PostgreSQL while one process puts and drains.
func TestServerKilledDuringPutDrainAndDeleteLosesNothing(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	dir := t.TempDir()
	cmd := storetest.CrashingCommand(conn, dir, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		count := fileSize(dir + "/answered")
		storetest.Eventually(t, "more was answered", func() bool { return fileSize(dir+"/answered") > count+200 })
		cluster.Kill()
		cluster.Start(t)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	storetest.DrainTheRest(t, open(t, conn, queue.Limits{}), dir)
	storetest.Judge(t, dir)
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// TestFrozenDrainerLosesItsLock: the server ends the session of a process that is stopped while it drains.
func TestFrozenDrainerLosesItsLock(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	dir := t.TempDir()
	cmd := storetest.CrashingCommand(conn, dir, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := open(t, conn, queue.Limits{})
	locked := func() bool {
		pass, err := s.BeginDrain(t.Context())
		if err == nil {
			pass.End(true)
		}
		return err != nil
	}
	// It drains for a moment after each put; stop it when it holds the lock.
	storetest.Eventually(t, "it was stopped while draining", func() bool {
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		if locked() {
			return true
		}
		_ = cmd.Process.Signal(syscall.SIGCONT)
		return false
	})
	began := time.Now()
	storetest.Eventually(t, "the lock was free", func() bool { return !locked() })
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the lock was free after %v, want about 10 s", took)
	}
}
