package devbroker

import (
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	if header == headerAMQP && c.b.opts.AllowBare {
		c.write([]byte(headerAMQP))
		return nil
	}
	if header != headerSASL {
		// The specification's answer to a header that is not wanted: the wanted one, and good-bye.
		c.write([]byte(headerSASL))
		return fmt.Errorf("peer sent protocol header %q", header)
	}
	if err := c.authenticate(limit); err != nil {
		return err
	}
	if header, err = c.readHeader(); err != nil {
		return err
	}
	c.write([]byte(headerAMQP))
	if header != headerAMQP {
		return fmt.Errorf("peer sent protocol header %q after SASL", header)
	}
	return nil
}

func (c *conn) authenticate(limit uint32) error {
	offered := make(symbols, len(c.b.opts.Mechanisms))
	for i, m := range c.b.opts.Mechanisms {
		offered[i] = symbol(m)
	}
	out := appendFrame([]byte(headerSASL), frameSASL, 0, codeSASLMechanisms, []any{offered}, nil)
	if err := c.write(out); err != nil {
		return err
	}
	f, err := readFrame(c.in, limit)
	if err != nil {
		return err
	}
	p, _, err := f.performative()
	if err != nil {
		return err
	}
	if f.kind != frameSASL || p.code() != codeSASLInit {
		return malformed("frame of type %d with performative 0x%x where sasl-init is due", f.kind, p.code())
	}
	list := fieldsOf("sasl-init", p.value)
	mechanism := fieldOr(list, 0, symbol(""))
	response := fieldOr(list, 1, []byte(nil))
	if list.err != nil {
		return list.err
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
	if err := c.write(appendFrame(nil, frameSASL, 0, codeSASLOutcome, []any{code}, nil)); err != nil {
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
