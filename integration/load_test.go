package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// tagCommit is a commit of n postTag events with an id of its own, and the message-ids it must give.
func tagCommit(n int) (body []byte, ids []string) {
	commit := uuid.NewString()
	body = fmt.Appendf(nil, `{"commit": %q, "events": [`, commit)
	for event := range n {
		if event > 0 {
			body = append(body, ", "...)
		}
		body = fmt.Appendf(body, `{"callback": "postTag", "kwargs": {"tag": {"id": 7, "name": "f39-candidate"}, `+
			`"build": {"build_id": %d, "name": "pkg", "version": "1.0", "release": "%d.fc39", "extra": null}, `+
			`"user": {"id": 1, "name": "kojiadmin"}, "force": false}}`, event, event)
		ids = append(ids, messageID(commit, event))
	}
	return append(body, "]}"...), ids
}

const tagTopic = "build.tag"

// load is a stand-in for hub workers: each posts commits one after the other until the load is stopped.
type load struct {
	stop func()

	mu       sync.Mutex // guards the fields below
	taken    []string   // message-ids of commits answered 200
	refused  int        // other answers, and none
	slowest  time.Duration
	took     []time.Duration // of commits answered 200
	at       []time.Time     // when they were
	answered chan struct{}   // one for each 200, as far as someone listens
}

// startLoad starts workers that post commits of one event, each at most a hundred a second.
func startLoad(t testing.TB, r *relay, workers int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{answered: make(chan struct{})}
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
					l.postOne(r)
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(l.stop)
	return l
}

// postOne posts one commit and notes what became of it.
func (l *load) postOne(r *relay) {
	body, ids := tagCommit(1)
	a, err := r.post(context.Background(), body)
	taken := err == nil && a.Code == http.StatusOK
	l.mu.Lock()
	if taken {
		l.taken = append(l.taken, ids...)
		l.slowest = max(l.slowest, a.Took)
		l.took = append(l.took, a.Took)
		l.at = append(l.at, time.Now())
	} else {
		l.refused++
	}
	l.mu.Unlock()
	if taken {
		select {
		case l.answered <- struct{}{}:
		default:
		}
	}
}

// await waits until n more commits were answered 200.
func (l *load) await(t testing.TB, n int) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for i := range n {
		select {
		case <-l.answered:
		case <-limit:
			t.Fatalf("%d of %d commits were answered within a minute", i, n)
		}
	}
}

// promptly is how long something may take that takes d on a quiet machine: more, in proportion, once more
// than two processes for each processor want to run. The kernel's average of a minute says how many.
func promptly(d time.Duration) time.Duration {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return d
	}
	var running float64
	if _, err := fmt.Sscan(string(text), &running); err != nil {
		return d
	}
	return time.Duration(float64(d) * max(1, running/float64(2*runtime.NumCPU())))
}

// longestGap is the longest time without an answer 200 since from.
func (l *load) longestGap(from time.Time) (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(l.at, time.Time.Compare)
	for _, at := range l.at {
		if at.After(from) {
			longest = max(longest, at.Sub(from))
			from = at
		}
	}
	return longest
}

func (l *load) ids() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.taken)
}

// slowerThan is how many answers took longer than limit.
func (l *load) slowerThan(limit time.Duration) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, took := range l.took {
		if took > limit {
			n++
		}
	}
	return n
}
