package devbroker

import (
	"net/url"
	"strings"
)

// prefixes are the ways in which brokers spell "this is a topic" or "this is a queue" in an address. Order
// matters where one begins with another.
var prefixes = []struct {
	text    string
	queue   bool
	escaped bool // the rest is percent-encoded
}{
	{text: "topic://"},
	{text: "multicast://"},
	{text: "/topic/"},
	{text: "/exchanges/amq.topic/", escaped: true},
	{text: "/exchange/amq.topic/"},
	{text: "queue://", queue: true},
	{text: "/amq/queue/", queue: true},
	{text: "/queues/", queue: true, escaped: true},
	{text: "/queue/", queue: true},
}

// address is a terminus address taken apart. Spelled any way, a topic has the same key.
type address struct {
	prefix string // as spelled; empty for a bare name
	key    string // routing key, pattern, or name of the queue
	queue  bool
}

func parseAddress(s string) address {
	for _, p := range prefixes {
		key, found := strings.CutPrefix(s, p.text)
		if !found {
			continue
		}
		if p.escaped {
			if plain, err := url.PathUnescape(key); err == nil {
				key = plain
			}
		}
		return address{prefix: p.text, key: key, queue: p.queue}
	}
	return address{key: s}
}

// matches reports whether the pattern (with or without a prefix) covers a. A pattern without a prefix covers
// every spelling.
func (a address) matches(pattern string) bool {
	p := parseAddress(pattern)
	if p.prefix != "" && p.prefix != a.prefix {
		return false
	}
	return matchKey(p.key, a.key)
}

// matchKey reports whether a dotted routing key matches a dotted pattern: "*" stands for one word, "#" and
// ">" (ActiveMQ's spelling) for any number of words, none included.
func matchKey(pattern, key string) bool {
	if !strings.ContainsAny(pattern, "*#>") {
		return pattern == key
	}
	return matchWords(strings.Split(pattern, "."), strings.Split(key, "."))
}

// matchWords walks both lists once, and goes back to the last "#" when a later word does not fit. That is
// the usual wildcard walk: quadratic at worst, where trying every split would be exponential.
func matchWords(pattern, key []string) bool {
	p, k := 0, 0
	starP, starK := -1, 0
	for k < len(key) {
		switch {
		case p < len(pattern) && (pattern[p] == "#" || pattern[p] == ">"):
			starP, starK = p, k
			p++
		case p < len(pattern) && (pattern[p] == "*" || pattern[p] == key[k]):
			p++
			k++
		case starP >= 0:
			starK++
			p, k = starP+1, starK
		default:
			return false
		}
	}
	for p < len(pattern) && (pattern[p] == "#" || pattern[p] == ">") {
		p++
	}
	return p == len(pattern)
}
