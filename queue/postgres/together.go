package postgres

import (
	"context"
	"slices"
	"sync"

	"koji-relay/queue"
)

// together has puts that come while others are under way share a transaction: one statement, one commit, one
// wait for the disk. It delays none: while fewer than putsAtOnce are under way a put begins at once.
//
//	put --> begins: alone
//	    --> waits --> leads those who wait, when one before it is over
//	              --> is led
//	              --> its time is over
//
// What fails together is tried again by each of them alone, so that no put pays for another.
type together struct {
	mu      sync.Mutex // guards what follows
	running int
	waiting []*share
}

// share is one put that waits.
type share struct {
	in   queue.Incoming
	lead chan []*share // 1: it is the first of these, and stores them all
	done chan bool     // 1: it was led; false = in vain
}

const (
	// putsAtOnce is how many transactions are under way: one waits for the disk while the next one is prepared.
	putsAtOnce = 2
	// What one transaction stores at most. A larger put is not held up by others, nor holds them up.
	togetherRows, togetherBytes = 256, 1 << 20
)

// put stores in by store, maybe along with others. store may be called again, with in alone.
func (g *together) put(ctx context.Context, in queue.Incoming, store func(queue.Incoming) error) error {
	if len(in.Dead) > 0 || len(in.Rows) > togetherRows || in.Size > togetherBytes {
		return store(in)
	}
	s := &share{in: in, lead: make(chan []*share, 1), done: make(chan bool, 1)}
	if !g.begin(s) {
		select {
		case all := <-s.lead:
			return g.leads(all, store)
		case stored := <-s.done:
			if stored {
				return nil
			}
			return store(in)
		case <-ctx.Done():
			g.leave(s)
			return store(in) // which says so
		}
	}
	defer g.end()
	return store(in)
}

// begin reports whether s may begin; else it waits.
func (g *together) begin(s *share) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running < putsAtOnce {
		g.running++
		return true
	}
	g.waiting = append(g.waiting, s)
	return false
}

// end has the first of those who wait lead as many as fit.
func (g *together) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.running--
		return
	}
	n, rows, bytes := 0, 0, int64(0)
	for _, s := range g.waiting {
		rows, bytes = rows+len(s.in.Rows), bytes+s.in.Size
		if n > 0 && (rows > togetherRows || bytes > togetherBytes) {
			break
		}
		n++
	}
	all := g.waiting[:n:n]
	g.waiting = slices.Clone(g.waiting[n:])
	all[0].lead <- all
}

// leads stores all, in the time of the first: it waits for longest.
func (g *together) leads(all []*share, store func(queue.Incoming) error) error {
	var joint queue.Incoming
	for _, s := range all {
		joint.Rows = append(joint.Rows, s.in.Rows...)
		joint.Size += s.in.Size
	}
	err := store(joint)
	g.end()
	for _, s := range all[1:] {
		s.done <- err == nil
	}
	if err != nil && len(all) > 1 {
		return store(all[0].in)
	}
	return err
}

// leave ends the wait of s, whose time is over. Who is led already may be stored all the same, as a put whose
// answer did not come.
func (g *together) leave(s *share) {
	g.mu.Lock()
	g.waiting = slices.DeleteFunc(g.waiting, func(w *share) bool { return w == s })
	g.mu.Unlock()
	select {
	case all := <-s.lead: // it was its turn: those behind it have time left
		g.end()
		for _, s := range all[1:] {
			s.done <- false
		}
	default:
	}
}
