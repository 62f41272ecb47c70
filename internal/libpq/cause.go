package libpq

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrReadOnly is a server that takes no changes, with what to do.
var ErrReadOnly = errors.New("the server takes no changes: it is a standby, or " +
	"default_transaction_read_only is on; connect to the primary, or turn that off")

// Plain gives err a text for a person: in one line, each cause once, without what differs from one time to
// the next. The result wraps err. Nil stays nil.
func Plain(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var connect *pgconn.ConnectError
	var socket *net.OpError
	switch {
	case errors.As(err, &connect):
		text = strings.Replace(text, connect.Error(), connectText(connect), 1)
	case errors.As(err, &socket):
		text = strings.Replace(text, socket.Error(), causeText(socket), 1)
	}
	text = strings.NewReplacer("timeout: context deadline exceeded", noAnswer,
		"context deadline exceeded", noAnswer).Replace(text)
	return &plain{strings.Join(strings.Fields(text), " "), err}
}

const (
	noAnswer = "no answer in time"
	// refusedTLS is what the driver says of a server without TLS. With sslmode=prefer it then tries without, and
	// what it says of that is the cause.
	refusedTLS = "server refused TLS connection"
)

type plain struct {
	text string
	err  error
}

func (p *plain) Error() string { return p.text }
func (p *plain) Unwrap() error { return p.err }

// Cause is the text, for whoever compares causes: the driver has several errors for one, and what wraps it
// names the operation.
func (p *plain) Cause() string { return p.text }

// connectText says why no connection could be made. A name may stand for several addresses, each tried with
// TLS and without: where the cause is the same it is said once.
func connectText(err *pgconn.ConnectError) string {
	var causes, all []string
	for _, try := range leaves(err.Unwrap()) {
		address, _, found := strings.Cut(try.Error(), " (")
		cause := ""
		// Of one try the driver says: address (host): what it did: why.
		if inner := errors.Unwrap(try); inner != nil {
			cause = causeText(inner)
			if inner = errors.Unwrap(inner); inner != nil {
				cause = causeText(inner)
			}
		} else {
			cause, found = try.Error(), false
		}
		if found {
			all = append(all, address+": "+cause)
		} else {
			all = append(all, cause)
		}
		causes = append(causes, cause)
	}
	mute := func(s string) bool { return strings.HasSuffix(s, refusedTLS) }
	if !slices.ContainsFunc(causes, func(s string) bool { return !mute(s) }) {
		return refusedTLS
	}
	causes, all = slices.DeleteFunc(causes, mute), slices.DeleteFunc(all, mute)
	if len(slices.Compact(slices.Sorted(slices.Values(causes)))) == 1 {
		return causes[0]
	}
	seen := make(map[string]bool)
	all = slices.DeleteFunc(all, func(s string) bool {
		again := seen[s]
		seen[s] = true
		return again
	})
	return strings.Join(all, "; ")
}

// leaves takes joined errors apart.
func leaves(err error) (all []error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, leaves(e)...)
		}
		return all
	}
	return []error{err}
}

// causeText is what the system, the server or the resolver said.
func causeText(err error) string {
	var number syscall.Errno
	var server *pgconn.PgError
	var name *net.DNSError
	var socket *net.OpError
	switch {
	case errors.As(err, &server):
		return server.Error()
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &name):
		return "no host " + name.Name + ": " + name.Err
	case errors.Is(err, context.DeadlineExceeded):
		return noAnswer
	case errors.As(err, &socket):
		return socket.Err.Error()
	}
	return err.Error()
}
