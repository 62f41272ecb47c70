package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// pokeName is the datagram socket beside the hub's. The hub plugin sends one datagram there when it has
// committed something to the outbox, and never waits.
const pokeName = "poke.sock"

// ListenPokes listens beside the hub's socket, for the same group and with the same mode. What a killed relay
// left behind is replaced. The file goes when the connection is closed.
func ListenPokes(hub string) (net.PacketConn, error) {
	path := filepath.Join(filepath.Dir(hub), pokeName)
	info, err := os.Stat(hub)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	opts := SocketOptions{Path: path, Mode: info.Mode().Perm()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		opts.Group = strconv.Itoa(int(st.Gid))
	}
	if err := removeStale("unixgram", path); err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	c, err := closedToOthers.ListenPacket(context.Background(), "unixgram", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	socket := &pokeSocket{c, path}
	if err := setAccess(opts); err != nil {
		socket.Close()
		return nil, fmt.Errorf("set access to socket %s: %w", path, err)
	}
	return socket, nil
}

// pokeSocket removes its file, which package net does for listeners alone.
type pokeSocket struct {
	net.PacketConn
	path string
}

func (s *pokeSocket) Close() error {
	err := s.PacketConn.Close()
	if err == nil {
		err = os.Remove(s.path)
	}
	return err
}

// ServePokes calls poke for each datagram, whatever it says, until c is closed; it then returns nil. poke
// must not block: what is not read in time is not sent, and the hub does not wait.
func ServePokes(c net.PacketConn, poke func()) error {
	var text [64]byte
	for {
		if _, _, err := c.ReadFrom(text[:]); errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read from socket %s: %w", c.LocalAddr(), err)
		}
		poke()
	}
}

// Inherited sorts the sockets that systemd opened for us: those of the hub API, and those of pokes. Their
// files are systemd's and outlive us. It closes files.
func Inherited(files []*os.File) (hub []net.Listener, pokes []net.PacketConn, err error) {
	for _, f := range files {
		kind, kindErr := syscall.GetsockoptInt(int(f.Fd()), syscall.SOL_SOCKET, syscall.SO_TYPE)
		switch {
		case kindErr != nil: // not a socket
			err = errors.Join(err, fmt.Errorf("take over %s: %w", f.Name(), kindErr))
		case kind == syscall.SOCK_DGRAM:
			c, openErr := net.FilePacketConn(f)
			if openErr == nil {
				pokes = append(pokes, c)
			}
			err = errors.Join(err, openErr)
		default:
			l, openErr := net.FileListener(f)
			if openErr == nil {
				if u, ok := l.(*net.UnixListener); ok {
					u.SetUnlinkOnClose(false)
				}
				hub = append(hub, l)
			}
			err = errors.Join(err, openErr)
		}
		f.Close()
	}
	return hub, pokes, err
}
