package config

import (
	"regexp"
	"slices"
	"strings"

	"koji-relay/internal/amqpconn/dialect"
)

// prefixMistakes are what hardly anybody means in a topic_prefix, with the remedy. protonmsg took all of it,
// and so does the relay, with a warning: nobody would subscribe to such an address.
var prefixMistakes = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile("[\"'`\u2018\u2019\u201c\u201d]"),
		"a quote is a part of the address; write it without quotes"},
	{regexp.MustCompile(`\{\{|\}\}|\{%|\$|<[^>]*>|@\w+@|^__\w+__$|%\w*%?$`),
		"looks like a template that was not filled in; write the prefix itself"},
	{regexp.MustCompile(`[\s\x1c-\x1f][#;]`),
		"a comment after a value is a part of it; put it on a line of its own"},
	{regexp.MustCompile(`[\s\x1c-\x1f]`), "white space is a part of the address; remove it"},
	{regexp.MustCompile(`[*#>]`), "a wildcard stands in an address that is sent to; remove it"},
	{regexp.MustCompile(`,`), "a comma is a part of the address; there is one prefix only"},
	{regexp.MustCompile(`\\`), "a backslash is a part of the address; write / instead"},
}

// warnTopicPrefix says what is odd about a prefix, one thing only: the first is the cause of others.
func warnTopicPrefix(prefix string) valueErrors {
	for _, m := range prefixMistakes {
		if m.pattern.MatchString(prefix) {
			return valueErrors{{text: m.text}}
		}
	}
	if text := prefixForm(prefix); text != "" {
		return valueErrors{{text: text}}
	}
	return nil
}

// prefixForm looks at how the prefix begins and what its words are.
func prefixForm(prefix string) string {
	bare := strings.TrimPrefix(prefix, "topic://")
	scheme, after, hasScheme := strings.Cut(bare, ":")
	switch {
	case bare == "":
		return "names no topic; write topic://NAME, such as topic://koji"
	case hasScheme && strings.EqualFold(scheme, "topic"):
		return "is taken for topic://" + prefix + "; write topic://" + strings.TrimLeft(after, "/")
	case hasScheme && strings.HasPrefix(after, "//"):
		return "begins with neither topic:// nor /; write topic://NAME, or /topic/NAME for RabbitMQ"
	case strings.HasPrefix(bare, "/"):
		return rabbitForm(prefix, bare)
	case strings.HasSuffix(bare, "/"):
		return "ends with a /; remove it"
	}
	return words(bare)
}

func rabbitForm(prefix, bare string) string {
	trimmed := strings.TrimRight(bare, "/")
	_, key, ok := dialect.ExchangeOf(trimmed)
	switch {
	case bare != prefix:
		return "is two forms at once; write topic://NAME, or /topic/NAME for RabbitMQ"
	case !ok:
		return "is no address of RabbitMQ's; write /topic/NAME, or /exchanges/EXCHANGE/NAME for another exchange"
	case trimmed != bare:
		return "ends with a /; remove it"
	}
	return words(key)
}

// words looks at what stands between the dots.
func words(name string) string {
	switch {
	case strings.HasSuffix(name, "."):
		return "ends with a dot, so that addresses have two of them; remove it"
	case slices.Contains(strings.Split(name, "."), ""):
		return "has an empty word beside a dot; remove the dot"
	}
	return ""
}
