package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// workersBinary is integration/workers, to run in any container.
var workersBinary = sync.OnceValues(func() (string, error) {
	return build("workers", "koji-relay/integration/workers")
})

// oneTag is a commit for the workers: one message with the address build.tag.
func oneTag(t testing.TB) string {
	t.Helper()
	for _, c := range loadGolden(t, "extra0").commits {
		if bytes.Contains(c.Line, []byte(`"postTag"`)) {
			return string(bytes.ReplaceAll(c.Line, []byte(c.ID), []byte("COMMIT")))
		}
	}
	t.Fatal("no golden commit has a postTag")
	return ""
}

// workers are hub workers that hand over until stop.
type workers struct {
	process        *exec.Cmd
	stdin          io.Closer
	stdout, stderr bytes.Buffer
	ended          chan struct{}
}

// workersReport is what they say at the end.
type workersReport struct {
	Taken     int
	Fallbacks map[string]int
	SlowestMS float64 `json:"slowest_ms"`
}

// startWorkers runs cmd, which is integration/workers with its arguments, wherever it is.
func startWorkers(t testing.TB, cmd *exec.Cmd) *workers {
	t.Helper()
	w := &workers{process: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &w.stdout, &w.stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the hub's workers: %v", err)
	}
	go func() {
		_ = cmd.Wait() // what it printed tells
		close(w.ended)
	}()
	t.Cleanup(func() { cmd.Process.Kill() })
	return w
}

// stop lets the workers finish what they have begun.
func (w *workers) stop(t testing.TB) (r workersReport) {
	t.Helper()
	w.stdin.Close()
	select {
	case <-w.ended:
	case <-time.After(time.Minute):
		t.Fatal("the hub's workers do not end")
	}
	if err := json.Unmarshal(w.stdout.Bytes(), &r); err != nil {
		t.Fatalf("the hub's workers said %q %q: %v", w.stdout.String(), w.stderr.String(), err)
	}
	return r
}

// unhurried are eight workers who wait for longer than a hub does: on a busy machine what is prompt may take
// more than its 2 s. How long they waited at most is judged by unnoticed.
var unhurried = []string{"-workers", "8", "-timeout", "50s"}

// unnoticed fails t unless every commit was taken, and promptly.
func (r workersReport) unnoticed(t testing.TB, during string) {
	t.Helper()
	t.Logf("%s: %d commits taken, %d not, slowest %.0f ms", during, r.Taken, r.fallbacks(), r.SlowestMS)
	if n := r.fallbacks(); n > 0 {
		t.Errorf("%s: %d commits were not taken: %v", during, n, r.Fallbacks)
	}
	if most := promptly(time.Second); r.SlowestMS >= float64(most.Milliseconds()) {
		t.Errorf("%s: the slowest commit took %.0f ms, want less than %v", during, r.SlowestMS, most)
	}
	if r.Taken < 100 {
		t.Errorf("%s: %d commits taken, too few to show anything", during, r.Taken)
	}
}

func (r workersReport) fallbacks() (n int) {
	for _, one := range r.Fallbacks {
		n += one
	}
	return n
}

// because reports whether all that was not taken has this in its reason.
func (r workersReport) because(reason string) bool {
	for why := range r.Fallbacks {
		if !strings.Contains(why, reason) {
			return false
		}
	}
	return true
}
