package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	examplePath = "../protonmsg.conf.example"
	docsPath    = "../docs/configuration.md"
)

func TestDocumentationListsEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	const marker = "-update -->\n"
	head, _, found := strings.Cut(string(text), marker)
	if !found {
		t.Fatalf("%s has lost its marker %q", docsPath, marker)
	}
	want := head + marker + keyTables()
	if *update {
		if err := os.WriteFile(docsPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("%s differs from the table of keys; write it anew with -update (-keys +file):\n%s", docsPath, diff)
	}
}

// keyTables is one Markdown table for each section.
func keyTables() string {
	var b strings.Builder
	section := ""
	for _, k := range keys {
		if k.section != section {
			section = k.section
			fmt.Fprintf(&b, "\n## [%s]\n\n| key | default | example | changed by | meaning |\n|---|---|---|---|---|\n",
				section)
		}
		name, def, example := "`"+k.name+"`", "none", ""
		if k.protonmsg {
			name = "**" + name + "**"
		}
		switch {
		case k.required:
			def = "required"
		case k.def != "":
			def = "`" + k.def + "`"
		}
		if k.example != "" {
			example = "`" + k.example + "`"
		}
		doc := k.doc
		if k.retired != "" {
			doc = "retired name of `" + k.retired + "`, which goes before it; read with a warning"
		}
		if k.gone != "" {
			doc = "retired, not read: " + k.gone
		}
		by := "reload"
		if k.restart {
			by = "restart"
		}
		if !k.inUse() {
			by = ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", name, def, example, by, strings.ReplaceAll(doc, "|", "\\|"))
	}
	return b.String()
}

// exampleKey is one key as it stands in the example: in force, or behind a #.
type exampleKey struct {
	value   string
	active  bool
	comment string // the lines above it
}

var (
	exampleSection = regexp.MustCompile(`^\[([a-z]+)\]$`)
	exampleSetting = regexp.MustCompile(`^(#?)([a-z_]+) = (.*)$`)
)

func readExample(t *testing.T) map[string]exampleKey {
	t.Helper()
	text, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]exampleKey{}
	section, comment := "", ""
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "#") && len(line) > 80 {
			t.Errorf("line %d is wider than a terminal", i+1)
		}
		if m := exampleSection.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		m := exampleSetting.FindStringSubmatch(line)
		if m == nil || section == "" {
			if line == "" {
				comment = ""
			}
			comment += strings.TrimSpace(strings.TrimPrefix(line, "#")) + " "
			continue
		}
		name := section + "." + m[2]
		if _, twice := found[name]; twice {
			t.Errorf("line %d: %s stands in the example twice", i+1, name)
		}
		found[name] = exampleKey{value: m[3], active: m[1] == "", comment: strings.TrimSpace(comment)}
	}
	return found
}

func TestExampleHasEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	found := readExample(t)
	for _, k := range keys {
		name := k.section + "." + k.name
		got, ok := found[name]
		delete(found, name)
		if !k.inUse() {
			if ok {
				t.Errorf("%s is retired; take it out", name)
			}
			continue
		}
		if !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		if got.comment == "" {
			t.Errorf("%s is not explained", name)
		}
		def := k.def
		if def == "" {
			def = "none"
		}
		saysDefault := strings.Contains(got.comment, "Default: "+def+".") ||
			strings.Contains(got.comment, "Default: "+def+",")
		switch {
		case k.required:
			if !got.active {
				t.Errorf("%s is required, but not set", name)
			}
		case k.example != "":
			if !got.active || got.value != k.example || !saysDefault {
				t.Errorf("%s must be set to %s and say \"Default: %s.\": %+v", name, k.example, def, got)
			}
		case k.def == "":
			if got.active || got.value != k.sample || !saysDefault {
				t.Errorf("%s must show %s behind a # and say \"Default: none.\": %+v", name, k.sample, got)
			}
		default:
			if got.active || got.value != k.def {
				t.Errorf("%s must show its default %s behind a #: %+v", name, k.def, got)
			}
			if strings.Contains(got.comment, "Default:") {
				t.Errorf("%s says its default twice", name)
			}
		}
	}
	for name := range found {
		t.Errorf("%s is no key", name)
	}
}

func TestExampleLoadsWithoutComplaint(t *testing.T) {
	t.Parallel()
	c, err := Load(examplePath)
	if err != nil || len(c.Warnings) > 0 {
		t.Fatalf("%v %v", err, c)
	}
	for _, s := range c.Settings() {
		k := findKey(s.Section, s.Key)
		if k.required {
			continue
		}
		want := k.def
		if k.example != "" {
			want = k.example
		}
		if s.Value != want {
			t.Errorf("[%s] %s = %s, want %s", s.Section, s.Key, s.Value, want)
		}
	}
}

// Removing any # of the example, or all of them, leaves a file that loads. A name is for another file than
// one that names proton_queue.
func TestExampleLoadsWithEverythingInForce(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(text), "$1")
	all = strings.Replace(all, "\nname = new-bus\n", "\nname =\n", 1)
	c := mustParse(t, all)
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	for _, s := range c.Settings() {
		if s.Source == fromDefault {
			t.Errorf("[%s] %s is not in force", s.Section, s.Key)
		}
	}
}
