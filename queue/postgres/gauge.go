package postgres

import "sync"

// gauge is the size of the queue as far as this process knows it: measured now and then, counted in between.
type gauge struct {
	// mu guards the fields below.
	mu       sync.Mutex
	bytes    int64
	measured bool
}

// fits reports whether n more bytes keep within limit; 0 means no limit.
func (g *gauge) fits(n, limit int64) bool {
	if limit <= 0 {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bytes+n <= limit
}

func (g *gauge) add(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes = max(0, g.bytes+n)
}

func (g *gauge) set(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes, g.measured = n, true
}

func (g *gauge) known() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.measured
}
