package amqpconn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/internal/message"
)

// The stages of a connection, in order, as Probe reports them.
const (
	stageLogin  = "read credentials"
	stageTCP    = "connect"
	stageTLS    = "set up TLS"
	stageSASL   = "log in"
	stageOpen   = "open AMQP connection"
	stagePrefix = "choose dialect"
	stageAttach = "attach"
)

// DialError is an error of Dial with its word.
type DialError struct {
	error
	Failure message.Failure
}

func (e *DialError) Unwrap() error { return e.error }

// DropError is the cause of a connection that we ended ourselves. The messages on it are not to blame.
type DropError struct{ Reason string }

func (e DropError) Error() string { return e.Reason }

// dialFailed says of err which stage of the connection it ended. ctx is the one that bounds all stages.
func (c *Conn) dialFailed(ctx context.Context, err error) error {
	e := &DialError{c.inTime(ctx, err), message.FailedConnect}
	var remote *amqp.Error
	var host hostError
	switch {
	case errors.As(err, &host):
		e.Failure = message.FailedLink
	case isAuth(err), errors.As(err, &remote) && remote.Condition == amqp.ErrCondUnauthorizedAccess &&
		c.stage == stageOpen:
		e.Failure = message.FailedSASL
	case timeOver(ctx):
		e.Failure = message.FailedTimeout
	case c.stage == stageTLS:
		e.Failure = message.FailedTLS
	case c.stage == stageLogin, c.stage == stageSASL:
		e.Failure = message.FailedSASL
	case c.stage == stagePrefix, c.stage == stageAttach:
		e.Failure = message.FailedLink
	}
	return e
}

// EndedBy gives the word for the end of an attempt to connect, or of a connection.
func EndedBy(err error) message.Failure {
	var d *DialError
	var dropped DropError
	switch {
	case errors.As(err, &d):
		return d.Failure
	case errors.As(err, &dropped): // it settled nothing for too long
		return message.FailedTimeout
	}
	return message.FailedLost
}

// inTime says of an error whether it is that the time was over.
func (c *Conn) inTime(ctx context.Context, err error) error {
	if timeOver(ctx) && !isAuth(err) {
		return fmt.Errorf("%s: no answer within %v (connect_timeout); %s", c.stage, c.opts.ConnectTimeout,
			c.afterSilence())
	}
	return err
}

// afterSilence says what to do where nobody answered.
func (c *Conn) afterSilence() string {
	switch {
	case c.stage == stageTCP:
		return "check host and port in urls, and the firewalls on the way"
	case c.stage == stageTLS:
		return "check that the port in urls is the broker's for AMQP with TLS, or write amqp:// there; if it is, " +
			"the broker hangs"
	case c.stage == stageSASL && c.tls == nil:
		return "check that the port in urls is the broker's for AMQP 1.0, or write amqps:// there; if it is, the " +
			"broker hangs"
	case c.stage == stageSASL:
		return "check that the port in urls is the broker's for AMQP 1.0; if it is, the broker hangs"
	}
	return "the broker hangs, or needs longer; see its log"
}

// timeOver reports whether ctx has come to its deadline. A socket with the same deadline may notice before
// ctx does.
func timeOver(ctx context.Context) bool {
	end, limited := ctx.Deadline()
	return limited && !time.Now().Before(end)
}

func isAuth(err error) bool {
	var auth *sasl.Error
	return errors.As(err, &auth)
}
