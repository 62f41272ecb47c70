package guard

import (
	"net"
	"sync"
)

// writer gathers frames on their way to the socket. The driver writes each frame by itself; under load that
// is a system call, a packet and a wake-up of the peer for each message. Frames that come while others are
// being written go together.
//
//	driver --> Write: copies, returns --> flush, while there is anything: socket
//
// An error of the socket ends the connection.
type writer struct {
	socket net.Conn
	// spawn runs a function on a goroutine of its own, or reports that it must not.
	spawn func(func()) bool

	mu       sync.Mutex // guards what follows
	changed  sync.Cond  // signalled when flush has made progress
	waiting  []byte     // frames that are not given to the socket
	spare    []byte     // the array of those that were
	flushing bool
	err      error
}

// maxWaiting is how many bytes wait for the socket before Write does.
const maxWaiting = 64 << 10

func newWriter(socket net.Conn) *writer {
	w := &writer{socket: socket, spawn: func(f func()) bool { go f(); return true }}
	w.changed.L = &w.mu
	return w
}

// write takes b. With through it returns when the socket has it, and all before it; else at once, unless much
// waits already. The deadline of the socket bounds both. One goroutine at a time calls it.
func (w *writer) write(b []byte, through bool) error {
	w.mu.Lock()
	for len(w.waiting) > maxWaiting && w.err == nil {
		w.changed.Wait()
	}
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	w.waiting = append(w.waiting, b...)
	begin := !w.flushing
	w.flushing = true
	w.mu.Unlock()
	if begin && (through || !w.spawn(w.flush)) {
		w.flush()
	}
	if !through {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.flushing {
		w.changed.Wait()
	}
	return w.err
}

// flush gives the socket what waits, until nothing does.
func (w *writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.waiting) > 0 && w.err == nil {
		now := w.waiting
		w.waiting, w.spare = w.spare[:0], nil
		w.mu.Unlock()
		_, err := w.socket.Write(now)
		if err != nil {
			_ = w.socket.Close() // so that the driver learns of it
		}
		w.mu.Lock()
		w.err = err
		if cap(now) <= 2*maxWaiting {
			w.spare = now[:0]
		}
		w.changed.Broadcast()
	}
	w.flushing = false
	w.changed.Broadcast()
}

// failure is how writing ended.
func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
