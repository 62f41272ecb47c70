package amqpconn

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestMechanismIsChosenByWhatThereIsToLogInWith(t *testing.T) {
	t.Parallel()
	const none = ""
	for _, row := range []struct {
		name    string
		login   login
		offered string
		want    string
	}{
		{"user", login{user: "u"}, "ANONYMOUS AMQPLAIN PLAIN", "PLAIN"},
		{"user is never dropped for ANONYMOUS", login{user: "u"}, "ANONYMOUS", none},
		{"nobody", login{}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"nobody, and the broker wants somebody", login{}, "PLAIN", none},
		{"certificate", login{certificate: true}, "PLAIN EXTERNAL ANONYMOUS", "EXTERNAL"},
		{"certificate and user", login{certificate: true, user: "u"}, "PLAIN EXTERNAL", "EXTERNAL"},
		{"certificate and user without EXTERNAL", login{certificate: true, user: "u"}, "ANONYMOUS PLAIN", "PLAIN"},
		{"certificate without EXTERNAL, as ActiveMQ", login{certificate: true}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"plain", login{policy: SASLPlain, certificate: true, user: "u"}, "EXTERNAL PLAIN", "PLAIN"},
		{"plain without a user", login{policy: SASLPlain}, "PLAIN ANONYMOUS", none},
		{"external", login{policy: SASLExternal}, "EXTERNAL", "EXTERNAL"},
		{"external not offered", login{policy: SASLExternal, user: "u"}, "PLAIN ANONYMOUS", none},
		{"anonymous", login{policy: SASLAnonymous, user: "u", certificate: true}, "EXTERNAL PLAIN ANONYMOUS",
			"ANONYMOUS"},
	} {
		if row.login.policy == "" {
			row.login.policy = SASLAuto
		}
		got, _, err := row.login.choose(strings.Fields(row.offered))
		if got != row.want || (err == nil) != (row.want != none) {
			t.Errorf("%s: %q, %v; not %q", row.name, got, err, row.want)
		}
	}
}

// Wire forms of the mechanisms frame that real brokers send, and some that nobody should.
func TestMechanismFrames(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, body string
		want       []string // nil = malformed
	}{
		{"array of short symbols", "\x00\x53\x40\xc0\x15\x01\xe0\x12\x02" +
			"\xa3\x05PLAIN\x09ANONYMOUS",
			[]string{"PLAIN", "ANONYMOUS"}},
		{"array of long symbols",
			"\x00\x53\x40\xd0\x00\x00\x00\x17\x00\x00\x00\x01\xf0\x00\x00\x00\x0e\x00\x00\x00\x01\xb3\x00\x00\x00" +
				"\x05PLAIN", []string{"PLAIN"}},
		{"one symbol", "\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN", []string{"PLAIN"}},
		{"long descriptor", "\x00\x80\x00\x00\x00\x00\x00\x00\x00\x40\xc0\x08\x01\xa3\x05PLAIN", []string{"PLAIN"}},
		{"empty list", "\x00\x53\x40\x45", nil},
		{"another performative", "\x00\x53\x44\xc0\x08\x01\xa3\x05PLAIN", nil},
		{"cut short", "\x00\x53\x40\xc0\x15\x01\xe0\x12\x02" +
			"\xa3\x05PLAIN\x09ANON", nil},
		{"count too high", "\x00\x53\x40\xc0\x0b\x01\xe0\x08\xff\xa3\x05PLAIN", nil},
		{"nothing", "", nil},
	} {
		frame := append([]byte{0, 0, 0, byte(8 + len(row.body)), 2, 1, 0, 0}, row.body...)
		fields, err := readSASL(bytes.NewReader(frame), saslMechanisms)
		var got []string
		if err == nil {
			got, err = parseMechanisms(fields)
		}
		if (err == nil) != (row.want != nil) || row.want != nil && !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, %v; not %q", row.name, got, err, row.want)
		}
	}
}

func TestPeerThatIsNoBrokerIsNamed(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		_, _ = io.ReadFull(there, make([]byte, 8))
		_, _ = there.Write([]byte("HTTP/1.1 400 Bad Request\r\n"))
		_ = there.Close()
	}()
	_, _, err := login{policy: SASLAuto}.negotiate(here)
	if err == nil || !strings.Contains(err.Error(), "does not speak AMQP 1.0") {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
}

func TestHangingUpOnALoginIsARefusal(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		_, _ = io.ReadFull(there, make([]byte, len(saslHeader)))
		_, _ = there.Write(saslHeader)
		_, _ = there.Write([]byte("\x00\x00\x00\x15\x02\x01\x00\x00\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN"))
		_, _ = io.ReadFull(there, make([]byte, len(initFrame("PLAIN", []byte("\x00u\x00p")))))
		_ = there.Close()
	}()
	_, _, err := login{policy: SASLAuto, user: "u", password: "p"}.negotiate(here)
	var auth *AuthError
	if !errors.As(err, &auth) || auth.Mechanism != "PLAIN" || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
}

func FuzzSASLFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x1f\x02\x01\x00\x00\x00\x53\x40\xc0\x15\x01\xe0\x12\x02" +
		"\xa3\x05PLAIN\x09ANONYMOUS"))
	f.Add([]byte("\x00\x00\x00\x10\x02\x01\x00\x00\x00\x53\x44\xc0\x03\x01\x50\x01"))
	f.Add([]byte("\x00\x00\x00\x0c\xff\x01\x00\x00\x00\x53\x40\x45"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for _, want := range []byte{saslMechanisms, saslOutcome} {
			fields, err := readSASL(bytes.NewReader(frame), want)
			if err != nil {
				continue
			}
			_, _ = parseMechanisms(fields)
			_, _ = parseOutcome(fields)
		}
	})
}
