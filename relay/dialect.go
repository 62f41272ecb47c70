package relay

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/Azure/go-amqp"
)

// Values of Options.Dialect.
const (
	DialectAuto     = "auto"      // by what the broker says of itself when the connection opens
	DialectLiteral  = "literal"   // topic_prefix, a dot, the topic: as protonmsg
	DialectRabbitMQ = "rabbitmq4" // RabbitMQ 4: /exchanges/EXCHANGE/KEY, percent-encoded
	DialectArtemis  = "artemis"   // no topic://, and the target capability "topic" instead
)

// Dialects lists the values that Options.Dialect may have.
func Dialects() []string {
	return []string{DialectAuto, DialectLiteral, DialectRabbitMQ, DialectArtemis}
}

// Target gives the address that a message to topic address goes to, as far as it can be known without asking a
// broker: with DialectAuto a prefix counts as protonmsg's. It is what `translate` prints.
func Target(prefix, dialect, address string) (string, error) {
	d, err := chooseDialect(dialect, prefix, peer{})
	if err != nil {
		return "", err
	}
	return d.target(prefix, address)
}

// peer is what a broker says of itself in its open frame.
type peer struct {
	product, version string
	topicPrefix      string // ActiveMQ and Solace: what topics begin with
}

func newPeer(properties map[string]any) peer {
	text := func(key string) string { s, _ := properties[key].(string); return s }
	return peer{product: text("product"), version: text("version"), topicPrefix: text("topic-prefix")}
}

func (p peer) rabbitmq() bool { return p.product == "RabbitMQ" }

// settlesRanges reports whether the broker settles all delivery-ids between two that it publishes one after the other,
// as the plugin of RabbitMQ 3 does. If frames of two messages alternate in a session, the ranges are not those of the
// messages: some are never settled, and some are accepted before their last frame has come.
func (p peer) settlesRanges() bool { return p.rabbitmq() && p.major() < 4 }

// major is the first number of the version, 0 if there is none.
func (p peer) major() int {
	n, _, _ := strings.Cut(p.version, ".")
	v, _ := strconv.Atoi(n)
	return v
}

// dialect is how one kind of broker wants to be told the topic.
type dialect struct {
	name         string
	automatic    func(prefix string, p peer) bool // does auto choose it? nil: only by name
	capabilities []string                         // of the link's target
	target       func(prefix, address string) (string, error)
	source       func(prefix, pattern string) (string, error) // for receivers
	// queue, where a broker receives from queues only, makes one for the patterns and gives its address.
	queue func(ctx context.Context, c *amqp.Conn, prefix string, patterns []string) (string, error)
}

// dialects: auto takes the first row that fits, so the last one fits all. A new broker is a new row.
var dialects = []dialect{
	{
		name:      DialectRabbitMQ,
		automatic: func(prefix string, p peer) bool { return p.rabbitmq() && p.major() >= 4 },
		target:    exchangesTarget,
		queue:     temporaryQueue,
	},
	{
		name:      "rabbitmq-v1", // the AMQP 1.0 plugin of RabbitMQ 3
		automatic: func(prefix string, p peer) bool { return p.rabbitmq() },
		target:    topicTarget,
		source:    topicSource,
	},
	{
		name: "artemis-literal", // as protonmsg, but never as a queue
		automatic: func(prefix string, p peer) bool {
			return p.product == "apache-activemq-artemis"
		},
		capabilities: []string{"topic"},
		target:       activemqTarget,
		source:       activemqTarget, // its wildcards are * and #
	},
	{
		name:      "activemq",
		automatic: func(prefix string, p peer) bool { return p.product == "ActiveMQ" || p.topicPrefix == "topic://" },
		target:    activemqTarget,
		source:    activemqSource,
	},
	{
		// Nothing is known of the broker, but protonmsg cannot have used this prefix.
		name:      DialectRabbitMQ,
		automatic: func(prefix string, _ peer) bool { return strings.HasPrefix(prefix, "/exchanges/") },
		target:    exchangesTarget,
		queue:     temporaryQueue,
	},
	{
		name:      DialectLiteral,
		automatic: func(string, peer) bool { return true },
		target:    literalTarget,
		source:    literalSource,
	},
	{
		name:         DialectArtemis,
		capabilities: []string{"topic"},
		target: func(prefix, address string) (string, error) {
			return strings.TrimPrefix(prefix, "topic://") + "." + address, nil
		},
		source: func(prefix, pattern string) (string, error) {
			return strings.TrimPrefix(prefix, "topic://") + "." + pattern, nil // its wildcards are * and #
		},
	},
}

// chooseDialect finds the row by name, or for DialectAuto by what is known of the broker, and makes sure that
// it can express the prefix.
func chooseDialect(name, prefix string, p peer) (*dialect, error) {
	for i := range dialects {
		d := &dialects[i]
		if name == DialectAuto && d.automatic != nil && d.automatic(prefix, p) || name == d.name {
			if _, err := d.target(prefix, "build.tag"); err != nil {
				return nil, err
			}
			return d, nil
		}
	}
	return nil, fmt.Errorf("dialect = %q is not one of %q", name, Dialects())
}

// PrefixError is a topic_prefix that the broker at hand cannot serve.
type PrefixError struct {
	Prefix, Broker, Remedy string
}

func (e *PrefixError) Error() string {
	return fmt.Sprintf("topic_prefix = %s means nothing to %s: %s", e.Prefix, e.Broker, e.Remedy)
}

// literalTarget is protonmsg's rule.
func literalTarget(prefix, address string) (string, error) {
	return literalPrefix(prefix) + "." + address, nil
}

func literalPrefix(prefix string) string {
	if strings.HasPrefix(prefix, "topic://") || strings.HasPrefix(prefix, "/topic/") {
		return prefix
	}
	return "topic://" + prefix
}

// activemqTarget is protonmsg's rule, for brokers to which /topic/ is a part of a queue's name.
func activemqTarget(prefix, address string) (string, error) {
	if strings.HasPrefix(prefix, "/") {
		bare := prefix[strings.LastIndex(prefix, "/")+1:]
		return "", &PrefixError{prefix, "ActiveMQ", "it is RabbitMQ's form; set topic_prefix = topic://" + bare}
	}
	return literalTarget(prefix, address)
}

// topicTarget is for RabbitMQ 3: /topic/KEY for the exchange amq.topic, /exchange/NAME/KEY for any other.
func topicTarget(prefix, address string) (string, error) {
	if exchange, key, ok := exchangeOf(prefix); ok {
		if strings.HasPrefix(prefix, "/topic/") {
			return prefix + "." + address, nil
		}
		return "/exchange/" + exchange + "/" + key + "." + address, nil
	}
	return "", rabbitPrefixError(prefix)
}

// exchangesTarget is for RabbitMQ 4, address version 2.
// https://www.rabbitmq.com/docs/amqp#target-address-v2
func exchangesTarget(prefix, address string) (string, error) {
	exchange, key, ok := exchangeOf(prefix)
	if !ok {
		return "", rabbitPrefixError(prefix)
	}
	if strings.HasPrefix(prefix, "/exchanges/") {
		return prefix + "." + escape(address), nil // the administrator wrote it in the encoded form
	}
	return "/exchanges/" + escape(exchange) + "/" + escape(key+"."+address), nil
}

// exchangeOf reads a prefix in any of RabbitMQ's forms.
func exchangeOf(prefix string) (exchange, key string, ok bool) {
	if key, ok = strings.CutPrefix(prefix, "/topic/"); ok {
		return "amq.topic", key, key != ""
	}
	for _, form := range []string{"/exchanges/", "/exchange/"} {
		if rest, found := strings.CutPrefix(prefix, form); found {
			exchange, key, ok = strings.Cut(rest, "/")
			return exchange, key, ok && exchange != "" && key != "" && !strings.Contains(key, "/")
		}
	}
	return "", "", false
}

func rabbitPrefixError(prefix string) error {
	bare := strings.TrimPrefix(prefix, "topic://")
	if strings.HasPrefix(bare, "/") {
		return &PrefixError{prefix, "RabbitMQ", "write /topic/NAME, or /exchanges/EXCHANGE/NAME for an exchange " +
			"other than amq.topic"}
	}
	return &PrefixError{prefix, "RabbitMQ", "it is ActiveMQ's form; set topic_prefix = /topic/" + bare}
}

// escape percent-encodes all but RFC 3986's unreserved characters; url.PathEscape leaves more, which RabbitMQ
// then refuses.
func escape(text string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(text) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// The source functions turn a pattern of topics, in which * is one word and # any number of them, into what a
// receiver attaches to.

func literalSource(prefix, pattern string) (string, error) {
	if strings.HasPrefix(prefix, "/topic/") {
		return topicSource(prefix, pattern)
	}
	return activemqSource(prefix, pattern)
}

func activemqSource(prefix, pattern string) (string, error) {
	return activemqTarget(prefix, strings.ReplaceAll(pattern, "#", ">"))
}

func topicSource(prefix, pattern string) (string, error) {
	return topicTarget(prefix, pattern)
}
