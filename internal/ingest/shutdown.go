package ingest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// newcomerPatience is how long a connection without a request holds up a shutdown. The hub plugin sends as
// soon as it is connected.
const newcomerPatience = time.Second

// intake is where connections come from, and those that are to be answered before the end.
// http.Server.Shutdown alone would not do: it drops a request whose first byte it has not read yet, and with
// it a commit of a hub that connected a moment before.
type intake struct {
	mu        sync.Mutex // guards the fields below
	closed    bool
	listeners []net.Listener
	serving   sync.WaitGroup          // Add under mu, while not closed
	busy      map[net.Conn]*time.Time // accepted, or with a request; the time while it has sent nothing
}

// open registers a listener, unless the end has come.
func (in *intake) open(l net.Listener) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.listeners = append(in.listeners, l)
	in.serving.Add(1)
	return true
}

// close closes the listeners, and returns when every connection that they accepted is known.
func (in *intake) close() {
	in.mu.Lock()
	in.closed = true
	for _, l := range in.listeners {
		l.Close()
	}
	in.mu.Unlock()
	in.serving.Wait()
}

func (in *intake) isClosed() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.closed
}

// follow is the server's ConnState hook.
func (in *intake) follow(c net.Conn, state http.ConnState) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch state {
	case http.StateNew:
		now := time.Now()
		in.busy[c] = &now
	case http.StateActive:
		in.busy[c] = nil
	default:
		delete(in.busy, c)
	}
}

// answered reports whether every connection that can be expected to has its answer.
func (in *intake) answered() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, since := range in.busy {
		if since == nil || time.Since(*since) < newcomerPatience {
			return false
		}
	}
	return true
}

// Shutdown closes the listeners and waits for the requests in flight until ctx ends. What arrives on a
// connection already open is still answered.
func (s *Server) Shutdown(ctx context.Context) error {
	s.intake.close()
	s.http.SetKeepAlivesEnabled(false) // an answer ends its connection, and idle ones end now
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !s.intake.answered() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("finish the requests in flight: %w", ctx.Err())
		}
	}
	// What is left has nothing to say.
	s.http.Close()
	return nil
}
