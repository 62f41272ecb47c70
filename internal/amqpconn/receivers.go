package amqpconn

import (
	"context"
	"fmt"
	"strings"

	"github.com/Azure/go-amqp"
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

// Subscribe opens links for the patterns of topics, in which * is one word and # any number of them. credit is how many
// messages the broker may have on their way to us. ctx bounds it.
func (c *Conn) Subscribe(ctx context.Context, patterns []string, credit int32) ([]*Receiver, error) {
	session, err := c.driver.NewSession(ctx, nil)
	if err != nil {
		return nil, c.InTime(ctx, fmt.Errorf("begin session: %w", err))
	}
	options := &amqp.ReceiverOptions{Credit: credit, SourceCapabilities: c.Dialect.Capabilities}
	if c.Dialect.Source == nil {
		source, err := c.temporaryQueue(ctx, patterns)
		if err != nil {
			return nil, c.InTime(ctx, err)
		}
		r, err := session.NewReceiver(ctx, source, options)
		if err != nil {
			return nil, c.InTime(ctx, fmt.Errorf("attach to %s: %w", source, err))
		}
		return []*Receiver{{strings.Join(patterns, " "), r}}, nil
	}
	var receivers []*Receiver
	for _, pattern := range patterns {
		source, err := c.Dialect.Source(c.opts.TopicPrefix, pattern)
		if err != nil {
			return nil, err
		}
		r, err := session.NewReceiver(ctx, source, options)
		if err != nil {
			return nil, c.InTime(ctx, fmt.Errorf("attach to %s: %w; check topic_prefix, dialect and the user's "+
				"permission to read", source, err))
		}
		receivers = append(receivers, &Receiver{pattern, r})
	}
	return receivers, nil
}
