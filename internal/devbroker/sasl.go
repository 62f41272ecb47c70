package devbroker

import (
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	"koji-relay/internal/devbroker/wire"
)

const (
	mechPlain     = "PLAIN"
	mechAnonymous = "ANONYMOUS"
	mechExternal  = "EXTERNAL"
)

// SASL outcome codes (AMQP 1.0, part 5, section 5.3.3.6).
const (
	saslOK   = 0
	saslAuth = 1
)

var errUnauthenticated = errors.New("peer is not authenticated")

// negotiate reads the protocol headers and authenticates the peer. It blocks for as long as the peer takes.
func (c *conn) negotiate(limit uint32) error {
	header, err := c.readHeader()
	if err != nil {
		return err
	}
	if header == wire.HeaderAMQP && c.b.opts.AllowBare {
		c.write([]byte(wire.HeaderAMQP))
		return nil
	}
	if header != wire.HeaderSASL {
		// The specification's answer to a header that is not wanted: the wanted one, and good-bye.
		c.write([]byte(wire.HeaderSASL))
		return fmt.Errorf("peer sent protocol header %q", header)
	}
	if err := c.authenticate(limit); err != nil {
		return err
	}
	if header, err = c.readHeader(); err != nil {
		return err
	}
	c.write([]byte(wire.HeaderAMQP))
	if header != wire.HeaderAMQP {
		return fmt.Errorf("peer sent protocol header %q after SASL", header)
	}
	return nil
}

func (c *conn) authenticate(limit uint32) error {
	offered := make(wire.Symbols, len(c.b.opts.Mechanisms))
	for i, m := range c.b.opts.Mechanisms {
		offered[i] = wire.Symbol(m)
	}
	out := wire.AppendFrame([]byte(wire.HeaderSASL), wire.FrameSASL, 0, wire.CodeSASLMechanisms, []any{offered},
		nil)
	if err := c.write(out); err != nil {
		return err
	}
	f, err := wire.ReadFrame(c.in, limit)
	if err != nil {
		return err
	}
	p, _, err := f.Performative()
	if err != nil {
		return err
	}
	if f.Kind != wire.FrameSASL || p.Code() != wire.CodeSASLInit {
		return wire.Malformed("frame of type %d with performative 0x%x where sasl-init is due", f.Kind, p.Code())
	}
	list := wire.FieldsOf("sasl-init", p.Value)
	mechanism := wire.FieldOr(list, 0, wire.Symbol(""))
	response := wire.FieldOr(list, 1, []byte(nil))
	if list.Err != nil {
		return list.Err
	}
	script := c.b.connBehaviour()
	c.stall(script.StallAt == StageSASL)
	user, ok := c.login(string(mechanism), response)
	code := uint8(saslOK)
	if !ok || script.RefuseSASL {
		code = saslAuth
	}
	c.user = user
	c.describeLogin(string(mechanism), user)
	if err := c.write(wire.AppendFrame(nil, wire.FrameSASL, 0, wire.CodeSASLOutcome, []any{code},
		nil)); err != nil {
		return err
	}
	if code != saslOK {
		return errUnauthenticated
	}
	return nil
}

// login gives the user that the response proves.
func (c *conn) login(mechanism string, response []byte) (user string, ok bool) {
	if !slices.Contains(c.b.opts.Mechanisms, mechanism) {
		return "", false
	}
	switch mechanism {
	case mechAnonymous:
		return "", true
	case mechPlain:
		parts := strings.Split(string(response), "\x00")
		if len(parts) != 3 {
			return "", false
		}
		user, password := parts[1], parts[2]
		want, known := c.b.opts.Users[user]
		same := subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
		return user, c.b.opts.Users == nil || known && same
	case mechExternal:
		t, isTLS := c.nc.(*tls.Conn)
		if !isTLS || len(t.ConnectionState().PeerCertificates) == 0 {
			return "", false
		}
		return t.ConnectionState().PeerCertificates[0].Subject.CommonName, true
	}
	return "", false
}
