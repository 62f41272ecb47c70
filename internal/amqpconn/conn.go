// Package amqpconn is one connection to one AMQP 1.0 broker: TCP, TLS, SASL, the open frame, the dialect,
// sessions and links. It promises that every step ends in bounded time and that an error says which step it
// was and what to do. It never prints a credential. What a message says and what becomes of it is its users'
// business: sending, `tail` and the probe of `check --connect`.
//
// What the AMQP driver needs to be kept from is in driver.go, and in docs/upstream.md for its authors.
package amqpconn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/amqpconn/guard"
	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/internal/amqpconn/tlsclient"
)

// sampleTopic is attached to when a connection opens, so that a prefix or a permission that is wrong for
// every message is found then and not by messages.
const sampleTopic = "build.tag"

// Conn is one connection. It is made by Dial or Listen, and never reopened. Its exported fields are set by
// then and do not change; after an error they tell how far it got.
type Conn struct {
	Peer      dialect.Peer
	Dialect   *dialect.Dialect
	Mechanism string   // of SASL
	Offered   []string // SASL mechanisms
	Remote    string   // the peer's IP address and port
	Target    string   // address of the sample topic
	MaxSize   uint64   // of a message, on the sample link; 0 = no limit

	opts     *Options
	endpoint endpoint.Endpoint
	log      *slog.Logger
	stage    string
	tls      *tlsclient.Session // nil without TLS
	guard    *guard.Guard
	driver   *amqp.Conn
	sessions sessions
	tags     atomic.Uint64  // of deliveries
	wg       sync.WaitGroup // goroutines that close links and sessions

	mu      sync.Mutex // guards what follows
	cause   error      // why we dropped it; nil = we did not
	closing bool
}

// newConn prepares a connection. Nothing is opened.
func newConn(o *Options, e endpoint.Endpoint, log *slog.Logger) *Conn {
	return &Conn{opts: o, endpoint: e, log: log, sessions: sessions{freed: make(chan struct{}, 1)}}
}

// Dial connects to e, logs in and makes sure that the broker takes messages for topics. ctx and
// ConnectTimeout bound all of it; after it the connection does not depend on ctx. An error is a *DialError,
// and then nothing is open.
func Dial(ctx context.Context, o *Options, e endpoint.Endpoint, log *slog.Logger) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := newConn(o, e, log)
	if err := c.open(ctx); err != nil {
		return nil, c.dialFailed(ctx, err)
	}
	// The driver heeds a context only where it waits for the peer, not where it waits to write.
	stop := context.AfterFunc(ctx, func() { _ = c.guard.Close() })
	err := c.greet(ctx)
	stop()
	if err != nil {
		c.Close()
		return nil, c.dialFailed(ctx, err)
	}
	return c, nil
}

// open does TCP, TLS, SASL and the AMQP open frame, and chooses the dialect. After an error nothing is left
// open.
func (c *Conn) open(ctx context.Context) (err error) {
	c.stage = stageLogin
	who := sasl.Login{Policy: c.opts.SASL}
	if who.User, who.Password, err = c.endpoint.Credentials(c.opts.UserFile, c.opts.PasswordFile); err != nil {
		return err
	}
	c.stage = stageTCP
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.endpoint.Address)
	if err != nil {
		return fmt.Errorf("connect: %w", withoutAddress(err))
	}
	c.Remote = nc.RemoteAddr().String()
	defer func() {
		if err != nil {
			_ = nc.Close()
		}
	}()
	if c.endpoint.TLS {
		c.stage = stageTLS
		c.tls, err = tlsclient.Handshake(ctx, nc, c.endpoint.Host, tlsclient.Options{
			Cert: c.opts.Cert, Key: c.opts.Key, CACert: c.opts.CACert, Legacy: c.opts.LegacyTLS,
		})
		if err != nil {
			return err
		}
		nc, who.TLS, who.Certificate = c.tls.Conn, true, c.tls.HasClient()
	}
	c.stage = stageSASL
	if c.Mechanism, c.Offered, err = who.Negotiate(ctx, nc); err != nil {
		return tlsclient.ExplainLate(err)
	}
	c.stage = stageOpen
	c.guard = guard.New(nc)
	c.guard.WriteOn(c.spawn)
	c.driver, err = amqp.NewConn(ctx, c.guard, &amqp.ConnOptions{
		MaxFrameSize: guard.MaxFrame,
		// Random, since ActiveMQ refuses a second connection under one name.
		ContainerID:  "koji-relay-" + rand.Text()[:16],
		HostName:     c.hostName(),
		IdleTimeout:  c.opts.IdleTimeout,
		WriteTimeout: c.opts.SendTimeout,
		Properties:   map[string]any{"product": "koji-relay"},
	})
	if err != nil {
		if refused := c.guard.Refused(); refused != nil {
			return fmt.Errorf("open AMQP connection: %w", refused)
		}
		if read := c.guard.ReadError(); read != nil && failure.HungUp(read) { // the driver's error does not tell
			err = errors.Join(err, read)
		}
		return c.hostRefused(explainOpen(err), err)
	}
	c.Peer = dialect.NewPeer(c.driver.Properties())
	c.Peer.Product, c.Peer.Version = failure.Name(c.Peer.Product), failure.Name(c.Peer.Version)
	c.stage = stagePrefix
	if c.Dialect, err = dialect.Choose(c.opts.Dialect, c.opts.TopicPrefix, c.Peer); err != nil {
		c.Close()
		return err
	}
	c.stage = stageAttach
	return nil
}

// greet tries the sample topic.
func (c *Conn) greet(ctx context.Context) error {
	to, err := c.Destination(sampleTopic)
	if err != nil {
		return err
	}
	c.Target = to.Address
	if c.MaxSize, err = c.greetSessions(ctx, c.Target); err != nil {
		return err
	}
	return nil
}

// Destination says where a message to the topic goes.
func (c *Conn) Destination(topic string) (dialect.Destination, error) {
	return c.Dialect.Destination(c.opts.TopicPrefix, topic)
}

// CertExpires tells when the certificates in use end; zero without.
func (c *Conn) CertExpires() (server, client time.Time) { return c.tls.Expires() }

// withoutAddress strips "dial tcp 10.0.0.1:5672:", which the log line has already said, off a dial error.
func withoutAddress(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	var call *os.SyscallError // names "connect" once more
	if errors.As(err, &call) {
		return call.Err
	}
	return err
}

// spawn runs f, which Close waits for, unless the connection is closing already: then it gives false.
func (c *Conn) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.wg.Go(f)
	}
	return !c.closing
}

// Done is closed when the connection is over.
func (c *Conn) Done() <-chan struct{} { return c.driver.Done() }

// Shut reports whether the broker says that it takes no messages now: RabbitMQ 4 with an alarm does so. Other
// brokers may do it for a moment, when they have much to do.
func (c *Conn) Shut() bool { return c.guard.Shut() }

// Windows receives when Shut may have changed.
func (c *Conn) Windows() <-chan struct{} { return c.guard.Windows() }

// Drop ends the connection for a reason of ours. What is unsettled is not blamed for it. It does not block.
func (c *Conn) Drop(reason string) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = DropError{reason}
	}
	c.mu.Unlock()
	_ = c.guard.Close() // makes the driver's reader end, and with it everything else
}

// Dropped reports whether Drop was called.
func (c *Conn) Dropped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause != nil
}

// errHungUp is one cause whichever notices it first: a read sees an end or a reset, a write a reset or a
// broken pipe.
var errHungUp = errors.New("the broker hung up")

// Cause says why the connection is over. It must be.
func (c *Conn) Cause() error {
	c.mu.Lock()
	cause := c.cause
	c.mu.Unlock()
	if cause != nil {
		return cause
	}
	err := c.driver.Err()
	var remote *amqp.Error
	if errors.As(err, &remote) {
		return fmt.Errorf("closed by the broker: %s", failure.Condition(remote))
	}
	if refused := c.guard.Refused(); refused != nil {
		return refused
	}
	if err := c.guard.WriteError(); err != nil && errors.Is(c.guard.ReadError(), net.ErrClosed) {
		if failure.HungUp(err) {
			return errHungUp
		}
		return err // the guard closed the socket for it
	}
	if read := c.guard.ReadError(); errors.Is(read, os.ErrDeadlineExceeded) {
		return DropError{fmt.Sprintf("nothing heard for %v (idle_timeout)", c.opts.IdleTimeout)}
	} else if failure.HungUp(read) {
		return errHungUp
	}
	if err == nil {
		return errors.New("closed by the broker")
	}
	return err
}
