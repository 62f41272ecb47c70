// Package dialect knows how each kind of broker wants to be told the topic of a message. It promises that a
// prefix means the same on every broker that can serve it, and an error with a remedy on one that cannot. It
// is a table and pure: it opens nothing and knows no driver, so that the configuration can ask it, too.
package dialect

import (
	"fmt"
	"strconv"
	"strings"
)

// The names that an administrator can choose from.
const (
	Auto     = "auto"      // by what the broker says of itself when the connection opens
	Literal  = "literal"   // topic_prefix, a dot, the topic: as protonmsg
	RabbitMQ = "rabbitmq4" // RabbitMQ 4: /exchanges/EXCHANGE/KEY, percent-encoded
	Artemis  = "artemis"   // no topic://, and the target capability "topic" instead
)

// Names lists what the key dialect may be set to.
func Names() []string {
	return []string{Auto, Literal, RabbitMQ, Artemis}
}

// Target gives the address that a message to the topic goes to, as far as it can be known without asking a
// broker: with Auto a prefix counts as protonmsg's. It is what `translate` prints.
func Target(prefix, name, topic string) (string, error) {
	d, err := Choose(name, prefix, Peer{})
	if err != nil {
		return "", err
	}
	to, err := d.Destination(prefix, topic)
	return to.Address, err
}

// Peer is what a broker says of itself in its open frame.
type Peer struct {
	Product, Version string
	TopicPrefix      string // ActiveMQ and Solace: what topics begin with
}

// NewPeer reads the properties of an open frame.
func NewPeer(properties map[string]any) Peer {
	text := func(key string) string {
		s, _ := properties[key].(string)
		return s[:min(len(s), 100)] // it is shown, and logged
	}
	return Peer{Product: text("product"), Version: text("version"), TopicPrefix: text("topic-prefix")}
}

// IsRabbitMQ reports whether the broker is RabbitMQ, of any version.
func (p Peer) IsRabbitMQ() bool { return p.Product == "RabbitMQ" }

// SettlesRanges reports whether the broker settles all delivery-ids between two that it publishes one after
// the other, as the plugin of RabbitMQ 3 does. If frames of two messages alternate in a session, the ranges
// are not those of the messages: some are never settled, and some are accepted before their last frame has
// come.
func (p Peer) SettlesRanges() bool { return p.IsRabbitMQ() && p.major() < 4 }

// KeepsSessionOrder reports whether the broker deals with all messages of a session in the order in which
// they come, whatever their links. RabbitMQ does: a session is one Erlang process there. AMQP promises it of
// a link alone.
func (p Peer) KeepsSessionOrder() bool { return p.IsRabbitMQ() }

// major is the first number of the version, 0 if there is none.
func (p Peer) major() int {
	n, _, _ := strings.Cut(p.Version, ".")
	v, _ := strconv.Atoi(n)
	return v
}

// Destination is where a message to one topic goes on one broker, and what of it goes into the message
// itself.
type Destination struct {
	Address string // of the link's target
	// Subject and To become fields of the message's properties. Empty means that the field is absent.
	Subject, To string
}

// Dialect is how one kind of broker wants to be told the topic.
type Dialect struct {
	Name         string
	Capabilities []string // of the link's target, and of a receiver's source
	// Destination says where a message to the topic goes. Topics with the same Address share a link.
	Destination func(prefix, topic string) (Destination, error)
	// Source turns a pattern of topics, in which * is one word and # any number of them, into what a receiver
	// attaches to. Nil where the broker delivers from queues only: then a receiver has to declare one.
	Source func(prefix, pattern string) (string, error)

	automatic func(prefix string, p Peer) bool // does Auto choose it? nil: only by name
}

// at makes a Destination of an address alone: the topic is a part of it.
func at(address func(prefix, topic string) (string, error)) func(prefix, topic string) (Destination, error) {
	return func(prefix, topic string) (Destination, error) {
		a, err := address(prefix, topic)
		return Destination{Address: a}, err
	}
}

// dialects: Auto takes the first row that fits, so the last one fits all. A new broker is a new row.
var dialects = []Dialect{
	{
		Name:        RabbitMQ,
		automatic:   func(prefix string, p Peer) bool { return p.IsRabbitMQ() && p.major() >= 4 },
		Destination: at(exchangesTarget),
	},
	{
		Name:        "rabbitmq-v1", // the AMQP 1.0 plugin of RabbitMQ 3
		automatic:   func(prefix string, p Peer) bool { return p.IsRabbitMQ() },
		Destination: at(topicTarget),
		Source:      topicSource,
	},
	{
		// Artemis takes topic://koji.build.tag for a name like any other, unless its acceptor has
		// multicastPrefix=topic://. Without the prefix both give the address that consumers subscribe to.
		Name:         Artemis,
		automatic:    func(prefix string, p Peer) bool { return p.Product == "apache-activemq-artemis" },
		Capabilities: []string{"topic"},
		Destination:  at(artemisTarget),
		Source:       artemisTarget, // its wildcards are * and #
	},
	{
		Name: "activemq",
		automatic: func(prefix string, p Peer) bool {
			return p.Product == "ActiveMQ" || p.TopicPrefix == "topic://"
		},
		Destination: at(activemqTarget),
		Source:      activemqSource,
	},
	{
		// Nothing is known of the broker, but protonmsg cannot have used this prefix.
		Name:        RabbitMQ,
		automatic:   func(prefix string, _ Peer) bool { return strings.HasPrefix(prefix, "/exchanges/") },
		Destination: at(exchangesTarget),
	},
	{
		Name:        Literal,
		automatic:   func(string, Peer) bool { return true },
		Destination: at(literalTarget),
		Source:      literalSource,
	},
}

// Choose finds the row by name, or for Auto by what is known of the broker, and makes sure that
// it can express the prefix.
func Choose(name, prefix string, p Peer) (*Dialect, error) {
	for i := range dialects {
		d := &dialects[i]
		if name == Auto && d.automatic != nil && d.automatic(prefix, p) || name == d.Name {
			if _, err := d.Destination(prefix, "build.tag"); err != nil {
				return nil, err
			}
			return d, nil
		}
	}
	return nil, fmt.Errorf("dialect = %q is not one of %q", name, Names())
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

// artemisTarget is for the capability "topic", which says what topic:// says elsewhere.
func artemisTarget(prefix, address string) (string, error) {
	if strings.HasPrefix(prefix, "/") {
		return "", &PrefixError{prefix, "Artemis",
			"it is RabbitMQ's form; set topic_prefix = " + prefix[strings.LastIndex(prefix, "/")+1:]}
	}
	return strings.TrimPrefix(prefix, "topic://") + "." + address, nil
}

// topicTarget is for RabbitMQ 3: /topic/KEY for the exchange amq.topic, /exchange/NAME/KEY for any other.
func topicTarget(prefix, address string) (string, error) {
	if exchange, key, ok := ExchangeOf(prefix); ok {
		if strings.HasPrefix(prefix, "/topic/") {
			return prefix + "." + address, nil
		}
		return "/exchange/" + exchange + "/" + key + "." + address, nil
	}
	return "", RabbitPrefixError(prefix)
}

// exchangesTarget is for RabbitMQ 4, address version 2.
// https://www.rabbitmq.com/docs/amqp#target-address-v2
func exchangesTarget(prefix, address string) (string, error) {
	exchange, key, ok := ExchangeOf(prefix)
	if !ok {
		return "", RabbitPrefixError(prefix)
	}
	if strings.HasPrefix(prefix, "/exchanges/") {
		return prefix + "." + Escape(address), nil // the administrator wrote it in the encoded form
	}
	return "/exchanges/" + Escape(exchange) + "/" + Escape(key+"."+address), nil
}

// ExchangeOf reads a prefix in any of RabbitMQ's forms.
func ExchangeOf(prefix string) (exchange, key string, ok bool) {
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

// RabbitPrefixError says what to write instead of a prefix that has none of RabbitMQ's forms.
func RabbitPrefixError(prefix string) error {
	bare := strings.TrimPrefix(prefix, "topic://")
	if strings.HasPrefix(bare, "/") {
		return &PrefixError{prefix, "RabbitMQ", "write /topic/NAME, or /exchanges/EXCHANGE/NAME for an exchange " +
			"other than amq.topic"}
	}
	return &PrefixError{prefix, "RabbitMQ", "it is ActiveMQ's form; set topic_prefix = /topic/" + bare}
}

// Escape percent-encodes all but RFC 3986's unreserved characters; url.PathEscape leaves more, which RabbitMQ
// then refuses.
func Escape(text string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(text) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			strings.IndexByte("-._~", c) >= 0 {
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
