package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzLoad holds for every text: it is read or refused with at least one problem, never with a panic; no
// secret position of a URL is printed; the library refuses nothing that the filter lets pass; and what was
// read, written down again, reads the same.
func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"testdata/python/*.conf", "testdata/mistakes/*.conf",
		"../protonmsg.conf.example"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text))
		}
	}
	f.Add(minimal)
	f.Fuzz(func(t *testing.T, text string) {
		first, err := parse("first.conf", text)
		if err != nil {
			var found *Error
			if !errors.As(err, &found) || len(found.Problems) == 0 {
				t.Fatalf("refused without a problem: %v", err)
			}
			for _, p := range found.Problems {
				if p.Text == unreadable {
					t.Fatalf("the filter let something pass that the library refuses")
				}
			}
			return
		}
		again, err := parse("again.conf", written(first))
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v\n%s", err, written(first))
		}
		if diff := cmp.Diff(first.Settings(), again.Settings(),
			cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Source" },
				cmp.Ignore())); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
		for i, u := range first.Broker.URLs {
			if again.Broker.URLs[i] != u {
				t.Errorf("%s: user %q, again %q; password %q, again %q", u, u.User, again.Broker.URLs[i].User, u.password,
					again.Broker.URLs[i].password)
			}
		}
	})
}

// written is a file that says explicitly what c holds, secrets included.
func written(c *Config) string {
	var b strings.Builder
	section := ""
	for _, s := range c.Settings() {
		if s.Section != section {
			section = s.Section
			fmt.Fprintf(&b, "[%s]\n", section)
		}
		value := s.Value
		switch s.Key {
		case "urls":
			words := make([]string, len(c.Broker.URLs))
			for i, u := range c.Broker.URLs {
				words[i] = u.Reveal()
			}
			value = strings.Join(words, " ")
		case "database":
			value = c.Queue.Database.Reveal()
		}
		if s.Value == "" && s.Source == fromDefault {
			continue // an absent number has no spelling
		}
		value = strings.ReplaceAll(strings.ReplaceAll(value, "%", "%%"), "\n", "\n  ")
		fmt.Fprintf(&b, "%s = %s\n", s.Key, value)
	}
	return b.String()
}

// FuzzMaskURL: whatever stands between :// and the last @ is not printed.
func FuzzMaskURL(f *testing.F) {
	f.Add("amqps://relay:", "@broker")
	f.Add("", "@[::1]:x")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "sesame-in-the-url"
		if strings.Contains(before, "@") || strings.Contains(after, secret) {
			t.Skip("not about the credentials")
		}
		text := before + secret + "@" + after
		if strings.Contains(maskURLs(text), secret) {
			t.Errorf("%q is shown as %q", text, maskURLs(text))
		}
	})
}
