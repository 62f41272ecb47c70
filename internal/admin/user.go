package admin

import (
	"context"
	"log/slog"
	"net"
	"os/user"
	"strconv"
	"syscall"
)

// userKey is the context key of who is connected to the control socket.
type userKey struct{}

// withUser asks the kernel who has opened a connection of the control socket.
func withUser(ctx context.Context, c net.Conn) context.Context {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return ctx
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ctx
	}
	var peer *syscall.Ucred
	if raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}) != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, userKey{}, UserName(int(peer.Uid)))
}

// UserName is a user for the log: the name, or the number where it has none.
func UserName(uid int) string {
	number := strconv.Itoa(uid)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return "uid " + number
}

// UserOf is who asked, for the log; "unknown" where the kernel could not tell.
func UserOf(ctx context.Context) slog.Attr {
	name, ok := ctx.Value(userKey{}).(string)
	if !ok {
		name = "unknown"
	}
	return slog.String("user", name)
}
