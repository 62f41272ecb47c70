package config

import (
	"slices"
	"strings"

	"koji-relay/callbacks"
	"koji-relay/internal/fnmatch"
)

// eventList takes patterns of callback names, at least one.
func eventList(text string) ([]string, error) {
	words, err := patternList(text)
	if err == nil && len(words) == 0 {
		return nil, bad("empty, so nothing would be sent; write protonmsg, * or names of callbacks")
	}
	return words, err
}

// warnEvents names patterns that match no callback: they publish nothing, and nothing else would say so. A
// Koji newer than this program may have one.
func warnEvents(text string) valueErrors { return unmatched(text, callbacks.Protonmsg) }

// unmatched are the words of a list that match no callback, but for one word that means something of its own.
func unmatched(text, but string) valueErrors {
	var warnings valueErrors
	for _, word := range strings.FieldsFunc(text, isSpace) {
		p, err := fnmatch.Compile(word)
		if err != nil || word == but || slices.ContainsFunc(callbacks.Names(), p.Match) {
			continue
		}
		warnings = append(warnings, &valueError{part: word,
			text: "matches none of Koji's callbacks, so that it publishes nothing; " + eventAdvice(word)})
	}
	return warnings
}

// eventAdvice is for slips, for other cases, and for topics in the place of callbacks.
func eventAdvice(word string) string {
	if strings.EqualFold(word, "all") || strings.EqualFold(word, "any") {
		return "for all write *"
	}
	candidates := append([]string{callbacks.Protonmsg}, callbacks.Names()...)
	plain := strings.Trim(strings.ToLower(word), "*?")
	last := plain[strings.LastIndexByte(plain, '.')+1:]
	for _, asked := range []string{plain, last, "post" + last} {
		if near := nearestFold(asked, candidates); asked != "" && near != "" {
			return "did you mean " + near + "?"
		}
	}
	return "write * or names such as postTag"
}
