package config

import (
	"fmt"
	"strings"
)

const (
	maxDepth    = 10      // ConfigParser's MAX_INTERPOLATION_DEPTH
	maxExpanded = 1 << 20 // bytes; settings that multiply each other end here instead of filling memory
)

// expand gives an entry's value with %(name)s replaced and %% reduced, as ConfigParser's get does: late, so
// that only a setting that is read can be wrong.
func (d *document) expand(section string, e *entry) (string, error) {
	x := expansion{doc: d, section: section}
	if err := x.add(e.raw, 1); err != nil {
		return "", err
	}
	return x.out.String(), nil
}

type expansion struct {
	doc     *document
	section string
	out     strings.Builder
}

func (x *expansion) add(text string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("the %%(name)s in it lead to each other without end; write the value itself in one of " +
			"them")
	}
	for text != "" {
		before, after, found := strings.Cut(text, "%")
		x.out.WriteString(before)
		if x.out.Len() > maxExpanded {
			return fmt.Errorf("longer than %d bytes with its %%(name)s filled in; shorten it", maxExpanded)
		}
		if !found {
			return nil
		}
		if rest, escaped := strings.CutPrefix(after, "%"); escaped {
			x.out.WriteByte('%')
			text = rest
			continue
		}
		name, rest, ok := reference(after)
		if !ok {
			return fmt.Errorf("has a single %%; write %%%% for a percent sign")
		}
		e := x.doc.lookup(x.section, strings.ToLower(name))
		if e == nil {
			return fmt.Errorf("%%(%s)s names no setting of [%s] or [%s]; set it there, or write %%%% for a percent "+
				"sign",
				name, x.section, defaultSection)
		}
		value := e.raw
		if strings.Contains(value, "%") {
			if err := x.add(value, depth+1); err != nil {
				return err
			}
		} else { // counts for no depth
			x.out.WriteString(value)
		}
		text = rest
	}
	return nil
}

// reference reads "(name)s".
func reference(text string) (name, rest string, ok bool) {
	inner, found := strings.CutPrefix(text, "(")
	if !found {
		return "", "", false
	}
	name, rest, found = strings.Cut(inner, ")")
	if !found || name == "" {
		return "", "", false
	}
	rest, found = strings.CutPrefix(rest, "s")
	return name, rest, found
}

// references are the names that any %(name)s of the document asks for: helpers, not mistakes.
func (d *document) references() map[string]bool {
	names := map[string]bool{}
	for _, s := range append([]*section{d.defaults}, d.sections...) {
		for _, e := range s.entries {
			for _, piece := range strings.Split(strings.ReplaceAll(e.raw, "%%", ""), "%")[1:] {
				if name, _, ok := reference(piece); ok {
					names[strings.ToLower(name)] = true
				}
			}
		}
	}
	return names
}
