// Package fnmatch matches names with patterns as Python's fnmatch.fnmatchcase does, since Koji's
// administrators know those and the hub plugin uses it.
//
//   - any run of characters, / among them
//     ?       one character
//     [abc]   one of these; [a-z] a range, []a] with a ], [-a] with a -
//     [!abc]  none of these
//
// Upper and lower case differ. A [ without its ] stands for itself. A backslash is no escape: a star is
// written [*].
package fnmatch

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// Pattern is a compiled pattern. It is immutable and may be shared.
type Pattern struct{ steps []step }

// step takes any run of characters, or one that is in its ranges (not in them, if negated).
type step struct {
	star    bool
	negated bool
	ranges  [][2]rune
}

// Compile refuses one thing that Python takes: a range that runs backwards, such as [z-a]. To Python it holds
// nothing, and in some places changes what stands beside it.
func Compile(pattern string) (*Pattern, error) {
	p := &Pattern{}
	for text := []rune(pattern); len(text) > 0; {
		first := text[0]
		text = text[1:]
		switch first {
		case '*':
			if n := len(p.steps); n == 0 || !p.steps[n-1].star {
				p.steps = append(p.steps, step{star: true})
			}
			continue
		case '?':
			p.steps = append(p.steps, step{negated: true})
			continue
		case '[':
			if end := setEnd(text); end > 0 {
				s, err := set(text[:end])
				if err != nil {
					return nil, fmt.Errorf("pattern %q: %w", pattern, err)
				}
				p.steps = append(p.steps, s)
				text = text[end+1:]
				continue
			}
		}
		p.steps = append(p.steps, step{ranges: [][2]rune{{first, first}}})
	}
	return p, nil
}

// setEnd is where the ] stands that ends a set, or -1. One at the beginning is a member.
func setEnd(text []rune) int {
	from := 0
	if from < len(text) && text[from] == '!' {
		from++
	}
	if from < len(text) && text[from] == ']' {
		from++
	}
	if at := slices.Index(text[from:], ']'); at >= 0 {
		return from + at
	}
	return -1
}

// set reads what stands between [ and ].
func set(text []rune) (step, error) {
	var s step
	if text[0] == '!' {
		s.negated, text = true, text[1:]
	}
	for len(text) > 0 {
		low, high, size := text[0], text[0], 1
		if len(text) > 2 && text[1] == '-' {
			high, size = text[2], 3
		}
		if low > high {
			return s, fmt.Errorf("the range %c-%c runs backwards; write [%c-%c]", low, high, high, low)
		}
		s.ranges = append(s.ranges, [2]rune{low, high})
		text = text[size:]
	}
	return s, nil
}

// Match reports whether the pattern matches the whole name.
func (p *Pattern) Match(name string) bool {
	at := 0
	star, retry := -1, "" // the last star passed, and what of the name it has not taken yet
	for {
		if at < len(p.steps) && p.steps[at].star {
			star, retry = at, name
			at++
			continue
		}
		if name == "" && at == len(p.steps) {
			return true
		}
		if name != "" && at < len(p.steps) {
			if r, size := utf8.DecodeRuneInString(name); p.steps[at].takes(r) {
				name = name[size:]
				at++
				continue
			}
		}
		if star < 0 || retry == "" {
			return false
		}
		// The star takes one character more.
		_, size := utf8.DecodeRuneInString(retry)
		retry = retry[size:]
		name, at = retry, star+1
	}
}

func (s *step) takes(r rune) bool {
	for _, within := range s.ranges {
		if within[0] <= r && r <= within[1] {
			return !s.negated
		}
	}
	return s.negated
}

// Unclosed reports whether the pattern has a [ without its ], which is more often a slip than meant.
func Unclosed(pattern string) bool {
	text := []rune(pattern)
	for i := 0; i < len(text); i++ {
		if text[i] == '[' {
			end := setEnd(text[i+1:])
			if end < 0 {
				return true
			}
			i += 1 + end
		}
	}
	return false
}

// Any reports whether one of the patterns matches the name.
func Any(patterns []*Pattern, name string) bool {
	return slices.ContainsFunc(patterns, func(p *Pattern) bool { return p.Match(name) })
}

// CompileAll compiles each word of a list.
func CompileAll(words []string) ([]*Pattern, error) {
	patterns := make([]*Pattern, len(words))
	for i, word := range words {
		p, err := Compile(word)
		if err != nil {
			return nil, err
		}
		patterns[i] = p
	}
	return patterns, nil
}
