package amqpconn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/management"
)

// Receiver is a link that receives what matches Pattern.
type Receiver struct {
	Pattern string // several, with spaces between, where one queue is bound to all
	driver  *amqp.Receiver
}

// Receive blocks until a message comes or ctx ends.
func (r *Receiver) Receive(ctx context.Context) (*amqp.Message, error) {
	return r.driver.Receive(ctx, nil)
}

// Accept tells the broker that m needs not be sent again.
func (r *Receiver) Accept(ctx context.Context, m *amqp.Message) error {
	return r.driver.AcceptMessage(ctx, m)
}

// Listen connects to e, logs in, and opens links for the patterns of topics, in which * is one word and # any
// number of them. credit is how many messages the broker may have on their way to us. ctx and ConnectTimeout
// bound all of it; after it the connection does not depend on ctx. After an error nothing is open.
func Listen(ctx context.Context, o *Options, e endpoint.Endpoint, log *slog.Logger, patterns []string,
	credit int32) (*Conn, []*Receiver, error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := newConn(o, e, log)
	if err := c.open(ctx); err != nil {
		return nil, nil, c.inTime(ctx, err)
	}
	// The driver's Send does not look at its context while the broker's session window is shut (upstream 17).
	stop := context.AfterFunc(ctx, func() { c.Drop("not subscribed in time") })
	receivers, err := c.subscribe(ctx, patterns, credit)
	if !stop() && err == nil {
		err = c.inTime(ctx, context.Cause(ctx))
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, receivers, nil
}

// subscribe opens the links of Listen.
func (c *Conn) subscribe(ctx context.Context, patterns []string, credit int32) ([]*Receiver, error) {
	options := &amqp.ReceiverOptions{
		Credit: credit, SourceCapabilities: c.Dialect.Capabilities, MaxMessageSize: maxReceived,
	}
	if c.Dialect.Source == nil {
		source, err := c.temporaryQueue(ctx, patterns)
		if err != nil {
			return nil, c.inTime(ctx, err)
		}
		r, err := c.receiver(ctx, source, options)
		if err != nil {
			return nil, c.inTime(ctx, fmt.Errorf("attach to %s: %w", source, err))
		}
		return []*Receiver{{strings.Join(patterns, " "), r}}, nil
	}
	var receivers []*Receiver
	for _, pattern := range patterns {
		source, err := c.Dialect.Source(c.opts.TopicPrefix, pattern)
		if err != nil {
			return nil, err
		}
		r, err := c.receiver(ctx, source, options)
		switch {
		case errors.Is(err, ErrNoPlace):
			return nil, fmt.Errorf("%w than %d: give fewer patterns", err, len(receivers))
		case err != nil:
			return nil, c.inTime(ctx, fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's "+
				"permission to read", source, err))
		}
		receivers = append(receivers, &Receiver{pattern, r})
	}
	return receivers, nil
}

// temporaryQueue makes a queue to receive from, and gives its address.
func (c *Conn) temporaryQueue(ctx context.Context, patterns []string) (string, error) {
	exchange, key, ok := dialect.ExchangeOf(c.opts.TopicPrefix)
	if !ok {
		return "", dialect.RabbitPrefixError(c.opts.TopicPrefix)
	}
	begin := func(ctx context.Context) (*amqp.Session, error) {
		s, err := c.begin(ctx)
		if err != nil {
			return nil, err
		}
		return s.driver, nil
	}
	return management.TemporaryQueue(ctx, begin, exchange, key, patterns)
}

// maxReceived is the largest message that a receiver takes: the driver keeps all of it (upstream 11).
const maxReceived = 128 << 20

// receiver opens one link in a session that has room for it.
func (c *Conn) receiver(ctx context.Context, source string, o *amqp.ReceiverOptions) (*amqp.Receiver, error) {
	session, err := c.place(ctx)
	if err != nil {
		return nil, err
	}
	return session.driver.NewReceiver(ctx, source, o)
}
