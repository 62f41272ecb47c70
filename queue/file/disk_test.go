package file

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"koji-relay/queue/storetest"
)

// On a nearly full disk a small put would fit into the file's free pages where a larger one does not. What
// the relay says of its store comes from the probe: so all puts are refused, or none.
func TestPutsAreRefusedWhileTheProbeFindsNoRoom(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=16m"); err != nil {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatalf("mount a small disk: %v; run as root", err)
		}
		t.Skipf("mount a small disk: %v; run as root", err)
	}
	s, err := Open(filepath.Join(disk, "queue.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	t.Cleanup(func() { s.Close() })
	storetest.Put(t, s, storetest.Unsent(1, 3)...)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("before: %v", err)
	}
	others, err := os.Create(filepath.Join(disk, "others"))
	for err == nil {
		_, err = others.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the probe of a full disk gave %v", err)
	}
	if _, err := s.Put(t.Context(), storetest.Unsent(4, 4), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("after it a put of one message gave %v", err)
	}
	if err := errors.Join(others.Close(), os.Remove(others.Name())); err != nil {
		t.Fatal(err)
	}
	storetest.Eventually(t, "a put finds room again, without a probe", func() bool {
		_, err := s.Put(t.Context(), storetest.Unsent(4, 4), nil)
		return err == nil
	})
	if err := s.Probe(t.Context()); err != nil {
		t.Errorf("with room again the probe gave %v", err)
	}
	if got := len(storetest.Drained(t, s)); got != 4 {
		t.Errorf("%d messages are there, want 4", got)
	}
}
