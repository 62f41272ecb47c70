package devbroker

import (
	"strings"
	"testing"
)

func TestPatternsMatchWordsAsBrokersDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{"koji.build.tag", "koji.build.tag", true},
		{"koji.build.tag", "koji.build.untag", false},
		{"koji.*.tag", "koji.build.tag", true},
		{"koji.*", "koji.build.tag", false},
		{"koji.*.tag", "koji.tag", false},
		{"*", "koji", true},
		{"#", "koji.build.tag", true},
		{"#", "", true},
		{"koji.#", "koji", true},
		{"koji.#", "koji.build.tag", true},
		{"koji.#", "kojira.build", false},
		{"#.tag", "koji.build.tag", true},
		{"#.tag", "koji.build.tag.x", false},
		{"#.build.#", "koji.build.tag", true},
		{"#.*.tag", "tag", false},
		{"*.#.tag", "a.b.tag.c.tag", true},
		{"koji.>", "koji.build.tag", true},
		{">", "koji", true},
		{"koji.b*", "koji.build", false}, // a star is a word, not a part of one
	} {
		if got := matchKey(c.pattern, c.key); got != c.want {
			t.Errorf("%q, %q: %t", c.pattern, c.key, got)
		}
	}
	hostile := strings.Repeat("#.*.", 200) + "x"
	if matchKey(hostile, strings.Repeat("a.", 2000)+"y") {
		t.Error("hostile pattern matches")
	}
}

func TestSpellingsOfAnAddressShareTheKey(t *testing.T) {
	t.Parallel()
	for spelled, want := range map[string]address{
		"koji.build.tag":                        {key: "koji.build.tag"},
		"topic://koji.build.tag":                {prefix: "topic://", key: "koji.build.tag"},
		"/topic/koji.build.tag":                 {prefix: "/topic/", key: "koji.build.tag"},
		"/exchanges/amq.topic/koji.build%2Etag": {prefix: "/exchanges/amq.topic/", key: "koji.build.tag"},
		"/exchanges/amq.topic/koji%zz":          {prefix: "/exchanges/amq.topic/", key: "koji%zz"},
		"/queues/a%20b":                         {prefix: "/queues/", key: "a b", queue: true},
		"queue://all":                           {prefix: "queue://", key: "all", queue: true},
		"/exchanges/other/koji":                 {key: "/exchanges/other/koji"},
	} {
		if got := parseAddress(spelled); got != want {
			t.Errorf("%s: %+v", spelled, got)
		}
	}
	if a := parseAddress("/topic/koji.build.tag"); a.matches("topic://#") || !a.matches("/topic/#") ||
		!a.matches("koji.#") {
		t.Error("a pattern's prefix must be the address's, and no prefix covers all")
	}
}
