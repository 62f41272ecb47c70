package relay

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// checkEncodable says which part of m has no AMQP form. The driver does not check all of it: it would put a
// list into application-properties, which brokers answer by closing the connection.
func checkEncodable(m *message.Message) error {
	if !utf8.ValidString(m.Body) {
		return fmt.Errorf("encode body: not valid UTF-8")
	}
	for _, p := range m.Props {
		if err := checkProp(p); err != nil {
			return err
		}
	}
	return nil
}

// encode makes the AMQP form of m, which checkEncodable must have found to have one, for one broker.
func (o *Options) encode(m *message.Message, to dialect.Destination) *amqp.Message {
	props := make(map[string]any, len(m.Props))
	for _, p := range m.Props {
		props[p.Key] = p.Value
	}
	wire := &amqp.Message{
		// The header is always there: brokers differ in what they take a missing one to mean (RabbitMQ
		// before 4.2: durable).
		Header:                &amqp.MessageHeader{Durable: o.Durable, Priority: o.Priority, TTL: wireTTL(o.TTL)},
		Properties:            &amqp.MessageProperties{MessageID: m.ID},
		ApplicationProperties: props,
	}
	if to.Subject != "" {
		wire.Properties.Subject = &to.Subject
	}
	if to.To != "" {
		wire.Properties.To = &to.To
	}
	if !m.Created.IsZero() {
		wire.Properties.CreationTime = &m.Created
	}
	if o.BodyAsData {
		wire.Data = [][]byte{[]byte(m.Body)}
	} else {
		wire.Value = m.Body
	}
	return wire
}

// checkProp accepts the types of simple values that message.Prop names.
func checkProp(p message.Prop) error {
	if !utf8.ValidString(p.Key) {
		return fmt.Errorf("encode property %q: its name is not valid UTF-8", p.Key)
	}
	switch v := p.Value.(type) {
	case nil, bool, int64, float64:
		return nil
	case string:
		if !utf8.ValidString(v) {
			return fmt.Errorf("encode property %s: its text is not valid UTF-8", p.Key)
		}
		return nil
	case json.RawMessage:
		return fmt.Errorf("encode property %s: %s has no AMQP form", p.Key, inspect.Line(string(v), 60))
	default:
		return fmt.Errorf("encode property %s: %T has no AMQP form", p.Key, v)
	}
}

// wireTTL keeps d within the header's unsigned 32 bits of milliseconds (49 days), and above 0, which would
// mean none.
func wireTTL(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return min(max(d, time.Millisecond), math.MaxUint32*time.Millisecond)
}
