// Package sasl logs in on a connection before the AMQP driver is given it. It promises that errors name what
// the broker offered and what it answered. It never prints a credential, and never takes ANONYMOUS where a
// user is set.
//
// The driver takes the first mechanism of the server's list for which it has a handler. With it alone
// "EXTERNAL where offered, else PLAIN" cannot be had in one connection
// (docs/decisions/0004-sasl-of-our-own.md). It is two frames either way (AMQP 1.0 security, section 5.3):
//
//	client                                server
//	AMQP 3 1 0 0                   --->
//	                               <---   AMQP 3 1 0 0
//	                               <---   mechanisms [PLAIN, ANONYMOUS, ...]
//	init PLAIN \0user\0password    --->
//	                               <---   outcome ok
package sasl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"koji-relay/internal/amqpconn/failure"
)

// Error is a broker's refusal of our credentials, or ours to use its mechanisms.
type Error struct {
	Mechanism string   // what was tried; empty when nothing offered could be used
	Offered   []string // the broker's list
	Reason    string
}

func (e *Error) Error() string {
	offer := "it offers " + failure.Line(strings.Join(e.Offered, ", "))
	if e.Mechanism == "" {
		return fmt.Sprintf("log in: %s; %s", e.Reason, offer)
	}
	return fmt.Sprintf("log in with %s: %s; %s", e.Mechanism, e.Reason, offer)
}

// Policies: what may be logged in with.
const (
	Auto      = "auto"
	Plain     = "plain"
	External  = "external"
	Anonymous = "anonymous"
)

// Policies are all of them.
func Policies() []string { return []string{Auto, Plain, External, Anonymous} }

// Login is what there is to authenticate with.
type Login struct {
	Policy         string // one of Policies
	User, Password string
	TLS            bool // there is a TLS layer
	Certificate    bool // the TLS layer presented one
}

// choose picks the mechanism and the first response, or says why there is none.
func (l Login) choose(offered []string) (mechanism string, response []byte, err error) {
	has := func(m string) bool { return slices.Contains(offered, m) }
	plain := []byte("\x00" + l.User + "\x00" + l.Password)
	refuse := func(reason string) (string, []byte, error) {
		return "", nil, &Error{Offered: offered, Reason: reason}
	}
	switch {
	case l.Policy == External || l.Policy == Auto && l.Certificate && has("EXTERNAL"):
		if !has("EXTERNAL") {
			return refuse("sasl = external, which the broker does not offer")
		}
		return "EXTERNAL", nil, nil
	case l.Policy == Plain || l.Policy == Auto && l.User != "":
		if l.User == "" {
			return refuse("sasl = plain, but no user is configured")
		}
		if !has("PLAIN") {
			// Not ANONYMOUS: a wrong or refused user must not turn into nobody unnoticed.
			return refuse("a user is configured, but the broker does not offer PLAIN")
		}
		return "PLAIN", plain, nil
	default:
		if !has("ANONYMOUS") {
			return refuse("no user is configured and the broker does not offer ANONYMOUS: " +
				"set user_file and password_file, or a client certificate")
		}
		return "ANONYMOUS", []byte("anonymous"), nil
	}
}

// Negotiate runs the SASL layer on conn until ctx ends. It reads no byte beyond it, and leaves conn without a
// deadline. The mechanisms offered are given with an error, too, once they are known.
func (l Login) Negotiate(ctx context.Context, conn net.Conn) (mechanism string, offered []string, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	mechanism, offered, err = l.negotiate(ctx, conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	_ = conn.SetDeadline(time.Time{})
	return mechanism, offered, err
}

func (l Login) negotiate(ctx context.Context, conn net.Conn) (mechanism string, offered []string, err error) {
	if err := l.greet(ctx, conn); err != nil {
		return "", offered, err
	}
	fields, err := readFrame(conn, codeMechanisms)
	if err != nil {
		return "", offered, err
	}
	offered, err = parseMechanisms(fields)
	if err != nil {
		return "", offered, err
	}
	offered = printable(offered)
	mechanism, response, err := l.choose(offered)
	if err != nil {
		return "", offered, err
	}
	if _, err := conn.Write(initFrame(mechanism, response)); err != nil {
		return "", offered, fmt.Errorf("send SASL init: %w", err)
	}
	fields, err = readFrame(conn, codeOutcome)
	if failure.HungUp(err) {
		// Several brokers just hang up on a wrong password.
		return "", offered, &Error{Mechanism: mechanism, Offered: offered, Reason: "the broker hung up"}
	}
	if err != nil {
		return "", offered, err
	}
	code, err := parseOutcome(fields)
	if err != nil {
		return "", offered, err
	}
	if code != 0 {
		return "", offered, &Error{Mechanism: mechanism, Offered: offered, Reason: outcomeText(code)}
	}
	return mechanism, offered, nil
}

// greet exchanges headers. An HTTP server is silent until it has read the end of a line: who has said nothing
// in nine tenths of the time is given one, so that the error can name it.
func (l Login) greet(ctx context.Context, conn net.Conn) error {
	end, limited := ctx.Deadline()
	ask := end
	if limited {
		ask = end.Add(-time.Until(end) / 10)
	}
	_ = conn.SetDeadline(ask)
	if ctx.Err() != nil { // what ended it may have set its deadline before
		return context.Cause(ctx)
	}
	if _, err := conn.Write(protocol); err != nil {
		return fmt.Errorf("send SASL header: %w", err)
	}
	header := make([]byte, len(protocol))
	n, err := io.ReadFull(conn, header)
	_ = conn.SetDeadline(end)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case err != nil && n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		if _, err := io.WriteString(conn, "\r\n\r\n"); err != nil {
			return fmt.Errorf("log in: %w", err)
		}
		n, err = io.ReadFull(conn, header)
		if n == 0 && !failure.HungUp(err) {
			return fmt.Errorf("log in: %w", err)
		}
		if bytes.Equal(header[:n], protocol) { // what it was given behind ours ends its login
			return errors.New("log in: the broker answered too late; raise connect_timeout if it is always so slow")
		}
		return wrongHeader(header[:n], l.TLS)
	case err != nil && n > 0, failure.HungUp(err):
		return wrongHeader(header[:n], l.TLS)
	case err != nil:
		return fmt.Errorf("log in: %w", err)
	case !bytes.Equal(header, protocol):
		return wrongHeader(header, l.TLS)
	}
	return nil
}

// maxOffered is how many mechanisms of a broker are looked at: far more than there are.
const maxOffered = 50

// printable makes the broker's list fit to be shown.
func printable(offered []string) []string {
	offered = offered[:min(len(offered), maxOffered)]
	for i, mechanism := range offered {
		offered[i] = failure.Name(mechanism)
	}
	return offered
}

func outcomeText(code byte) string {
	switch code {
	case 1:
		return "the broker refused the credentials"
	case 2:
		return "the broker has a problem of its own (sys)"
	case 3:
		return "the broker has a lasting problem of its own (sys-perm)"
	case 4:
		return "the broker has a passing problem of its own (sys-temp)"
	}
	return fmt.Sprintf("the broker answered with code %d", code)
}

// wrongHeader explains what the peer sent in place of AMQP 1.0's SASL header, as far as it sent any; secured
// says that it was sent within TLS.
func wrongHeader(got []byte, secured bool) error {
	switch text := string(got); {
	case strings.HasPrefix(text, "AMQP\x00\x00\x09"), strings.HasPrefix(text, "AMQP\x01\x01"):
		return errors.New("log in: the broker speaks AMQP 0-9-1 on this port, not 1.0; on RabbitMQ 3 run " +
			"'rabbitmq-plugins enable rabbitmq_amqp1_0'")
	case strings.HasPrefix(text, "AMQP\x00\x01"):
		return errors.New("log in: the broker takes no SASL on this port; use one where clients log in")
	case strings.HasPrefix(text, "\x15\x03"):
		return errors.New("log in: the broker expects TLS on this port; write amqps:// in urls")
	case failure.Stranger(got) != "":
		return fmt.Errorf("log in: %s answers, which does not speak AMQP 1.0; give the broker's AMQP port in urls",
			failure.Stranger(got))
	case text == "" && secured:
		return errors.New("log in: the peer hung up without an answer; check the port in urls, and whether the " +
			"broker asks for a client certificate (cert)")
	case text == "":
		return errors.New("log in: the peer hung up without an answer, as PostgreSQL and some TLS ports do; " +
			"check the port in urls, or write amqps:// there")
	}
	return fmt.Errorf("log in: the peer answered %q, which is no AMQP 1.0 with SASL; check the port in urls",
		got)
}
