package ingest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// SocketOptions say where the hub finds the relay and who may connect.
type SocketOptions struct {
	Path  string
	Group string // name or number; empty leaves the process's own group
	Mode  fs.FileMode
}

// ListenUnix listens on a Unix socket. A socket file that a killed relay left behind is replaced; one that
// something still answers on is an error.
func ListenUnix(opts SocketOptions) (net.Listener, error) {
	if err := removeStale("unix", opts.Path); err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", opts.Path, err)
	}
	l, err := closedToOthers.Listen(context.Background(), "unix", opts.Path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", opts.Path, err)
	}
	if err := setAccess(opts); err != nil {
		l.Close()
		return nil, fmt.Errorf("set access to socket %s: %w", opts.Path, err)
	}
	return l, nil
}

// closedToOthers lets nobody else connect before setAccess says who may: on Linux the mode of an unbound
// socket becomes that of its file (unix(7), bind).
var closedToOthers = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var chmodErr error
	err := c.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), 0o600) })
	return errors.Join(err, chmodErr)
}}

func removeStale(network, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return errors.New("a file that is not a socket is in the way; remove it or set another [relay] socket")
	}
	if c, err := net.Dial(network, path); err == nil {
		c.Close()
		return errors.New("something answers there already; is another koji-relay running?")
	}
	return os.Remove(path)
}

func setAccess(opts SocketOptions) error {
	if opts.Group != "" {
		gid, err := groupID(opts.Group)
		if err != nil {
			return fmt.Errorf("socket_group: %w", err)
		}
		if err := os.Chown(opts.Path, -1, gid); err != nil {
			return fmt.Errorf("socket_group %s: %w; is the relay's user a member of it?", opts.Group, err)
		}
	}
	return os.Chmod(opts.Path, opts.Mode)
}

func groupID(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}
