package amqpconn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/inspect"
)

// RabbitMQ 4 receives from queues only. A subscriber declares one of its own, which goes with its connection,
// by way of the broker's management node: a pair of links under one name, one for requests that look like
// HTTP and one for the answers. https://www.rabbitmq.com/docs/amqp, HTTP over AMQP 1.0.
const managementNode = "/management"

// temporaryQueue declares an exclusive queue, binds it, and gives the address to receive from.
func (c *Conn) temporaryQueue(ctx context.Context, patterns []string) (string, error) {
	prefix := c.opts.TopicPrefix
	exchange, key, ok := dialect.ExchangeOf(prefix)
	if !ok {
		return "", dialect.RabbitPrefixError(prefix)
	}
	for again := 2; ; again-- {
		name := "koji-relay-tail-" + rand.Text()
		err := declare(ctx, c.driver, name, exchange, key, patterns)
		// The driver grants credit for the answers in its own time, and the broker ends the session of a
		// request that comes before (upstream 7).
		var ended *amqp.SessionError
		if errors.As(err, &ended) && again > 0 {
			continue
		}
		return "/queues/" + dialect.Escape(name), err
	}
}

// declare makes the queue with its bindings in a session of its own.
func declare(ctx context.Context, conn *amqp.Conn, name, exchange, key string, patterns []string) error {
	// one for each answer: renewing it takes time, too
	m, err := openManagement(ctx, conn, int32(1+len(patterns)))
	if err != nil {
		return err
	}
	defer func() { _ = m.session.Close(ctx) }()
	if err := m.request(ctx, "PUT", "/queues/"+dialect.Escape(name), map[string]any{
		"durable": false, "exclusive": true, "auto_delete": false, "arguments": map[string]any{},
	}); err != nil {
		return fmt.Errorf("declare a queue: %w", err)
	}
	for _, pattern := range patterns {
		if err := m.request(ctx, "POST", "/bindings", map[string]any{
			"source": exchange, "destination_queue": name, "binding_key": key + "." + pattern,
			"arguments": map[string]any{},
		}); err != nil {
			return fmt.Errorf("bind a queue to exchange %s: %w", exchange, err)
		}
	}
	return nil
}

// management is the pair of links to the node.
type management struct {
	session   *amqp.Session
	requests  *amqp.Sender
	responses *amqp.Receiver
}

func openManagement(ctx context.Context, conn *amqp.Conn, credit int32) (*management, error) {
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	const pair = "koji-relay-management"
	paired := map[string]any{"paired": true}
	m := &management{session: session}
	m.responses, err = session.NewReceiver(ctx, managementNode, &amqp.ReceiverOptions{
		Name: pair, TargetAddress: managementNode, Properties: paired, Credit: credit,
		RequestedSenderSettleMode: amqp.SenderSettleModeSettled.Ptr(), MaxMessageSize: 1 << 20,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", managementNode, err)
	}
	m.requests, err = session.NewSender(ctx, managementNode, &amqp.SenderOptions{
		Name: pair, SourceAddress: managementNode, Properties: paired,
		SettlementMode: amqp.SenderSettleModeSettled.Ptr(),
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", managementNode, err)
	}
	return m, nil
}

// request sends one request and demands a 2xx answer.
func (m *management) request(ctx context.Context, method, path string, body map[string]any) error {
	replyTo := "$me"
	err := m.requests.Send(ctx, &amqp.Message{
		Properties: &amqp.MessageProperties{MessageID: rand.Text(), To: &path, Subject: &method, ReplyTo: &replyTo},
		Value:      body,
	}, nil)
	if err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	answer, err := m.responses.Receive(ctx, nil)
	if err != nil {
		return fmt.Errorf("receive answer: %w", err)
	}
	if answer.Properties == nil || answer.Properties.Subject == nil {
		return fmt.Errorf("the answer has no status")
	}
	if status := *answer.Properties.Subject; len(status) != 3 || status[0] != '2' {
		return fmt.Errorf("the broker answered %s: %s", status, inspect.Line(fmt.Sprint(answer.Value), maxText))
	}
	return nil
}
