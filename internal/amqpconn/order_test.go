package amqpconn

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
)

func TestPropertiesAreSentInTheirOrder(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	c, err := connect(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenSender(t.Context(), "/topic/koji.build.tag")
	if err != nil {
		t.Fatal(err)
	}
	keys := []string{"type", "tag", "name", "version", "release", "user", "empty", "number"}
	for i := range 50 {
		props := map[string]any{}
		for _, key := range keys {
			props[key] = key + " of it"
		}
		props["empty"], props["number"], props["user"] = nil, int64(i), strings.Repeat("x", 300)
		receipt, err := s.Send(&amqp.Message{
			Header: &amqp.MessageHeader{Durable: true}, Properties: &amqp.MessageProperties{MessageID: "id"},
			ApplicationProperties: props, Value: "body",
		}, keys, i%2 == 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := receipt.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range b.Received() {
		at := 0
		for _, key := range keys {
			next := bytes.Index(r.Payload, append([]byte{0xa1, byte(len(key))}, key...))
			if next <= at {
				t.Fatalf("%s stands at %d, the one before at %d", key, next, at)
			}
			at = next
		}
	}
	if n := reflect.ValueOf(c.guard).Elem().FieldByName("awaited").Len(); n != 0 {
		t.Errorf("%d deliveries are awaited still", n)
	}
}
