package relay

import "sync"

// results collects what became of some messages on one broker. The first result for each index counts.
type results struct {
	done chan struct{} // closed when all are in; then all may be read

	mu   sync.Mutex // guards what follows
	all  []result
	in   []bool
	left int
}

func newResults(n int) *results {
	return &results{done: make(chan struct{}), all: make([]result, n), in: make([]bool, n), left: n}
}

// put gives the result for index i, unless there is one.
func (r *results) put(i int, res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.in[i] {
		return
	}
	r.all[i], r.in[i] = res, true
	if r.left--; r.left == 0 {
		close(r.done)
	}
}
