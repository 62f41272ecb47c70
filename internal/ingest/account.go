package ingest

import (
	"sync"
	"time"
)

// patience is how long a body may be on its way before it has to make room for others.
const patience = time.Second

// account bounds the memory of all requests under way together. It may be used concurrently.
type account struct {
	mu       sync.Mutex // guards the fields below
	limit    int64
	used     int64
	arriving map[*share]arrival
}

// arrival is a body that has not come completely.
type arrival struct {
	since time.Time
	cut   func() // ends it; does not block
}

// share is what one request holds of an account. Only its request uses it.
type share struct {
	of   *account
	held int64
}

func newAccount(limit int64) *account {
	return &account{limit: limit, arriving: make(map[*share]arrival)}
}

func (a *account) setLimit(limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limit = limit
}

func (a *account) max() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.limit
}

// open begins a request that holds nothing yet. cut ends the arrival of its body.
func (a *account) open(cut func()) *share {
	s := &share{of: a}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arriving[s] = arrival{time.Now(), cut}
	return s
}

// arrived says that the body is complete, or will not come: it is not cut any more.
func (s *share) arrived() {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	delete(s.of.arriving, s)
}

// hold changes what the request holds to n bytes. It reports false, and changes nothing, where that exceeds
// the limit; then bodies that are slow to arrive make room for the next request. A request may always have
// what it wants while no other holds anything.
func (s *share) hold(n int64) bool {
	a := s.of
	a.mu.Lock()
	defer a.mu.Unlock()
	others := a.used - s.held
	if n > s.held && others > 0 && others+n > a.limit {
		for _, slow := range a.arriving {
			if time.Since(slow.since) > patience {
				slow.cut()
			}
		}
		return false
	}
	a.used, s.held = others+n, n
	return true
}

// close gives everything back.
func (s *share) close() {
	s.arrived()
	s.hold(0)
}
