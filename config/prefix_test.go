package config

import (
	"strings"
	"testing"
)

func TestOddTopicPrefixIsNamedWithTheRemedy(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]string{
		`"topic://koji"`:             "without quotes",
		`'koji'`:                     "without quotes",
		"topic://koji # ours":        "line of its own",
		"topic://koji ; ours":        "line of its own",
		"topic://koji\t#x":           "line of its own",
		"topic://ko ji":              "white space",
		"{{ topic_prefix }}":         "template",
		"topic://{{koji_prefix}}":    "template",
		"${PREFIX}":                  "template",
		"$PREFIX":                    "template",
		"@TOPIC_PREFIX@":             "template",
		"<prefix>":                   "template",
		"__PREFIX__":                 "template",
		"{% raw %}":                  "template",
		"%PREFIX%":                   "template",
		"topic://":                   "names no topic",
		"/topic":                     "no address of RabbitMQ's",
		"/topic/":                    "no address of RabbitMQ's",
		"/":                          "no address of RabbitMQ's",
		"/exchange/amq.topic":        "no address of RabbitMQ's",
		"/exchanges/koji/":           "no address of RabbitMQ's",
		"/queue/koji":                "no address of RabbitMQ's",
		"/topic/koji/":               "ends with a /",
		"topic://koji/":              "ends with a /",
		"topic:///topic/koji":        "two forms at once",
		"topic://koji.":              "ends with a dot",
		"/topic/koji.":               "ends with a dot",
		"topic://.koji":              "an empty word",
		"topic://koji..prod":         "an empty word",
		"topic:/koji":                "write topic://koji",
		"topic:koji":                 "write topic://koji",
		"Topic://koji":               "write topic://koji",
		"topic://topic://koji":       "write topic://koji",
		"queue://koji":               "neither topic:// nor /",
		"amqp://broker.example.com/": "neither topic:// nor /",
		"topic://koji.#":             "a wildcard",
		"topic://koji.*":             "a wildcard",
		"topic://koji.>":             "a wildcard",
		"topic://koji,topic://other": "a comma",
		`\topic\koji`:                "a backslash",
	} {
		got := warnTopicPrefix(prefix)
		if len(got) != 1 || !strings.Contains(got[0].text, want) || !strings.ContainsAny(got[0].text, ";") {
			t.Errorf("%s: %v, want one warning with %q", prefix, got, want)
		}
	}
	for _, prefix := range []string{
		"topic://koji", "topic://VirtualTopic.eng.koji", "koji", "koji.prod", "VirtualTopic.koji", "/topic/koji",
		"/topic/koji.prod", "/exchange/amq.topic/koji", "/exchanges/koji/prod", "/exchanges/a%20b/koji",
		"topic://koji-prod_1", "koji:prod", "topic://org/koji",
	} {
		if got := warnTopicPrefix(prefix); got != nil {
			t.Errorf("%s: %v", prefix, got)
		}
	}
}
