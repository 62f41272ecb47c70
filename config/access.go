package config

import (
	"reflect"
	"slices"

	"koji-relay/internal/inspect"
)

// access is how a key reaches its field.
type access struct {
	set  func(*Config, string) error // from the text of the file
	copy func(to, from *Config)
	same func(a, b *Config) bool
}

// into makes the access to a field from the parser of its values.
func into[T any](field func(*Config) *T, parse func(string) (T, error)) access {
	return access{
		set: func(c *Config, text string) error {
			v, err := parse(text)
			if err == nil {
				*field(c) = v
			}
			return err
		},
		copy: func(to, from *Config) { *field(to) = *field(from) },
		same: func(a, b *Config) bool { return reflect.DeepEqual(field(a), field(b)) },
	}
}

// InForce is what a relay that was started with one configuration runs with after a reload of next: next, but
// for the keys that only a restart changes. Their settings say that the file waits. pending names those whose
// value differs, as section.key. Neither configuration is modified.
func InForce(started, next *Config) (inForce *Config, pending []string) {
	merged := *next
	merged.settings, merged.places = slices.Clone(next.settings), slices.Clone(next.places)
	for i, s := range merged.settings {
		k := findKey(s.Section, s.Key)
		if !k.restart || k.same(started, next) {
			continue
		}
		k.copy(&merged, started)
		waits := s.Source
		named := func(o inspect.Setting) bool { return o.Section == s.Section && o.Key == s.Key }
		if at := slices.IndexFunc(started.settings, named); at >= 0 {
			s.Value = started.settings[at].Value
		}
		s.Source = "the start; " + waits + " waits for a restart"
		merged.settings[i] = s
		pending = append(pending, k.id())
	}
	return &merged, pending
}

// NeedsRestart reports whether a key takes effect at the next start only.
func NeedsRestart(section, key string) bool {
	k := findKey(section, key)
	return k != nil && k.restart
}

// Changed names the keys whose values differ, as section.key. It compares the values themselves, not what is
// shown of them: a new password is a change.
func Changed(before, after *Config) []string {
	var names []string
	for i := range keys {
		if k := &keys[i]; k.inUse() && !k.same(before, after) {
			names = append(names, k.id())
		}
	}
	return names
}
