package amqpconn

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
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
	maxName      = 80 // of products, versions, mechanisms
)

// socketAddresses are part of the errors of sockets. Ours has another port each time, so that no cause would
// be like the one before, and the broker's is said anyway.
var socketAddresses = regexp.MustCompile(`\b(read|write) (tcp|udp)[46]? \S+->\S+: `)

// pointers are what the driver prints of a link handle (upstream 14).
var pointers = regexp.MustCompile(` (0x)?[0-9a-f]{11,}\b`)

// CauseText gives the text of err for a person, on one line: without what differs from one time to the next,
// and without the driver's way of printing what a broker said.
func CauseText(err error) string {
	text := err.Error()
	var remote *amqp.Error
	if errors.As(err, &remote) {
		text = strings.ReplaceAll(text, remote.Error(), ConditionText(remote))
	}
	text = pointers.ReplaceAllString(socketAddresses.ReplaceAllString(text, ""), "")
	return inspect.Line(text, maxCause)
}

// ConditionText shows an AMQP error to a person. Both parts come from the broker.
func ConditionText(e *amqp.Error) string {
	condition := inspect.Line(string(e.Condition), maxCondition)
	description := inspect.Line(e.Description, maxText)
	switch {
	case description == "":
		return condition
	case condition == "":
		return description
	}
	return condition + ": " + description
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
	return inspect.Line(CauseText(err), maxText)
}

// wrongHeader explains what the peer sent in place of AMQP 1.0's SASL header, as far as it sent any.
func wrongHeader(got []byte) error {
	switch text := string(got); {
	case strings.HasPrefix(text, "AMQP\x00\x00\x09"), strings.HasPrefix(text, "AMQP\x01\x01"):
		return errors.New("log in: the broker speaks AMQP 0-9-1 on this port, not 1.0; on RabbitMQ 3 run " +
			"'rabbitmq-plugins enable rabbitmq_amqp1_0'")
	case strings.HasPrefix(text, "AMQP\x00\x01"):
		return errors.New("log in: the broker takes no SASL on this port; use one where clients log in")
	case strings.HasPrefix(text, "\x15\x03"):
		return errors.New("log in: the broker expects TLS on this port; write amqps:// in urls")
	case strings.HasPrefix(text, "HTTP/"):
		return errors.New("log in: an HTTP server answers, which does not speak AMQP 1.0; give the broker's " +
			"AMQP port in urls")
	case text == "":
		return errors.New("log in: the peer hung up at once; if it expects TLS on this port write amqps:// in urls")
	}
	return fmt.Errorf("log in: the peer answered %q, which is no AMQP 1.0 with SASL; check the port in urls",
		got)
}

// explainTLS says what to do about a failed handshake.
func explainTLS(err error) error {
	var (
		plain   tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
		chain   *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &plain):
		return errors.New("set up TLS: the port does not speak TLS; write amqp:// in urls, or give the port " +
			"that does")
	case errors.As(err, &unknown):
		issuer := "an authority"
		if errors.As(err, &chain) && len(chain.UnverifiedCertificates) > 0 {
			issuer = chain.UnverifiedCertificates[len(chain.UnverifiedCertificates)-1].Issuer.String()
		}
		return fmt.Errorf("set up TLS: the broker's certificate was issued by %s, an unknown authority; "+
			"name the file with its certificate in cacert", inspect.Line(issuer, maxText))
	case hungUp(err):
		return errors.New("set up TLS: the broker hung up; does this port speak TLS, " +
			"and does the broker ask for a client certificate (cert)?")
	}
	return fmt.Errorf("set up TLS: %w", err)
}

// explainOpen says what to look at when the connection ends between the login and the broker's open frame.
func explainOpen(err error) error {
	var remote *amqp.Error
	if !errors.As(err, &remote) && hungUp(err) {
		return errors.New("open AMQP connection: the broker ended the connection after the login; does the " +
			"virtual host exist, and may the user use it (RabbitMQ: rabbitmqctl list_permissions)?")
	}
	return fmt.Errorf("open AMQP connection: %w", err)
}

// hungUp reports an end of the connection that came from the peer without a word.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE)
}
