package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a listener whose connections and errors a test gives.
type scripted struct {
	next   chan any // a net.Conn or an error
	closed chan struct{}
	once   sync.Once
}

func newScripted() *scripted { return &scripted{next: make(chan any), closed: make(chan struct{})} }

func (s *scripted) Accept() (net.Conn, error) {
	select {
	case v := <-s.next:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *scripted) Addr() net.Addr { return &net.UnixAddr{Name: "scripted"} }

// logged is a log that a test reads.
func logged() (*slog.Logger, *strings.Builder) {
	text := new(strings.Builder)
	return slog.New(slog.NewTextHandler(text, nil)), text
}

func TestListenerHasNoMoreConnectionsThanItMay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newScripted()
		log, text := logged()
		l := newListener(inner, "admin", 2, log)
		accepted := make(chan net.Conn)
		go func() {
			defer close(accepted)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
		connect := func() {
			ours, theirs := net.Pipe()
			defer ours.Close()
			inner.next <- theirs
		}
		connect()
		first := <-accepted
		connect()
		second := <-accepted
		synctest.Wait()
		select {
		case inner.next <- nil:
			t.Fatal("a third connection is accepted")
		default:
		}
		first.Close()
		first.Close() // gives its room back once
		synctest.Wait()
		connect()
		third := <-accepted
		synctest.Wait()
		if n := len(l.room); n != 2 {
			t.Errorf("%d connections are counted, want 2", n)
		}
		l.Close()
		if _, more := <-accepted; more {
			t.Error("a connection is accepted after the end")
		}
		second.Close()
		third.Close()
		if n := strings.Count(text.String(), "all connections are in use"); n != 1 {
			t.Errorf("the log says %d times that connections are used up, want once:\n%s", n, text)
		}
	})
}

func TestAcceptErrorsAreToldOnceAndTheirEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := newScripted()
		log, text := logged()
		l := newListener(inner, "hub", 5, log)
		used := errors.New("accept: too many open files")
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			inner.next <- used
			inner.next <- used
			inner.next <- theirs
		}()
		for range 2 {
			if _, err := l.Accept(); !errors.Is(err, used) {
				t.Fatal(err)
			}
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if n := len(l.room); n != 0 {
			t.Errorf("%d connections are counted after their end", n)
		}
		want := []string{"level=WARN", "too many open files", "level=INFO", "accepted again"}
		rest := text.String()
		for _, w := range want {
			_, after, found := strings.Cut(rest, w)
			if !found {
				t.Fatalf("no %q in\n%s", w, text)
			}
			rest = after
		}
		if n := strings.Count(text.String(), "\n"); n != 2 {
			t.Errorf("%d lines are logged, want 2:\n%s", n, text)
		}
	})
}

// The port of the page is another's for a while: the relay works without, and takes it when it can be had.
func TestListenerThatCannotBeHadIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, text := logged()
		d := &Daemon{log: log, fatal: make(chan error, 1)}
		parts := &stops{log: log}
		inUse := errors.New("listen tcp 127.0.0.1:9763: bind: address already in use")
		var inner *scripted
		var tries atomic.Int32
		server := &http.Server{}
		d.serveAlso(parts, "admin", 5, func() (net.Listener, error) {
			if tries.Add(1) < 4 {
				return nil, inUse
			}
			inner = newScripted()
			return inner, nil
		}, server.Serve)
		if tries := tries.Load(); tries != 1 {
			t.Errorf("%d tries before the relay is ready, want 1", tries)
		}
		pass(time.Minute)
		if tries := tries.Load(); tries != 4 {
			t.Errorf("%d tries within a minute, want 4: the last one succeeded", tries)
		}
		inner.next <- errors.New("the listener broke") // and another one is made
		pass(time.Minute)
		if tries := tries.Load(); tries != 5 {
			t.Errorf("%d tries after the listener broke, want 5", tries)
		}
		if err := parts.runAll(context.Background()); err != nil {
			t.Error(err)
		}
		select {
		case <-inner.closed:
		default:
			t.Error("the listener is open after the end")
		}
		select {
		case err := <-d.fatal:
			t.Errorf("the relay ended: %v", err)
		default:
		}
		for line, want := range map[string]int{"level=WARN": 3, "address already in use": 1,
			"listening at last": 2} {
			if n := strings.Count(text.String(), line); n != want {
				t.Errorf("%q is logged %d times, want %d:\n%s", line, n, want, text)
			}
		}
	})
}

func TestShareOfFileDescriptors(t *testing.T) {
	t.Parallel()
	if got := shareOf(1<<62, 100); got != 1 {
		t.Errorf("a share of next to nothing is %d, want 1", got)
	}
	if got := shareOf(1, 7); got != 7 {
		t.Errorf("a large share is %d, want the most that is wanted, 7", got)
	}
}

// The control socket asks the kernel who is at the other end.
func TestConnectionTellsWhoIsAtItsOtherEnd(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	log, _ := logged()
	l := newListener(inner, "control", 1, log)
	defer l.Close()
	ours, err := net.Dial("unix", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	raw, err := theirs.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peer *syscall.Ucred
	if err := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || peer == nil || int(peer.Pid) != os.Getpid() {
		t.Errorf("the peer is %+v, %v; want this process", peer, err)
	}
}
