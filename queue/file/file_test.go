package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(tb testing.TB, l queue.Limits) storetest.Store {
		return openAt(tb, filepath.Join(tb.TempDir(), "queue.db"), l)
	})
}

func TestKilledProcessLosesNothingAndRepeatsOnlyUnderTheSameID(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queue.db")
	storetest.KillRepeatedly(t, path, func() storetest.Store { return openAt(t, path, queue.Limits{}) })
}

func TestFileInUseIsRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queue.db")
	openAt(t, path, queue.Limits{})
	_, err := Open(path, Options{InUseTimeout: 20 * time.Millisecond})
	if !errors.Is(err, queue.ErrInUse) || !strings.Contains(err.Error(), path) ||
		!strings.Contains(err.Error(), "stop the relay") {
		t.Errorf("opening a file in use gave %v", err)
	}
}

func TestFileThatIsNoQueueIsRefusedByName(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queue.db")
	precious := strings.Repeat("not a queue\n", 10_000)
	if err := os.WriteFile(path, []byte(precious), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, path + ".link", "/nonexistent/queue.db"} {
		if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("opening %s gave %v", path, err)
		}
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != precious {
		t.Errorf("the file that is no queue was changed: %d bytes, %v", len(text), err)
	}
}

func TestReopenedFileHoldsWhatWasPut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queue.db")
	s := openAt(t, path, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 3)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := storetest.Numbers(storetest.Drained(t, openAt(t, path, queue.Limits{}))); !slices.Equal(got,
		[]int{1, 2, 3}) {
		t.Errorf("drained %v, want 1, 2, 3", got)
	}
}

const fullDisk = "KOJI_RELAY_FULL_DISK"

// fullDiskProcess puts into a file that may not grow over a limit, which the system enforces as it does the
// end of a disk: a write fails. See TestMain.
func fullDiskProcess() {
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	s, err := Open(os.Getenv(fullDisk), Options{})
	if err == nil {
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
	}
	if err != nil {
		fmt.Println("setup:", err)
		os.Exit(1)
	}
	for n := 1; n < 100_000; n += 20 {
		if _, err := s.Put(context.Background(), storetest.Unsent(n, n+19), nil); err != nil {
			fmt.Println("refused", n, err)
			fmt.Println("probe", s.Probe(context.Background()) != nil)
			// What was there before can still be read, and room is made by draining.
			pass, err := s.BeginDrain(context.Background())
			if err != nil {
				fmt.Println("begin:", err)
				os.Exit(1)
			}
			got, err := pass.Next(context.Background(), storetest.TestLimits)
			fmt.Println("read", len(got), err)
			return
		}
	}
}

func TestFullDiskRefusesPutsAndKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "queue.db")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fullDisk+"="+path)
	out, err := cmd.CombinedOutput()
	var refused int
	if _, scanErr := fmt.Sscanf(string(out), "refused %d", &refused); err != nil || scanErr != nil ||
		refused < 21 {
		t.Fatalf("%v, %v:\n%s", err, scanErr, out)
	}
	if !strings.Contains(string(out), "put 20 messages") || !strings.Contains(string(out), "probe true") ||
		!strings.Contains(string(out), "read 100 <nil>") {
		t.Errorf("the process printed:\n%s", out)
	}
	got := storetest.Numbers(storetest.Drained(t, openAt(t, path, queue.Limits{})))
	if len(got) != refused-1 || got[len(got)-1] != refused-1 {
		t.Errorf("%d messages are there, want the %d that were put and none of the put that failed", len(got),
			refused-1)
	}
}

func TestReserveDoesNotFollowALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	for name, plant := range map[string]func(path string) error{
		"to a file":    func(path string) error { return os.Symlink(victim, path) },
		"to nothing":   func(path string) error { return os.Symlink(filepath.Join(dir, "nothing"), path) },
		"a hard link":  func(path string) error { return os.Link(victim, path) },
		"a directory":  func(path string) error { return os.Mkdir(path, 0o700) },
		"a named pipe": func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "_")+".db")
		if err := plant(path + ".reserve"); err != nil {
			t.Fatal(err)
		}
		s := openAt(t, path, queue.Limits{})
		if _, err := s.Put(t.Context(), storetest.Unsent(1, 1), nil); err != nil &&
			!strings.Contains(err.Error(), "remove it") {
			t.Errorf("%s: put gave %v", name, err)
		}
		if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
			t.Errorf("%s: the file that the link leads to holds %.20q, %v", name, text, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "nothing")); err == nil {
			t.Errorf("%s: a file was made where the link leads to", name)
		}
	}
}
