package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheHistorysDiskIsInTrouble: under the files of the history is a disk that does not answer, or one that
// is full. No answer to the hub waits for it, searches go on, and what does not fit into memory is a gap.
// When the disk is well again, each message is in the history or counted in the gap.
func TestTheHistorysDiskIsInTrouble(t *testing.T) {
	t.Parallel()
	broker := startBroker(t, rabbitmq40)
	for name, trouble := range map[string]func(*testing.T, string) (end func()){
		"it does not answer": freezeDisk, "it is full": fillHistorysDisk,
	} {
		t.Run(name, func(t *testing.T) {
			part := newPart()
			subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, []string{tagTopic})...)
			disk := loopDisk(t)
			day := &relayDay{T: t, url: fmt.Sprintf("http://127.0.0.1:%d/metrics", freePorts(t)),
				highest: map[string]float64{}}
			r := newRelay(t, forBroker(rabbitmq40, part, broker).with(settings{"history.store": "file",
				"history.path": filepath.Join(disk, "history"), "plugin.timeout": "60",
				"relay.handoff_timeout": "20", "relay.admin": strings.Split(day.url, "/")[2]}))
			r.start(t)
			r.awaitConnected(t, broker)
			before, ids := tagCommit(1)
			r.mustPost(t, before)
			eventually(t, 30*time.Second, "the history works", func() error { return historyHas(t, r, 1) })

			end := trouble(t, disk)
			t.Cleanup(end) // before the relay is killed: a process that waits for a disk cannot end
			total := 1
			const commits, each = 6, 20
			for range commits { // 12 MB, where 3 wait and 3 are on their way
				if a := r.mustPost(t, largeCommit(each, 100_000)); a.Sent+a.Queued != each {
					t.Errorf("answer %+v", a)
				}
				total += each
			}
			r.command(t, "", "history", "show", ids[0])
			const gap = "koji_relay_history_gap_messages_total"
			day.until("a gap is counted", func(m metrics) bool { return m.total(gap) > 0 })
			end()
			eventually(t, 60*time.Second, "each message is in the history or in the gap", func() error {
				m, err := day.scrape()
				if err != nil {
					return err
				}
				return historyHas(t, r, total-int(m.total(gap)))
			})
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			shown, err := exec.Command(path, "history", "--limit", "1", "--config", r.conf).CombinedOutput()
			if err != nil || !strings.Contains(string(shown), "the store did not keep up") {
				t.Errorf("the gap is not shown: %v\n%s", err, shown)
			}
			if code := r.stop(t); code != 0 {
				t.Errorf("the relay ended with %d", code)
			}
		})
	}
}

// historyHas is an error unless the history tells of n messages.
func historyHas(t *testing.T, r *relay, n int) error {
	t.Helper()
	if got := strings.Count(r.command(t, "", "history", "--limit", "10000", "--json"), "\n"); got != n {
		return fmt.Errorf("the history tells of %d messages, want %d", got, n)
	}
	return nil
}

// loopDisk mounts a disk of 64 MB, and gives where.
func loopDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20), os.Mkdir(mount, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			skipOrFail(t, "%s: %v; run as root, with loop devices\n%s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil { // its relay ends later
			t.Errorf("unmount %s: %v", mount, err)
		}
	})
	return mount
}

// freezeDisk makes all that writes to a disk wait. end may be called more than once.
func freezeDisk(t *testing.T, dir string) (end func()) {
	t.Helper()
	if out, err := exec.Command("fsfreeze", "--freeze", dir).CombinedOutput(); err != nil {
		t.Fatalf("freeze %s: %v\n%s", dir, err, out)
	}
	return func() { _ = exec.Command("fsfreeze", "--unfreeze", dir).Run() }
}

// fillHistorysDisk takes all that is left. end may be called more than once.
func fillHistorysDisk(t *testing.T, dir string) (end func()) {
	t.Helper()
	others := filepath.Join(dir, "others")
	f, err := os.Create(others)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
	}
	return func() { _ = os.Remove(others) }
}
