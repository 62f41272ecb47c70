package storetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
)

// A process of its own puts, drains and is killed. What it was answered and what its "broker" accepted is in
// two files, written with one system call for each batch, so that a kill of the process cannot take it away.
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

// Crashing says that this process is one that is to be killed.
func Crashing() bool { return os.Getenv(crashDir) != "" }

// CrashingProcess is what runs in it: TestMain calls it. open opens the store of the test again.
func CrashingProcess(open func(where string) (queue.Store, error)) {
	store, err := open(os.Getenv(crashStore))
	if err != nil {
		panic(err)
	}
	dir := os.Getenv(crashDir)
	answered, broker := appendTo(dir+"/answered"), appendTo(dir+"/accepted")
	d := drain.New(store, crashBroker{broker},
		drain.Options{BatchSize: 7, BatchBytes: 8 << 20, Interval: 50 * time.Millisecond,
			Expiry: queue.Expiry{MaxAge: time.Hour, ToDead: true}})
	go func() { _ = d.Run(context.Background()) }()
	var first int
	fmt.Sscan(os.Getenv(crashFirst), &first)
	for n := first; ; n += 5 {
		list := Unsent(n, n+4)
		// One of them is older than max_age, so that expiry has work.
		old := aging(Message(n+5_000_000), 2*time.Hour)
		for {
			if _, err := store.Put(context.Background(), append(slices.Clone(list), message.Unsent{Message: old}),
				nil); err == nil {
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

func (crashBroker) Answers() int64 { return 0 }

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
var crashPoints = []string{"before-put-commit", "after-put-before-answer", "holding-the-lock",
	"before-drain-send", "after-accept-before-delete", "before-settle-commit", "after-settle", "mid-expiry"}

// CrashingCommand is a process that puts, from the message first on, and drains until it is killed.
func CrashingCommand(where, dir string, first int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashStore+"="+where, crashDir+"="+dir,
		fmt.Sprintf("%s=%d", crashFirst, first))
	return cmd
}

// KillRepeatedly kills processes that use the store at where, and looks whether anything was lost. open opens
// it here.
func KillRepeatedly(t *testing.T, where string, open func() Store) {
	t.Helper()
	dir := t.TempDir()
	rounds := crashPoints
	if !failpoint.Enabled {
		rounds = make([]string, len(crashPoints)) // at random times
	}
	for i, point := range rounds {
		cmd := CrashingCommand(where, dir, 1+i*100_000)
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
			before := size(dir + "/answered")
			Eventually(t, "the process works", func() bool { return size(dir+"/answered") > before })
			limit = rand.N(500 * time.Millisecond)
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
	DrainTheRest(t, open(), dir)
	Judge(t, dir)
}

// DrainTheRest drains what the killed processes left.
func DrainTheRest(t *testing.T, store Store, dir string) {
	t.Helper()
	d := drain.New(store, crashBroker{appendTo(dir + "/accepted")},
		drain.Options{BatchSize: 100, BatchBytes: 8 << 20, Interval: 30 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx) })
	Eventually(t, "the queue is empty", func() bool {
		st, err := store.Stats(t.Context())
		return err == nil && st.Depth == 0
	})
	cancel()
	wg.Wait()
}

// Judge compares what was answered with what the broker accepted.
func Judge(t *testing.T, dir string) {
	t.Helper()
	got := map[int]int{}
	copies := 0
	scan(t, dir+"/accepted", func(line string) {
		var a accepted
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatal(err)
		}
		want := Message(a.N)
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
	t.Logf("%d messages answered for, %d copies arrived, %d duplicates, %d lost", answered, copies,
		copies-len(got), lost)
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

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
