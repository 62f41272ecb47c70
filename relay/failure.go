package relay

import (
	"context"
	"errors"
	"regexp"

	"github.com/Azure/go-amqp"
)

// The words of docs/metrics.md for failures that an outcome's state does not tell.
const (
	failedConnect     = "connect"
	failedTLS         = "tls"
	failedSASL        = "sasl"
	failedLink        = "link"
	failedLost        = "lost"
	failedTimeout     = "timeout"
	failedTooLarge    = "too_large"
	failedUnencodable = "unencodable"
)

// failed gives the word for an attempt; empty where its state says it.
func (a attempt) failed() string {
	if a.failure != "" {
		return a.failure
	}
	switch a.verdict {
	case tooLarge:
		return failedTooLarge
	case unencodable:
		return failedUnencodable
	case lost:
		return failedLost
	case stuck, silent:
		return failedTimeout
	}
	return ""
}

// dialError is an error of dial with its word.
type dialError struct {
	error
	failure string
}

func (e *dialError) Unwrap() error { return e.error }

// dialFailed says of err which stage of the connection it ended. ctx is the one that bounds all stages.
func (c *conn) dialFailed(ctx context.Context, err error) error {
	e := &dialError{c.inTime(ctx, err), failedConnect}
	var remote *amqp.Error
	switch {
	case isAuth(err), errors.As(err, &remote) && remote.Condition == amqp.ErrCondUnauthorizedAccess && c.stage == stageOpen:
		e.failure = failedSASL
	case timeOver(ctx):
		e.failure = failedTimeout
	case c.stage == stageTLS:
		e.failure = failedTLS
	case c.stage == stageLogin, c.stage == stageSASL:
		e.failure = failedSASL
	case c.stage == stagePrefix, c.stage == stageAttach:
		e.failure = failedLink
	}
	return e
}

// endedBy gives the word for the end of an attempt to connect, or of a connection.
func endedBy(err error) string {
	var d *dialError
	var dropped errDropped
	switch {
	case errors.As(err, &d):
		return d.failure
	case errors.As(err, &dropped): // it settled nothing for too long
		return failedTimeout
	}
	return failedLost
}

// socketAddresses are part of the errors of sockets. Ours has another port each time, so that no cause would be like the
// one before, and the broker's is said anyway.
var socketAddresses = regexp.MustCompile(`\b(read|write) (tcp|udp)[46]? \S+->\S+: `)

func causeText(err error) string { return socketAddresses.ReplaceAllString(err.Error(), "") }
