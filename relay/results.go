package relay

import "sync"

// results collects what became of some messages on one broker. The first result for each index counts.
type results struct {
	done  chan struct{} // closed when all are in; then all may be read
	moved chan struct{} // 1: the progress is another one

	mu   sync.Mutex // guards what follows
	all  []result
	isIn []bool
	away []bool // in, or written to the broker
	left int    // not in
	progress
}

// progress is how far the messages have come.
type progress struct {
	in        int  // results
	gone      int  // those, and messages that are written to the broker
	uncertain bool // one was not sent, or may or may not be with the broker
}

func newResults(n int) *results {
	return &results{
		done: make(chan struct{}), moved: make(chan struct{}, 1),
		all: make([]result, n), isIn: make([]bool, n), away: make([]bool, n), left: n,
	}
}

// put gives the result for index i, unless there is one.
func (r *results) put(i int, res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isIn[i] {
		return
	}
	r.all[i], r.isIn[i] = res, true
	r.in++
	r.goes(i)
	switch res.verdict {
	case unsent, unanswered, lost:
		r.uncertain = true
	}
	r.drop(1)
	r.tell()
}

// wrote notes that the broker has been given the message with index i.
func (r *results) wrote(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.goes(i)
	r.tell()
}

// goes counts the message with index i as gone. r.mu is held.
func (r *results) goes(i int) {
	if !r.away[i] {
		r.away[i] = true
		r.gone++
	}
}

// tell wakes who waits for progress.
func (r *results) tell() {
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// forgo says that the last n will never come.
func (r *results) forgo(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(n)
}

// drop makes n less to wait for. r.mu is held.
func (r *results) drop(n int) {
	if n == 0 {
		return
	}
	if r.left -= n; r.left == 0 {
		close(r.done)
	}
}

// now gives the progress.
func (r *results) now() progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}
