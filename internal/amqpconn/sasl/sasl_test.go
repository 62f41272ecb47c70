package sasl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMechanismIsChosenByWhatThereIsToLogInWith(t *testing.T) {
	t.Parallel()
	const none = ""
	for _, row := range []struct {
		name    string
		login   Login
		offered string
		want    string
	}{
		{"user", Login{User: "u"}, "ANONYMOUS AMQPLAIN PLAIN", "PLAIN"},
		{"user is never dropped for ANONYMOUS", Login{User: "u"}, "ANONYMOUS", none},
		{"nobody", Login{}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"nobody, and the broker wants somebody", Login{}, "PLAIN", none},
		{"certificate", Login{Certificate: true}, "PLAIN EXTERNAL ANONYMOUS", "EXTERNAL"},
		{"certificate and user", Login{Certificate: true, User: "u"}, "PLAIN EXTERNAL", "EXTERNAL"},
		{"certificate and user without EXTERNAL", Login{Certificate: true, User: "u"}, "ANONYMOUS PLAIN", "PLAIN"},
		{"certificate without EXTERNAL, as ActiveMQ", Login{Certificate: true}, "PLAIN ANONYMOUS", "ANONYMOUS"},
		{"plain", Login{Policy: Plain, Certificate: true, User: "u"}, "EXTERNAL PLAIN", "PLAIN"},
		{"plain without a user", Login{Policy: Plain}, "PLAIN ANONYMOUS", none},
		{"external", Login{Policy: External}, "EXTERNAL", "EXTERNAL"},
		{"external not offered", Login{Policy: External, User: "u"}, "PLAIN ANONYMOUS", none},
		{"anonymous", Login{Policy: Anonymous, User: "u", Certificate: true}, "EXTERNAL PLAIN ANONYMOUS",
			"ANONYMOUS"},
	} {
		if row.login.Policy == "" {
			row.login.Policy = Auto
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
		fields, err := readFrame(bytes.NewReader(frame), codeMechanisms)
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
	_, _, err := Login{Policy: Auto}.Negotiate(t.Context(), here)
	if err == nil || !strings.Contains(err.Error(), "does not speak AMQP 1.0") {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
}

// An HTTP server waits for the end of a line: what Go's does here, Apache's and Python's do too.
func TestSilentHTTPServerIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		listener := &onePipe{conn: there, closed: make(chan struct{})}
		server := http.Server{ErrorLog: log.New(io.Discard, "", 0)}
		go func() { _ = server.Serve(listener) }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		_, _, err := Login{Policy: Auto}.Negotiate(ctx, here)
		if err == nil || !strings.Contains(err.Error(), "an HTTP server answers") {
			t.Errorf("after %v: error %v", time.Since(began), err)
		}
		if took := time.Since(began); took != 9*time.Second {
			t.Errorf("a broker had %v to answer", took)
		}
		_ = here.Close()
		_ = server.Close()
	})
}

// onePipe is a listener with one connection.
type onePipe struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *onePipe) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *onePipe) Close() error {
	close(l.closed)
	return nil
}

func (l *onePipe) Addr() net.Addr { return &net.UnixAddr{} }

func TestSilentPeerEndsWithTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err := Login{Policy: Auto}.Negotiate(ctx, here)
		synctest.Wait() // the two deadlines are one moment
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() == nil {
			t.Errorf("error %v, context %v", err, ctx.Err())
		}
		_ = here.Close()
	})
}

// It has got the end of a line by then. That it speaks AMQP must not be denied.
func TestBrokerThatAnswersLateIsCalledSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		go func() {
			_, _ = io.ReadFull(there, make([]byte, len(protocol)+len("\r\n\r\n")))
			_, _ = there.Write(protocol)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err := Login{Policy: Auto}.Negotiate(ctx, here)
		if err == nil || !strings.Contains(err.Error(), "too late; raise connect_timeout") {
			t.Errorf("error %v", err)
		}
		_ = here.Close()
	})
}

func TestHangingUpOnALoginIsARefusal(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		_, _ = io.ReadFull(there, make([]byte, len(protocol)))
		_, _ = there.Write(protocol)
		_, _ = there.Write([]byte("\x00\x00\x00\x15\x02\x01\x00\x00\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN"))
		_, _ = io.ReadFull(there, make([]byte, len(initFrame("PLAIN", []byte("\x00u\x00p")))))
		_ = there.Close()
	}()
	_, _, err := Login{Policy: Auto, User: "u", Password: "p"}.Negotiate(t.Context(), here)
	var auth *Error
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
		for _, want := range []byte{codeMechanisms, codeOutcome} {
			fields, err := readFrame(bytes.NewReader(frame), want)
			if err != nil {
				continue
			}
			_, _ = parseMechanisms(fields)
			_, _ = parseOutcome(fields)
		}
	})
}
