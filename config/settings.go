package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"koji-relay/internal/inspect"
)

// fromDefault is the source of a setting that no file sets.
const fromDefault = "default"

// Settings lists every key in the order of the documentation, secrets masked.
func (c *Config) Settings() []inspect.Setting { return slices.Clone(c.settings) }

func (c *Config) add(s inspect.Setting, at place) {
	c.settings = append(c.settings, s)
	c.places = append(c.places, at)
}

func (k *key) setting(value string, at place) inspect.Setting {
	source := fromDefault
	if at != (place{}) {
		source = at.String()
	}
	return inspect.Setting{Section: k.section, Key: k.name, Value: k.show(value), Source: source,
		Changed: k.differs(value)}
}

// differs reports whether text means something else than the default: "yes" is no other value than "on".
func (k *key) differs(text string) bool {
	if k.required {
		return true
	}
	var byText, byDefault Config
	_, _ = k.set(&byText, text), k.set(&byDefault, k.def) // of an empty default the error is no matter
	return !reflect.DeepEqual(byText, byDefault)
}

// show masks text as it stands in a file.
func (k *key) show(text string) string {
	if k.masked != nil {
		return k.masked(text)
	}
	return text
}

// effective replaces the text of settings whose value is not simply what the file says.
func (c *Config) effective() {
	for i, s := range c.settings {
		if k := findKey(s.Section, s.Key); k.shown != nil {
			c.settings[i].Value = k.shown(c)
			c.settings[i].Changed = k.required || c.settings[i].Value != k.def
		}
	}
}

// setPlace says that a key got its value elsewhere than under its own name.
func (c *Config) setPlace(section, name string, at place) {
	for i, s := range c.settings {
		if s.Section == section && s.Key == name {
			c.settings[i].Source, c.places[i] = at.String(), at
		}
	}
}

func findKey(section, name string) *key {
	for i := range keys {
		if keys[i].section == section && keys[i].name == name {
			return &keys[i]
		}
	}
	return nil
}

func shownURLs(c *Config) string {
	words := make([]string, len(c.Broker.URLs))
	for i, u := range c.Broker.URLs {
		words[i] = u.String()
	}
	return strings.Join(words, " ")
}

func shownMaxAge(c *Config) string { return strconv.Itoa(int(c.Queue.MaxAge / time.Hour)) }

// timeToLive is seconds, possibly with a fraction; AMQP counts milliseconds in 32 bits.
func timeToLive(text string) (time.Duration, error) { return seconds(0, 4294967)(text) }

// credentialPath is an absolute path, or the name of a systemd credential of the service.
func credentialPath(text string) (string, error) {
	if text == "" || filepath.IsAbs(text) {
		return text, nil
	}
	if strings.Contains(text, "/") {
		return "", bad("neither an absolute path nor the name of a systemd credential; begin it with /")
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		// Kept as it is: only the service has credentials, and Verify will say so there.
		return text, nil
	}
	return filepath.Join(dir, text), nil
}

// retiredAge takes the old name of max_age. max_age wins unless it is absent or 0.
func retiredAge(c *Config, text string) error {
	age, err := wholeUnits(time.Hour, 1, maxHours)(text)
	if err != nil {
		return err
	}
	c.Queue.retiredAge = age
	return nil
}

// warnUnknown names every section and key that has no meaning, and the known one that it resembles.
func (r *reading) warnUnknown() {
	used := r.doc.references()
	for _, s := range append(slices.Clone(r.doc.sections), r.doc.defaults) {
		names := keyNames(s.name)
		if len(names) == 0 && s != r.doc.defaults {
			r.config.Warnings = append(r.config.Warnings,
				Problem{File: s.place.file, Line: s.place.line, Section: s.name,
					Text: "unknown section, not read; " + sectionAdvice(s.name)})
			continue
		}
		if s == r.doc.defaults {
			names = keyNames("")
		}
		for _, name := range s.order {
			if slices.Contains(names, name) || used[name] {
				continue
			}
			e := s.entries[name]
			r.config.Warnings = append(r.config.Warnings,
				Problem{File: e.place.file, Line: e.place.line, Section: s.name, Key: name,
					Text: "unknown key, not read; " + r.keyAdvice(s.name, name, names)})
		}
	}
}

// keyAdvice knows keys that stand in the wrong section, besides slips.
func (r *reading) keyAdvice(section, name string, names []string) string {
	if name == "amqp" || name == "amqps" {
		return "if this is a URL that goes on from the line above, indent it"
	}
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	for i := range keys {
		if keys[i].name == name && keys[i].section != section {
			return fmt.Sprintf("it belongs to [%s]", keys[i].section)
		}
	}
	return "remove it"
}

func sectionAdvice(name string) string {
	if near := nearest(strings.TrimFunc(strings.ToLower(name), isSpace), sectionNames()); near != "" {
		return fmt.Sprintf("did you mean [%s]?", near)
	}
	return "remove it"
}

// keyNames are the keys of a section, or of all for "".
func keyNames(section string) []string {
	var names []string
	for i := range keys {
		if section == "" || keys[i].section == section {
			names = append(names, keys[i].name)
		}
	}
	return names
}

func sectionNames() []string {
	var names []string
	for i := range keys {
		if !slices.Contains(names, keys[i].section) {
			names = append(names, keys[i].section)
		}
	}
	return names
}
