package libpq

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestPlainTexts reads what the driver really says of servers that are not there, hang up, and do not answer.
func TestPlainTexts(t *testing.T) {
	t.Parallel()
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serve(c)
			}
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
	refusing := listen(func(c net.Conn) { // a server that has no room
		c.Read(make([]byte, 1024))
		answer := "SFATAL\x00C53300\x00Mtoo many\nclients\x00\x00"
		c.Write([]byte("E\x00\x00\x00" + string(rune(len(answer)+4)) + answer))
		c.Close()
	})
	plain := listen(func(c net.Conn) { // a server without TLS that has no room
		defer c.Close()
		first := make([]byte, 1024)
		if n, _ := c.Read(first); n == 8 {
			c.Write([]byte("N")) // to the request for TLS
			return
		}
		const answer = "SFATAL\x00C53300\x00Mtoo many clients\x00\x00"
		c.Write([]byte("E\x00\x00\x00" + string(rune(len(answer)+4)) + answer))
	})
	silent := listen(func(net.Conn) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, gone, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	for _, c := range []struct{ name, conn, want string }{
		{"nobody listens, with TLS and without", "host=127.0.0.1 sslmode=prefer port=" + gone,
			"connection refused"},
		{"on either of two", "host=127.0.0.1,127.0.0.1 sslmode=disable port=" + gone, "connection refused"},
		{"two causes", "host=127.0.0.1,/nonexistent sslmode=disable port=" + gone,
			"127.0.0.1:" + gone + ": connection refused; /nonexistent/.s.PGSQL." + gone + ": no such file or " +
				"directory"},
		{"the server's words", "host=127.0.0.1 sslmode=disable port=" + refusing,
			"FATAL: too many clients (SQLSTATE 53300)"},
		{"the server's words without TLS, not that it has none", "host=127.0.0.1 sslmode=prefer port=" + plain,
			"FATAL: too many clients (SQLSTATE 53300)"},
		{"silence", "host=127.0.0.1 sslmode=disable connect_timeout=30 port=" + silent, "no answer in time"},
		{"no such name", "host=no.such.host.invalid sslmode=disable", "no host no.such.host.invalid: "},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		config, err := Parse(c.conn + " user=u dbname=d")
		if err != nil {
			t.Fatal(err)
		}
		_, err = pgconn.ConnectConfig(ctx, &config.Config)
		cancel()
		if err == nil {
			t.Fatalf("%s: connected", c.name)
		}
		whole := fmt.Errorf("put 1 message in db:5432/koji: %w", Plain(err))
		if got := whole.Error(); !strings.HasPrefix(got, "put 1 message in db:5432/koji: "+c.want) ||
			strings.ContainsAny(got, "\n\t`") || strings.Count(got, "refused") > 1 {
			t.Errorf("%s: %q", c.name, got)
		}
		var connect *pgconn.ConnectError
		if !errors.As(whole, &connect) {
			t.Errorf("%s: the driver's error is lost", c.name)
		}
	}
	broke := &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE,
		Source: &net.TCPAddr{Port: 43210}, Addr: &net.TCPAddr{Port: 5432}}
	for _, c := range []struct {
		err  error
		want string
	}{{fmt.Errorf("write failed: %w", broke), "write failed: broken pipe"},
		{io.ErrUnexpectedEOF, "unexpected EOF"},
		{fmt.Errorf("timeout: %w", context.DeadlineExceeded), "no answer in time"}} {
		if got := Plain(c.err).Error(); got != c.want {
			t.Errorf("%v is said as %q, want %q", c.err, got, c.want)
		}
	}
	if Plain(nil) != nil {
		t.Error("no error has a text")
	}
}
