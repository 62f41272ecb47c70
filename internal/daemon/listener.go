package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"koji-relay/internal/retry"
)

// listener accepts a bounded number of connections at a time, so that those of one listener leave file
// descriptors to the others. What comes above it waits in the backlog. It says so, and why it cannot accept,
// once each time.
type listener struct {
	net.Listener
	name string // for the log
	room chan struct{}
	log  *slog.Logger

	closing sync.Once
	closed  chan struct{}
	// Only Accept uses these; one goroutine calls it.
	full    bool
	trouble retry.Trouble
}

func newListener(l net.Listener, name string, most int, log *slog.Logger) *listener {
	return &listener{Listener: l, name: name, room: make(chan struct{}, most), closed: make(chan struct{}),
		log: log}
}

// Accept implements net.Listener. It blocks while all connections that may be open are.
func (l *listener) Accept() (net.Conn, error) {
	if err := l.await(); err != nil {
		return nil, err
	}
	c, err := l.Listener.Accept()
	if err == nil {
		l.trouble.Recovered(l.log, "connections are accepted again", "listener", l.name)
		return &conn{Conn: c, leave: sync.OnceFunc(l.leave)}, nil
	}
	l.leave()
	select {
	case <-l.closed:
	default:
		if l.trouble.Failed(err) {
			l.log.Warn("no connection can be accepted; trying again", "listener", l.name, "error", err)
		}
	}
	return nil, err
}

// await takes the room of one connection.
func (l *listener) await() error {
	select {
	case l.room <- struct{}{}:
		l.full = false
		return nil
	default:
	}
	if !l.full {
		l.full = true
		l.log.Warn("all connections are in use; further ones wait", "listener", l.name, "connections", cap(l.room))
	}
	select {
	case l.room <- struct{}{}:
		return nil
	case <-l.closed:
		return net.ErrClosed
	}
}

func (l *listener) leave() { <-l.room }

// Close implements net.Listener.
func (l *listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// conn gives its room back when it is closed.
type conn struct {
	net.Conn
	leave func()
}

func (c *conn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// SyscallConn lets who serves the connection ask who is at its other end.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if inner, ok := c.Conn.(syscall.Conn); ok {
		return inner.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// The most connections of the listeners. With few file descriptors it is a share of them: a quarter for the
// hub, an eighth for the page, a sixteenth for the commands. The rest is for brokers and the database.
const (
	mostHub     = 1024
	mostAdmin   = 64
	mostControl = 16
)

// shareOf is one part of what the process may open, or most.
func shareOf(part uint64, most int) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return most
	}
	return int(min(uint64(most), max(1, limit.Cur/part)))
}

// serveAlso serves on a listener that the relay can do without. One that cannot be had is tried again until
// it can, or until parts are stopped; the first try is over when this returns.
func (d *Daemon) serveAlso(parts *stops, name string, most int, open func() (net.Listener, error),
	serve func(net.Listener) error) {
	l, err := open()
	parts.add(startPart(name, time.Second, d.fatal, func(ctx context.Context) error {
		var trouble retry.Trouble
		for {
			if err == nil {
				trouble.Recovered(d.log, "listening at last", "listener", name, "address", l.Addr())
				err = serveUntil(ctx, newListener(l, name, most, d.log), serve)
			}
			if err == nil || ctx.Err() != nil {
				return nil
			}
			if trouble.Failed(err) {
				d.log.Warn("going on without a listener; trying again", "listener", name, "error", err)
			}
			retry.Pause(ctx, trouble.Delay())
			l, err = open()
		}
	}))
}

// serveUntil serves on l until ctx ends, or until an error.
func serveUntil(ctx context.Context, l net.Listener, serve func(net.Listener) error) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	return serve(l)
}
