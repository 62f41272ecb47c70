package pgtest

import (
	"fmt"
	"path/filepath"
	"testing"
)

// StartClusterIn is StartCluster with the data in a directory below parent and variables added to the
// server's environment.
func StartClusterIn(tb testing.TB, parent string, env []string, settings ...string) *Cluster {
	tb.Helper()
	c, err := startClusterIn(parent, env, settings...)
	if err != nil {
		missing(tb, err)
	}
	tb.Cleanup(c.stop)
	return c
}

// Standby makes a hot standby of c and starts it. A slot of its own keeps the log that it still needs. c must
// answer. It waits for the copy to be made, and not until the standby has caught up.
func (c *Cluster) Standby(tb testing.TB) *Cluster {
	tb.Helper()
	s, err := newCluster(filepath.Dir(c.dir), c.env)
	if err != nil {
		tb.Fatal(err)
	}
	c.copyTo(tb, s)
	return s
}

// StandbyInPlaceOf makes a hot standby of c where another server was, which it ends and deletes: under its
// port. So a connection string that names both hosts finds the primary after any number of failovers.
func (c *Cluster) StandbyInPlaceOf(tb testing.TB, old *Cluster) *Cluster {
	tb.Helper()
	old.stop()
	s, err := newCluster(filepath.Dir(c.dir), c.env)
	if err != nil {
		tb.Fatal(err)
	}
	s.port = old.port
	c.copyTo(tb, s)
	return s
}

// copyTo makes s a standby of c and starts it.
func (c *Cluster) copyTo(tb testing.TB, s *Cluster) {
	tb.Helper()
	slot := fmt.Sprintf("standby_%d", s.port)
	err := s.run("pg_basebackup", "--dbname="+c.ConnString("postgres"), "--pgdata="+s.dir+"/data", "--no-sync",
		"--wal-method=stream", "--checkpoint=fast", "--create-slot", "--slot="+slot, "--write-recovery-conf")
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.configure(); err != nil {
		tb.Fatal(err)
	}
	if err := s.start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.stop)
}

// Promote makes the primary of a standby. It waits until the server takes writes.
func (c *Cluster) Promote(tb testing.TB) {
	tb.Helper()
	if err := c.run("pg_ctl", "promote", "--pgdata="+c.dir+"/data", "--wait", "--timeout=30"); err != nil {
		tb.Fatal(err)
	}
}

// Ended reports whether the server's process has ended, as it does by itself when its disk is full.
func (c *Cluster) Ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}
