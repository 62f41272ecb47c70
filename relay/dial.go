package relay

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/Azure/go-amqp"
)

// The stages of a connection, in order, as Probe reports them.
const (
	stageLogin  = "read credentials"
	stageTCP    = "connect"
	stageTLS    = "set up TLS"
	stageSASL   = "log in"
	stageOpen   = "open AMQP connection"
	stagePrefix = "choose dialect"
	stageAttach = "attach"
)

func newConn(o *Options, e endpoint, log *slog.Logger, hooks connHooks) *conn {
	return &conn{
		opts: o, name: e.name, log: log, hooks: hooks, born: time.Now(),
		attach:   make(chan attachRequest),
		links:    map[string]*link{},
		refusals: map[string]refusal{},
	}
}

// dial connects to e, logs in and makes sure that the broker takes messages for topics. ctx and ConnectTimeout
// bound all of it; after it the connection does not depend on ctx.
func dial(ctx context.Context, o *Options, e endpoint, log *slog.Logger, hooks connHooks) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := newConn(o, e, log, hooks)
	if err := c.open(ctx, e); err != nil {
		return nil, c.dialFailed(ctx, err)
	}
	if err := c.greet(ctx); err != nil {
		c.hangUp()
		return nil, c.dialFailed(ctx, err)
	}
	return c, nil
}

// timeOver reports whether ctx has come to its deadline. A socket with the same deadline may notice before ctx does.
func timeOver(ctx context.Context) bool {
	end, limited := ctx.Deadline()
	return limited && !time.Now().Before(end)
}

// inTime says of an error whether it is that the time was over.
func (c *conn) inTime(ctx context.Context, err error) error {
	if timeOver(ctx) && !isAuth(err) {
		return fmt.Errorf("%s: no answer within %v (connect_timeout)", c.stage, c.opts.ConnectTimeout)
	}
	return err
}

// open does TCP, TLS, SASL and the AMQP open frame. After an error nothing is left open.
func (c *conn) open(ctx context.Context, e endpoint) (err error) {
	c.stage = stageLogin
	who := login{policy: c.opts.SASL}
	if who.user, who.password, err = c.opts.credentials(e); err != nil {
		return err
	}
	c.stage = stageTCP
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.name)
	if err != nil {
		return fmt.Errorf("connect: %w", withoutAddress(err))
	}
	c.remote = nc.RemoteAddr().String()
	defer func() {
		if err != nil {
			_ = nc.Close()
		}
	}()
	if e.tls {
		c.stage = stageTLS
		if nc, err = c.secure(ctx, nc, e.host); err != nil {
			return err
		}
		who.certificate = c.client != nil
	}
	c.stage = stageSASL
	if err := c.logIn(ctx, nc, who); err != nil {
		return err
	}
	c.stage = stageOpen
	c.tap = &tap{Conn: nc}
	c.amqp, err = amqp.NewConn(ctx, c.tap, &amqp.ConnOptions{
		// Random, since ActiveMQ refuses a second connection under one name.
		ContainerID:  "koji-relay-" + rand.Text()[:16],
		HostName:     e.host,
		IdleTimeout:  c.opts.IdleTimeout,
		WriteTimeout: c.opts.SendTimeout,
		Properties:   map[string]any{"product": "koji-relay"},
	})
	if err != nil {
		return fmt.Errorf("open AMQP connection: %w", err)
	}
	c.peer = newPeer(c.amqp.Properties())
	return nil
}

// secure puts TLS around nc. nc is returned even with an error.
func (c *conn) secure(ctx context.Context, nc net.Conn, host string) (net.Conn, error) {
	cfg, client, err := c.opts.tlsConfig(host)
	c.client = client
	if err != nil {
		return nc, err
	}
	secured := tls.Client(nc, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nc, fmt.Errorf("set up TLS: %w", err)
	}
	state := secured.ConnectionState()
	c.tls = &state
	return secured, nil
}

// certExpires tells when the certificates in use end.
func (c *conn) certExpires() (server, client time.Time) {
	if c.tls != nil && len(c.tls.PeerCertificates) > 0 {
		server = c.tls.PeerCertificates[0].NotAfter
	}
	if c.client != nil && c.client.Leaf != nil {
		client = c.client.Leaf.NotAfter
	}
	return server, client
}

// logIn runs the SASL layer, bounded by ctx.
func (c *conn) logIn(ctx context.Context, nc net.Conn, who login) (err error) {
	deadline, _ := ctx.Deadline()
	_ = nc.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	c.mechanism, c.offered, err = who.negotiate(nc)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	_ = nc.SetDeadline(time.Time{})
	return err
}

func isAuth(err error) bool {
	var auth *AuthError
	return errors.As(err, &auth)
}

// withoutAddress strips "dial tcp 10.0.0.1:5672:", which the log line has already said, off a dial error.
func withoutAddress(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// greet chooses the dialect, begins the main session and tries the sample address.
func (c *conn) greet(ctx context.Context) (err error) {
	c.stage = stagePrefix
	if c.dialect, err = chooseDialect(c.opts.Dialect, c.opts.TopicPrefix, c.peer); err != nil {
		return err
	}
	if c.target, err = c.dialect.target(c.opts.TopicPrefix, sampleAddress); err != nil {
		return err
	}
	// One at a time only where it must be: a link that waits for credit keeps its turn.
	c.turns = make(chan struct{}, maxLinks)
	if c.peer.settlesRanges() {
		c.turns = make(chan struct{}, 1)
	}
	c.stage = stageAttach
	if c.main, err = c.amqp.NewSession(ctx, nil); err != nil {
		return fmt.Errorf("begin session: %w", err)
	}
	if c.maxSize, err = c.try(ctx, c.target); err != nil {
		return fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's permissions", c.target, err)
	}
	return nil
}

// tap remembers how reading ended, which the driver's error does not let one ask.
type tap struct {
	net.Conn
	mu  sync.Mutex // guards err
	err error
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if err != nil {
		t.mu.Lock()
		if t.err == nil {
			t.err = err
		}
		t.mu.Unlock()
	}
	return n, err
}

func (t *tap) readError() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
