package guard

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"testing/synctest"
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
	if err := w.write([]byte(text), false); err != nil {
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
		through := make(chan error, 1)
		go func() { through <- w.write([]byte("close."), true) }()
		synctest.Wait()
		s.result <- nil
		s.want(t, "two.three.close.")
		synctest.Wait()
		select {
		case <-through:
			t.Error("the last write returned before the socket had it")
		default:
		}
		s.result <- nil
		if err := <-through; err != nil {
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
				if err := w.write(frame, false); err != nil {
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
		if err := w.write(frame, true); !errors.Is(err, stop) || !errors.Is(w.failure(), stop) {
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
