package amqpconn

import (
	"errors"
	"fmt"
	"regexp"
	"unicode/utf8"

	"github.com/Azure/go-amqp"
)

// socketAddresses are part of the errors of sockets. Ours has another port each time, so that no cause would be like the
// one before, and the broker's is said anyway.
var socketAddresses = regexp.MustCompile(`\b(read|write) (tcp|udp)[46]? \S+->\S+: `)

// pointers are what the driver prints of a link handle (upstream 14).
var pointers = regexp.MustCompile(` (0x)?[0-9a-f]{9,}\b`)

// CauseText gives the text of err without what differs from one time to the next.
func CauseText(err error) string {
	return pointers.ReplaceAllString(socketAddresses.ReplaceAllString(err.Error(), ""), "")
}

// ConditionText shows an AMQP error to a person. Descriptions come from the broker and may be long.
func ConditionText(e *amqp.Error) string {
	switch {
	case e.Description == "":
		return string(e.Condition)
	case e.Condition == "":
		return Shorten(e.Description, 300)
	}
	return fmt.Sprintf("%s: %s", e.Condition, Shorten(e.Description, 300))
}

// ErrorText is ConditionText for errors that may wrap one.
func ErrorText(err error) string {
	if err == nil {
		return "closed"
	}
	var remote *amqp.Error
	if errors.As(err, &remote) {
		return ConditionText(remote)
	}
	return Shorten(CauseText(err), 300)
}

// Shorten cuts text to at most n bytes for a log line or a reason.
func Shorten(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}
