package guard

import (
	"net"
	"runtime"
	"sync"
	"time"
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
	held     bool       // the last of them is to wait for the next
	late     *time.Timer
	flushing bool
	err      error
}

// maxWaiting is how many bytes wait for the socket before Write does.
const maxWaiting = 64 << 10

// Frames are held while they are fewer bytes than heldBytes, and no longer than heldTime: the next one may be
// stuck in the driver, for want of credit. It does not tell.
const (
	heldBytes = 8 << 10
	heldTime  = 500 * time.Microsecond
)

func newWriter(socket net.Conn) *writer {
	w := &writer{socket: socket, spawn: func(f func()) bool { go f(); return true }}
	w.changed.L = &w.mu
	w.late = time.AfterFunc(time.Hour, w.release)
	w.late.Stop()
	return w
}

// How a frame is written.
type manner int

const (
	soon    manner = iota // write returns at once, unless much waits already
	held                  // the same, and another frame follows at once
	through               // write returns when the socket has it, and all before it
)

// write takes b. The deadline of the socket bounds it. One goroutine at a time calls it.
func (w *writer) write(b []byte, how manner) error {
	w.mu.Lock()
	for len(w.waiting) > maxWaiting && w.err == nil {
		w.changed.Wait()
	}
	if w.err != nil {
		defer w.mu.Unlock()
		return w.err
	}
	if how == held && !(w.held && len(w.waiting) > 0) { // nothing is held yet
		w.late.Reset(heldTime)
	}
	w.waiting = append(w.waiting, b...)
	w.held = how == held
	begin := !w.flushing && w.due()
	w.flushing = w.flushing || begin
	w.mu.Unlock()
	if begin && (how == through || !w.spawn(w.flushNext)) {
		w.flush()
	}
	if how != through {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.flushing {
		w.changed.Wait()
	}
	return w.err
}

// due reports whether what waits is to be written now. w.mu is held.
func (w *writer) due() bool { return len(w.waiting) > 0 && (!w.held || len(w.waiting) >= heldBytes) }

// release ends the wait for the next frame.
func (w *writer) release() {
	w.mu.Lock()
	w.held = false
	begin := !w.flushing && w.due()
	w.flushing = w.flushing || begin
	w.mu.Unlock()
	if begin {
		w.flush()
	}
}

// flushNext is flush for messages. Whoever is about to send goes first: a goroutine that is ready gives its
// message to the link, and that one gives the frame to the driver. So it lets others run twice. With an idle
// processor nobody is ready, and it goes on at once.
func (w *writer) flushNext() {
	runtime.Gosched()
	runtime.Gosched()
	w.flush()
}

// flush gives the socket what waits, until nothing is due.
func (w *writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.due() && w.err == nil {
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
