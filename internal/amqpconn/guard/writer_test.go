package guard

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowSocket writes when it is told to, and gives what each write had. An error in its place fails the write.
type slowSocket struct {
	net.Conn
	writes chan []byte
	result chan error
	closed bool
}

func newSlowSocket() *slowSocket {
	return &slowSocket{writes: make(chan []byte), result: make(chan error)}
}

func (s *slowSocket) Write(b []byte) (int, error) {
	s.writes <- bytes.Clone(b)
	return len(b), <-s.result
}

func (s *slowSocket) Close() error {
	s.closed = true
	return nil
}

func (s *slowSocket) want(t *testing.T, text string) {
	t.Helper()
	if got := <-s.writes; string(got) != text {
		t.Errorf("the socket got %q, want %q", got, text)
	}
}

func mustTake(t *testing.T, w *writer, text string) {
	t.Helper()
	if err := w.write([]byte(text), soon); err != nil {
		t.Errorf("write %s: %v", text, err)
	}
}

func TestFramesThatComeDuringAWriteGoTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlowSocket()
		w := newWriter(s)
		mustTake(t, w, "one.")
		s.want(t, "one.")
		mustTake(t, w, "two.")
		mustTake(t, w, "three.")
		over := make(chan error, 1)
		go func() { over <- w.write([]byte("close."), through) }()
		synctest.Wait()
		s.result <- nil
		s.want(t, "two.three.close.")
		synctest.Wait()
		select {
		case <-over:
			t.Error("the last write returned before the socket had it")
		default:
		}
		s.result <- nil
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

func TestNoMoreThanAFewFramesWaitForTheSocket(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlowSocket()
		w := newWriter(s)
		frame := make([]byte, 1000)
		taken := 0
		stop := errors.New("reset")
		over := make(chan error, 1)
		go func() {
			for {
				if err := w.write(frame, soon); err != nil {
					over <- err
					return
				}
				taken++
			}
		}()
		<-s.writes
		synctest.Wait()
		if limit := maxWaiting/len(frame) + 3; taken > limit {
			t.Errorf("%d frames were taken, want %d at most", taken, limit)
		}
		s.result <- stop
		if err := <-over; !errors.Is(err, stop) || !s.closed {
			t.Errorf("after the socket failed: %v, closed %v", err, s.closed)
		}
		if err := w.write(frame, through); !errors.Is(err, stop) || !errors.Is(w.failure(), stop) {
			t.Errorf("another frame: %v, and %v is why", err, w.failure())
		}
	})
}

func TestWriterThatMayNotSpawnWritesByItself(t *testing.T) {
	t.Parallel()
	s := newSlowSocket()
	w := newWriter(s)
	w.spawn = func(func()) bool { return false }
	go func() {
		<-s.writes
		s.result <- nil
	}()
	mustTake(t, w, "one.")
	if len(w.waiting) > 0 || w.flushing {
		t.Errorf("%q still waits", w.waiting)
	}
}

func TestFrameThatIsFollowedWaitsForTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlowSocket()
		w := newWriter(s)
		hold := func(text string) {
			t.Helper()
			if err := w.write([]byte(text), held); err != nil {
				t.Error(err)
			}
		}
		wantHeld := func(text string) {
			t.Helper()
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.flushing || string(w.waiting) != text {
				t.Errorf("%q is held, want %q; writing: %v", w.waiting, text, w.flushing)
			}
		}
		hold("one.")
		hold("two.")
		wantHeld("one.two.")
		mustTake(t, w, "three.")
		s.want(t, "one.two.three.")
		hold("four.") // during a write
		s.result <- nil
		wantHeld("four.")
		began := time.Now()
		s.want(t, "four.") // nothing follows after all
		if waited := time.Since(began); waited > heldTime {
			t.Errorf("the frame was held for %v", waited)
		}
		s.result <- nil
		full := strings.Repeat("x", heldBytes)
		hold(full)
		s.want(t, full) // no more are gathered
		s.result <- nil
		hold("five.")
		go func() {
			if err := w.write([]byte("close."), through); err != nil {
				t.Error(err)
			}
		}()
		s.want(t, "five.close.")
		s.result <- nil
		synctest.Wait()
	})
}

// A frame that is held behind one that is not, while the socket is busy, leaves by itself all the same: the
// next one may never come.
func TestHeldFrameBehindAnotherLeavesByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlowSocket()
		w := newWriter(s)
		mustTake(t, w, "one.")
		s.want(t, "one.")
		mustTake(t, w, "two.")
		if err := w.write([]byte("three."), held); err != nil {
			t.Fatal(err)
		}
		s.result <- nil
		select {
		case got := <-s.writes:
			if string(got) != "two.three." {
				t.Errorf("the socket got %q", got)
			}
			s.result <- nil
		case <-time.After(time.Minute):
			t.Error("two frames wait for a third one")
		}
	})
}
