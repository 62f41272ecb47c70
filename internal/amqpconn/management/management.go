// Package management speaks to the management node of RabbitMQ 4, which receives from queues only: a
// subscriber declares one of its own by it, which goes with its connection.
package management

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/failure"
)

// node is a pair of links under one name, one for requests that look like HTTP and one for the answers.
// https://www.rabbitmq.com/docs/amqp, HTTP over AMQP 1.0.
const node = "/management"

// Begin opens a session.
type Begin func(context.Context) (*amqp.Session, error)

// TemporaryQueue declares an exclusive queue, binds it to the exchange with key and each pattern behind that,
// and gives the address to receive from.
func TemporaryQueue(ctx context.Context, begin Begin, exchange, key string,
	patterns []string) (address string, err error) {
	for again := 2; ; again-- {
		name := "koji-relay-tail-" + rand.Text()
		err := declare(ctx, begin, name, exchange, key, patterns)
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
func declare(ctx context.Context, begin Begin, name, exchange, key string, patterns []string) error {
	// one for each answer: renewing it takes time, too
	m, err := open(ctx, begin, int32(1+len(patterns)))
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

// links is the pair to the node.
type links struct {
	session   *amqp.Session
	requests  *amqp.Sender
	responses *amqp.Receiver
}

func open(ctx context.Context, begin Begin, credit int32) (*links, error) {
	session, err := begin(ctx)
	if err != nil {
		return nil, err
	}
	const pair = "koji-relay-management"
	paired := map[string]any{"paired": true}
	m := &links{session: session}
	m.responses, err = session.NewReceiver(ctx, node, &amqp.ReceiverOptions{
		Name: pair, TargetAddress: node, Properties: paired, Credit: credit,
		RequestedSenderSettleMode: amqp.SenderSettleModeSettled.Ptr(), MaxMessageSize: 1 << 20,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", node, err)
	}
	m.requests, err = session.NewSender(ctx, node, &amqp.SenderOptions{
		Name: pair, SourceAddress: node, Properties: paired,
		SettlementMode: amqp.SenderSettleModeSettled.Ptr(),
	})
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", node, err)
	}
	return m, nil
}

// request sends one request and demands a 2xx answer.
func (m *links) request(ctx context.Context, method, path string, body map[string]any) error {
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
		return fmt.Errorf("the broker answered %s: %s", status, failure.Line(fmt.Sprint(answer.Value)))
	}
	return nil
}
