package queue

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// A process of its own puts, drains and is killed. What it was answered and what its "broker" accepted is in two
// files, written with one system call for each batch, so that a kill of the process cannot take it away.
const (
	crashStore = "KOJI_RELAY_CRASH_STORE" // connection string or path
	crashDir   = "KOJI_RELAY_CRASH_DIR"
	crashFirst = "KOJI_RELAY_CRASH_FIRST" // number of the first message
)

// accepted is one line of the broker's file.
type accepted struct {
	ID   string
	N    int
	Body string
}

// crashingProcess is what runs in the process that is killed; see TestMain.
func crashingProcess() {
	var store Store
	var err error
	if conn := os.Getenv(crashStore); strings.Contains(conn, "host=") {
		store, err = OpenPostgres(context.Background(), PostgresOptions{ConnString: conn})
	} else {
		store, err = OpenFile(conn, FileOptions{InUseTimeout: 10 * time.Second})
	}
	if err != nil {
		panic(err)
	}
	dir := os.Getenv(crashDir)
	answered, broker := appendTo(dir+"/answered"), appendTo(dir+"/accepted")
	d := NewDrainer(store, crashBroker{broker}, DrainOptions{BatchSize: 7, Interval: 50 * time.Millisecond,
		Expiry: Expiry{MaxAge: time.Hour, ToDead: true}})
	go func() { _ = d.Run(context.Background()) }()
	var first int
	fmt.Sscan(os.Getenv(crashFirst), &first)
	for n := first; ; n += 5 {
		list := unsent(n, n+4)
		// One of them is older than max_age, so that expiry has work.
		old := aging(aMessage(n+5_000_000), 2*time.Hour)
		for {
			if err := store.Put(context.Background(), append(slices.Clone(list), message.Unsent{Message: old}), nil); err == nil {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		fmt.Fprintf(answered, "%d %d\n", n, n+4)
		d.Wake()
		<-time.After(time.Millisecond)
	}
}

func appendTo(path string) *os.File {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	return f
}

// crashBroker accepts by writing to a file.
type crashBroker struct{ file *os.File }

func (crashBroker) Usable() bool { return true }

func (b crashBroker) SendPatiently(_ context.Context, list []message.Message) []message.Outcome {
	outcomes := make([]message.Outcome, len(list))
	var text []byte
	for i, m := range list {
		line, err := json.Marshal(accepted{m.ID, m.Event, m.Body})
		if err != nil {
			panic(err)
		}
		text = append(append(text, line...), '\n')
		outcomes[i] = message.Outcome{State: message.Accepted, Next: message.Done}
	}
	if _, err := b.file.Write(text); err != nil {
		panic(err)
	}
	return outcomes
}

// crashPoints are killed at by name in a build with the tag failpoints.
var crashPoints = []string{"before-put-commit", "after-put-before-answer", "holding-the-lock", "before-drain-send",
	"after-accept-before-delete", "before-settle-commit", "after-settle", "mid-expiry"}

func TestKilledProcessLosesNothingAndRepeatsOnlyUnderTheSameID(t *testing.T) {
	t.Parallel()
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		killRepeatedly(t, hubDatabase(t))
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		killRepeatedly(t, filepath.Join(t.TempDir(), "queue.db"))
	})
}

func killRepeatedly(t *testing.T, store string) {
	t.Helper()
	dir := t.TempDir()
	rounds := crashPoints
	if !failpoint.Enabled {
		rounds = make([]string, len(crashPoints)) // at random times
	}
	for i, point := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashStore+"="+store, crashDir+"="+dir, fmt.Sprintf("%s=%d", crashFirst, 1+i*100_000))
		if point != "" {
			hit := 1 + rand.IntN(3)
			if point == "mid-expiry" {
				hit = 1 // the next one is a minute later
			}
			cmd.Env = append(cmd.Env, fmt.Sprintf("KOJI_RELAY_FAILPOINT=%s:%d", point, hit))
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		limit := time.Minute // for a failpoint that is not hit
		if point == "" {
			limit = time.Duration(200+rand.IntN(800)) * time.Millisecond
		}
		kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("round %d at %q: %v\n%s", i, point, err, out.String())
		}
		if point != "" && !strings.Contains(out.String(), "failpoint "+point) {
			t.Errorf("round %d ended elsewhere than at %s: %s", i, point, out.String())
		}
	}
	drainTheRest(t, store, dir)
	judge(t, dir)
}

// drainTheRest drains what the killed processes left.
func drainTheRest(t *testing.T, path, dir string) {
	t.Helper()
	var store inspected
	if strings.Contains(path, "host=") {
		store = openPostgres(t, path, Limits{})
	} else {
		store = openFile(t, path, Limits{})
	}
	d := NewDrainer(store, crashBroker{appendTo(dir + "/accepted")}, DrainOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	eventually(t, "the queue is empty", func() bool {
		st, err := store.Stats(t.Context())
		return err == nil && st.Depth == 0
	})
	cancel()
	wg.Wait()
}

// judge compares what was answered with what the broker accepted.
func judge(t *testing.T, dir string) {
	t.Helper()
	got := map[int]int{}
	copies := 0
	scan(t, dir+"/accepted", func(line string) {
		var a accepted
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		want := aMessage(a.N)
		if a.ID != want.ID {
			t.Errorf("message %d arrived with the id %s, want %s", a.N, a.ID, want.ID)
		}
		if a.Body != want.Body {
			t.Errorf("message %d arrived altered: %s", a.N, a.Body)
		}
		got[a.N]++
		copies++
	})
	answered, lost := 0, 0
	scan(t, dir+"/answered", func(line string) {
		var first, last int
		fmt.Sscan(line, &first, &last)
		for n := first; n <= last; n++ {
			answered++
			if got[n] == 0 {
				lost++
			}
		}
	})
	t.Logf("%d messages answered for, %d copies arrived, %d duplicates, %d lost", answered, copies, copies-len(got), lost)
	if lost > 0 || answered == 0 {
		t.Errorf("%d of %d messages were lost", lost, answered)
	}
}

func scan(t *testing.T, path string, each func(string)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		each(s.Text())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestServerKilledDuringPutDrainAndDeleteLosesNothing kills PostgreSQL while one process puts and drains.
func TestServerKilledDuringPutDrainAndDeleteLosesNothing(t *testing.T) {
	t.Parallel()
	cluster := pgtest.StartCluster(t)
	conn := cluster.ConnString("postgres")
	pgtest.SQL(t, conn, kojiTables+relaySchema)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashStore+"="+conn, crashDir+"="+dir, crashFirst+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		count := fileSize(dir + "/answered")
		eventually(t, "more was answered", func() bool { return fileSize(dir+"/answered") > count+200 })
		cluster.Kill()
		cluster.Start(t)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	drainTheRest(t, conn, dir)
	judge(t, dir)
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
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashStore+"="+conn, crashDir+"="+dir, crashFirst+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := openPostgres(t, conn, Limits{})
	locked := func() bool {
		pass, err := s.BeginDrain(t.Context())
		if err == nil {
			pass.End(true)
		}
		return err != nil
	}
	// It drains for a moment after each put; stop it when it holds the lock.
	eventually(t, "it was stopped while draining", func() bool {
		_ = cmd.Process.Signal(syscall.SIGSTOP)
		if locked() {
			return true
		}
		_ = cmd.Process.Signal(syscall.SIGCONT)
		return false
	})
	began := time.Now()
	eventually(t, "the lock was free", func() bool { return !locked() })
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the lock was free after %v, want about 10 s", took)
	}
}
