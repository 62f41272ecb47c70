// Command go prints Koji's messages as they arrive: a start for a consumer of your own, see
// docs/consumers.md.
//
// It connects again whenever the connection ends, acknowledges a message after handle has returned, and
// passes over one that it has seen already.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/Azure/go-amqp"
)

// handle is where your own work goes. Finish it before you return: the broker then forgets the message.
func handle(topic, id string, props map[string]any, body string) error {
	if *asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetEscapeHTML(false)
		return out.Encode(map[string]any{"message_id": id, "address": topic, "props": props, "body": body})
	}
	var event map[string]json.RawMessage // Koji's own dictionaries
	if err := json.Unmarshal([]byte(body), &event); err != nil {
		return fmt.Errorf("read the body of %s: %w", id, err)
	}
	fmt.Println(topic, props, "with", slices.Sorted(maps.Keys(event)))
	return nil
}

type consumer struct {
	seen    map[string]bool // message-ids
	order   []string        // the same, oldest first
	handled int
}

const remembered = 10000 // most repeats come within minutes of the first time

func main() {
	flag.Parse()
	for c := (&consumer{seen: make(map[string]bool)}); *count == 0 || c.handled < *count; {
		if err := c.consume(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "disconnected:", err)
			time.Sleep(time.Second)
		}
	}
}

// consume lasts as long as one connection, or until all that was asked for has come.
func (c *consumer) consume(ctx context.Context) error {
	opening, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	options, err := connOptions()
	if err != nil {
		return err
	}
	conn, err := amqp.Dial(opening, *url, options)
	if err != nil {
		return err
	}
	defer conn.Close()
	session, err := conn.NewSession(opening, nil)
	if err != nil {
		return err
	}
	receiver, err := session.NewReceiver(opening, *address, receiverOptions())
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "subscribed to", *address)
	for *count == 0 || c.handled < *count {
		m, err := receiver.Receive(ctx, nil)
		if err != nil {
			return err
		}
		if err := c.pass(m); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1) // not acknowledged: the broker gives it to the next one
		}
		if err := receiver.AcceptMessage(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// pass handles m unless it came before.
func (c *consumer) pass(m *amqp.Message) error {
	var id string
	to := *address
	if p := m.Properties; p != nil {
		id, _ = p.MessageID.(string)
		if p.To != nil { // ActiveMQ tells the topic here
			to = *p.To
		}
	}
	if c.seen[id] {
		return nil
	}
	if key, ok := m.Annotations["x-routing-key"].(string); ok { // RabbitMQ 4
		to = key
	}
	body, ok := m.Value.(string)
	if !ok {
		body = string(m.GetData())
	}
	if err := handle(to, id, m.ApplicationProperties, body); err != nil {
		return err
	}
	c.handled++
	if id != "" {
		c.seen[id] = true
		c.order = append(c.order, id)
	}
	if len(c.order) > remembered {
		delete(c.seen, c.order[0])
		c.order = c.order[1:]
	}
	return nil
}
