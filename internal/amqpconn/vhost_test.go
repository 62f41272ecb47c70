package amqpconn

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/devbroker"
)

func TestOpenFrameNamesTheVirtualHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, option, want string }{
		{"", "", "127.0.0.1"},
		{"/koji", "", "vhost:koji"},
		{"", "koji", "vhost:koji"},
		{"/one", "koji", "vhost:one"},
		{"/a%2Fb", "", "vhost:a/b"},
		{"/%2F", "", "vhost:/"},
		{"/", "koji", "vhost:koji"},
	} {
		b, err := devbroker.New(devbroker.Options{Product: "RabbitMQ", Version: "4.0.5"})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		o := testOptions()
		o.VirtualHost = tt.option
		e, err := endpoint.Parse(b.URL() + tt.path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(t.Context(), &o, e, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if all := b.Connections(); len(all) != 1 || all[0].Hostname != tt.want {
			t.Errorf("path %q, virtual_host %q: %+v, want %s", tt.path, tt.option, all, tt.want)
		}
	}
}

// What RabbitMQ 3.10 and 4.0 were seen to do.
func TestRefusedVirtualHostIsToldApart(t *testing.T) {
	t.Parallel()
	rabbit := dialect.Peer{Product: "RabbitMQ", Version: "3.10.8"}
	denied := &amqp.Error{Condition: amqp.ErrCondUnauthorizedAccess,
		Description: "Access for user 'koji' was refused"}
	for name, tt := range map[string]struct {
		host string
		peer dialect.Peer
		err  error
		want string // empty: the error stays as it is
	}{
		"version 3 ends the session": {"two", rabbit, fmt.Errorf("begin session: %w", denied),
			`refused the virtual host "two"`},
		"version 3, its default": {"", rabbit, denied, "refused its default virtual host"},
		"version 4 resets the connection": {"two", dialect.Peer{}, fmt.Errorf("open: %w", io.EOF),
			`refused the virtual host "two"`},
		"another broker denies":        {"", dialect.Peer{Product: "ActiveMQ"}, denied, ""},
		"another condition":            {"two", rabbit, &amqp.Error{Condition: amqp.ErrCondConnectionForced}, ""},
		"something that is no refusal": {"two", rabbit, errors.New("some error"), ""},
	} {
		c := newConn(&Options{VirtualHost: tt.host}, endpoint.Endpoint{}, slog.New(slog.DiscardHandler))
		c.Peer = tt.peer
		got := c.hostRefused(tt.err, tt.err)
		var refused hostError
		if errors.As(got, &refused) != (tt.want != "") || !strings.Contains(got.Error(), tt.want) {
			t.Errorf("%s: %v", name, got)
		}
		if tt.want == "" && got != tt.err {
			t.Errorf("%s: changed to %v", name, got)
		}
	}
}
