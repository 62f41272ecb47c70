package amqpconn

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"koji-relay/internal/amqpconn/frame"
	"koji-relay/internal/inspect"
)

// The driver takes the first mechanism of the server's list for which it has a handler. With it alone
// "EXTERNAL where offered, else PLAIN" cannot be had in one connection, and errors name neither the offered
// list nor the outcome. So the SASL layer is negotiated here, before the driver is given the connection
// (docs/decisions/0004-sasl-of-our-own.md). It is two frames either way (AMQP 1.0 security, section 5.3):
//
//	client                                server
//	AMQP 3 1 0 0                   --->
//	                               <---   AMQP 3 1 0 0
//	                               <---   mechanisms [PLAIN, ANONYMOUS, ...]
//	init PLAIN \0user\0password    --->
//	                               <---   outcome ok
const (
	saslMechanisms = 0x40
	saslInit       = 0x41
	saslOutcome    = 0x44

	// maxSASLFrame is generous: the specification allows 512 bytes.
	maxSASLFrame = 1 << 16
	// maxOffered is how many mechanisms of a broker are looked at: far more than there are.
	maxOffered = 50
)

var saslHeader = []byte{'A', 'M', 'Q', 'P', 3, 1, 0, 0}

// AuthError is a broker's refusal of our credentials, or ours to use its mechanisms.
type AuthError struct {
	Mechanism string   // what was tried; empty when nothing offered could be used
	Offered   []string // the broker's list
	Reason    string
}

func (e *AuthError) Error() string {
	offer := "it offers " + inspect.Line(strings.Join(e.Offered, ", "), maxText)
	if e.Mechanism == "" {
		return fmt.Sprintf("log in: %s; %s", e.Reason, offer)
	}
	return fmt.Sprintf("log in with %s: %s; %s", e.Mechanism, e.Reason, offer)
}

// login is what there is to authenticate with.
type login struct {
	policy         string // Options.SASL
	user, password string
	certificate    bool // the TLS layer presented one
}

// choose picks the mechanism and the first response, or says why there is none.
func (l login) choose(offered []string) (mechanism string, response []byte, err error) {
	has := func(m string) bool { return slices.Contains(offered, m) }
	plain := []byte("\x00" + l.user + "\x00" + l.password)
	refuse := func(reason string) (string, []byte, error) {
		return "", nil, &AuthError{Offered: offered, Reason: reason}
	}
	switch {
	case l.policy == SASLExternal || l.policy == SASLAuto && l.certificate && has("EXTERNAL"):
		if !has("EXTERNAL") {
			return refuse("sasl = external, which the broker does not offer")
		}
		return "EXTERNAL", nil, nil
	case l.policy == SASLPlain || l.policy == SASLAuto && l.user != "":
		if l.user == "" {
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

// negotiate runs the SASL layer on conn, whose deadline the caller has set. It reads no byte beyond it.
func (l login) negotiate(conn net.Conn) (mechanism string, offered []string, err error) {
	if _, err := conn.Write(saslHeader); err != nil {
		return "", offered, fmt.Errorf("send SASL header: %w", err)
	}
	header := make([]byte, len(saslHeader))
	if n, err := io.ReadFull(conn, header); hungUp(err) {
		return "", offered, wrongHeader(header[:n])
	} else if err != nil {
		return "", offered, fmt.Errorf("log in: %w", err)
	}
	if !bytes.Equal(header, saslHeader) {
		return "", offered, wrongHeader(header)
	}
	fields, err := readSASL(conn, saslMechanisms)
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
	fields, err = readSASL(conn, saslOutcome)
	if hungUp(err) {
		// Several brokers just hang up on a wrong password.
		return "", offered, &AuthError{Mechanism: mechanism, Offered: offered, Reason: "the broker hung up"}
	}
	if err != nil {
		return "", offered, err
	}
	code, err := parseOutcome(fields)
	if err != nil {
		return "", offered, err
	}
	if code != 0 {
		return "", offered, &AuthError{Mechanism: mechanism, Offered: offered, Reason: outcomeText(code)}
	}
	return mechanism, offered, nil
}

// printable makes the broker's list fit to be shown.
func printable(offered []string) []string {
	offered = offered[:min(len(offered), maxOffered)]
	for i, mechanism := range offered {
		offered[i] = inspect.Line(mechanism, maxName)
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

// initFrame encodes sasl-init. The response is present even if empty: without one a server sends a challenge.
func initFrame(mechanism string, response []byte) []byte {
	var list []byte
	list = append(list, 0xa3, byte(len(mechanism)))
	list = append(list, mechanism...)
	list = append(list, 0xb0)
	list = binary.BigEndian.AppendUint32(list, uint32(len(response)))
	list = append(list, response...)

	body := []byte{0x00, 0x53, saslInit, 0xd0}
	body = binary.BigEndian.AppendUint32(body, uint32(4+len(list)))
	body = binary.BigEndian.AppendUint32(body, 2)
	body = append(body, list...)

	frame := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	frame = append(frame, 2, 1, 0, 0)
	return append(frame, body...)
}

// readSASL reads one frame and returns the encoded fields of its performative, which must be the wanted one.
func readSASL(r io.Reader, want byte) ([]byte, error) {
	var header [8]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	size, offset := binary.BigEndian.Uint32(header[:4]), 4*uint32(header[4])
	if size < offset || offset < 8 || size > maxSASLFrame {
		return nil, fmt.Errorf("read SASL frame: size %d with offset %d is not a SASL frame", size, offset)
	}
	body := make([]byte, size-8)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	p, err := frame.Parse(body[offset-8:])
	if err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	if p.Code != uint64(want) {
		return nil, fmt.Errorf("read SASL frame: got performative %#x in place of %#x", p.Code, want)
	}
	return p.Fields, nil
}

// parseMechanisms reads the one field of sasl-mechanisms: an array of symbols, or a single symbol.
func parseMechanisms(field []byte) ([]string, error) {
	if len(field) == 0 {
		return nil, frame.ErrMalformed
	}
	kind, rest := field[0], field[1:]
	var count uint64
	switch {
	case kind == 0xa3 || kind == 0xb3: // a lone symbol
		symbol, _, ok := cutSymbol(kind, rest)
		if !ok {
			return nil, frame.ErrMalformed
		}
		return []string{symbol}, nil
	case kind == 0xe0 && len(rest) >= 3:
		count, kind, rest = uint64(rest[1]), rest[2], rest[3:]
	case kind == 0xf0 && len(rest) >= 9:
		count, kind, rest = uint64(binary.BigEndian.Uint32(rest[4:8])), rest[8], rest[9:]
	default:
		return nil, frame.ErrMalformed
	}
	var all []string
	for ; count > 0; count-- {
		symbol, after, ok := cutSymbol(kind, rest)
		if !ok {
			return nil, frame.ErrMalformed
		}
		all, rest = append(all, symbol), after
	}
	return all, nil
}

// cutSymbol splits the first symbol, encoded without its constructor, from text.
func cutSymbol(kind byte, text []byte) (symbol string, rest []byte, ok bool) {
	var size uint64
	switch {
	case kind == 0xa3 && len(text) >= 1:
		size, text = uint64(text[0]), text[1:]
	case kind == 0xb3 && len(text) >= 4:
		size, text = uint64(binary.BigEndian.Uint32(text)), text[4:]
	default:
		return "", nil, false
	}
	if uint64(len(text)) < size {
		return "", nil, false
	}
	return string(text[:size]), text[size:], true
}

// parseOutcome reads the code, the first field of sasl-outcome.
func parseOutcome(fields []byte) (byte, error) {
	if len(fields) < 2 || fields[0] != 0x50 {
		return 0, frame.ErrMalformed
	}
	return fields[1], nil
}
