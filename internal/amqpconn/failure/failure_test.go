package failure

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/Azure/go-amqp"
)

func TestWhatPeersSayIsPrintableAndShort(t *testing.T) {
	t.Parallel()
	remote := &amqp.Error{
		Condition:   amqp.ErrCond("amqp:\x1b[31mred" + strings.Repeat("x", 50_000)),
		Description: "two\nlines \u009b" + strings.Repeat("é", 50_000),
		Info:        map[string]any{"pointer": &struct{}{}},
	}
	for name, text := range map[string]string{
		"condition": Condition(remote),
		"error":     Text(remote),
		"wrapped":   Cause(fmt.Errorf("attach to koji.build.tag: %w; check topic_prefix", remote)),
		"driver's":  Cause(fmt.Errorf("begin session: %w", &amqp.SessionError{RemoteErr: remote})),
		"text":      Text(fmt.Errorf("\x1b]0;title\a%s", strings.Repeat("y", 50_000))),
	} {
		if len(text) > maxCause+3 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) ||
			strings.Contains(text, "Error{") || strings.Contains(text, "0x") {
			t.Errorf("%s: %d bytes: %q", name, len(text), text)
		}
	}
}

func TestCauseDoesNotNamePortsOfOurs(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ text, want string }{
		{"read SASL header: read tcp 127.0.0.1:44290->127.0.0.1:31351: i/o timeout",
			"read SASL header: i/o timeout"},
		{"received flow frame with unknown link handle 824635392112",
			"received flow frame with unknown link handle"},
		{"disposition for deliveries 0 to 4294967295, and 10 were sent",
			"disposition for deliveries 0 to 4294967295, and 10 were sent"},
		{"write tcp [::1]:39818->[::1]:5671: write: broken pipe",
			"write: broken pipe"},
		{"connect: lookup bus on 10.0.0.2:53: read udp 10.0.0.9:43311->10.0.0.2:53: i/o timeout",
			"connect: lookup bus on 10.0.0.2:53: i/o timeout"},
		{"closed by the broker: amqp:connection:forced: read tcp is no address -> this is not either",
			"closed by the broker: amqp:connection:forced: read tcp is no address -> this is not either"},
	} {
		if got := Cause(errors.New(row.text)); got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}
