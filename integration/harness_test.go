package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// receiversSeeAll: the receivers are what every other case believes, so first a plain sender sends the golden
// messages.
func receiversSeeAll(t *testing.T, b brokerKind, s *server) {
	g := loadGolden(t, "extra500")
	part := newPart()
	sources := b.sources(part, g.topics())
	amqpBox := subscribe(t, s, b, sources...)
	protonBox := subscribeProton(t, s, b, sources...)
	sendPlainly(t, s, b, part, g)
	for _, box := range []*inbox{amqpBox, protonBox} {
		box.waitFor(t, 30*time.Second, g.ids()...)
		g.compare(t, b, part, box)
	}
}

// sendPlainly sends all messages of g with go-amqp to the addresses that subscribers use.
func sendPlainly(t *testing.T, s *server, b brokerKind, part string, g golden) {
	t.Helper()
	ctx := within(t, time.Minute)
	conn, err := s.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	senders := make(map[string]*amqp.Sender)
	for _, m := range g.messages {
		target := fmt.Sprintf(b.source, part, m.Address)
		if senders[target] == nil {
			if senders[target], err = session.NewSender(ctx, target,
				&amqp.SenderOptions{TargetCapabilities: b.capabilities}); err != nil {
				t.Fatal(err)
			}
		}
		message := &amqp.Message{
			Header:                &amqp.MessageHeader{Priority: 4},
			Properties:            &amqp.MessageProperties{MessageID: m.id()},
			ApplicationProperties: make(map[string]any),
			Value:                 m.Body,
		}
		for _, p := range m.Props {
			message.ApplicationProperties[p.Key] = goValue(t, p)
		}
		if err := senders[target].Send(ctx, message, nil); err != nil {
			t.Fatalf("send to %s: %v", target, err)
		}
	}
}

func goValue(t *testing.T, p prop) any {
	t.Helper()
	var err error
	var value any
	switch p.Type {
	case "null":
	case "boolean":
		var v bool
		err = json.Unmarshal(p.Value, &v)
		value = v
	case "long":
		var v int64
		err = json.Unmarshal(p.Value, &v)
		value = v
	case "double":
		var v float64
		err = json.Unmarshal(p.Value, &v)
		value = v
	case "string":
		var v string
		err = json.Unmarshal(p.Value, &v)
		value = v
	default:
		t.Fatalf("golden property %s has the unknown type %s", p.Key, p.Type)
	}
	if err != nil {
		t.Fatalf("golden property %s: %v", p.Key, err)
	}
	return value
}
