// Package failure makes what peers, sockets and the AMQP driver say fit to be shown: one line, short,
// printable, and the same text for the same cause.
package failure

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"syscall"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/inspect"
)

// The longest that is shown of what a peer says, in bytes.
const (
	maxCondition = 100
	maxText      = 300
	maxCause     = 500
	maxName      = 80
)

// Name makes a name that a peer gave fit to be shown: a product, a version, a mechanism.
func Name(text string) string { return inspect.Line(text, maxName) }

// Line makes any other text of a peer fit to be shown.
func Line(text string) string { return inspect.Line(text, maxText) }

// socketAddresses are part of the errors of sockets. Ours has another port each time, so that no cause would
// be like the one before, and the broker's is said anyway.
var socketAddresses = regexp.MustCompile(`\b(read|write) (tcp|udp)[46]? \S+->\S+: `)

// pointers are what the driver prints of a link handle (upstream 14).
var pointers = regexp.MustCompile(` (0x)?[0-9a-f]{11,}\b`)

// Cause gives the text of err for a person, on one line: without what differs from one time to the next,
// and without the driver's way of printing what a broker said.
func Cause(err error) string {
	text := err.Error()
	var remote *amqp.Error
	if errors.As(err, &remote) {
		text = strings.ReplaceAll(text, remote.Error(), Condition(remote))
	}
	text = pointers.ReplaceAllString(socketAddresses.ReplaceAllString(text, ""), "")
	return inspect.Line(text, maxCause)
}

// Condition shows an AMQP error to a person. Both parts come from the broker.
func Condition(e *amqp.Error) string {
	condition := inspect.Line(string(e.Condition), maxCondition)
	description := Line(e.Description)
	switch {
	case description == "":
		return condition
	case condition == "":
		return description
	}
	return condition + ": " + description
}

// Text is Condition for errors that may wrap one.
func Text(err error) string {
	if err == nil {
		return "closed"
	}
	var remote *amqp.Error
	if errors.As(err, &remote) {
		return Condition(remote)
	}
	return Line(Cause(err))
}

// HungUp reports an end of the connection that came from the peer without a word.
func HungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE)
}

// strangers are the first bytes of servers that are no AMQP broker, and what each is.
var strangers = []struct{ begins, name string }{
	{"http/", "an HTTP server"},
	{"<!doc", "an HTTP server"},
	{"<html", "an HTTP server"},
	{"ssh-", "an SSH server"},
	{"220", "a mail or FTP server"},
	{"* ok", "a mail server"},
	{"+ok", "a mail server"},
	{"-err", "a Redis server"},
	{"-noau", "a Redis server"},
	{"error", "a STOMP broker or memcached"},
}

// Stranger names the server that begins like this; empty where it is not known.
func Stranger(first []byte) string {
	text := strings.ToLower(string(first))
	for _, s := range strangers {
		if strings.HasPrefix(text, s.begins) {
			return s.name
		}
	}
	const length = 4 // stands before what a server of these says
	switch {
	case len(first) <= length:
	case first[3] == 0 && first[length] == 10: // its sequence number, and the version of its protocol
		return "a MySQL server"
	case first[0] == 0 && first[length] == 1: // the kind of its first frame
		return "a broker's OpenWire port"
	}
	return ""
}
