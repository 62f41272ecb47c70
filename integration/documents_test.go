package integration

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// block is one block of code or commands of a document.
type block struct {
	file string // below the repository
	line int    // of its first line, from 1
	text string // without its indentation or fence
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.file, b.line) }

// accounted says what becomes of one block: one of run, shown and drawing is set, or the first two.
type accounted struct {
	opens   string                            // how the block begins
	run     func(*testing.T, *hubSite, block) // does with it what a reader does; the site may be nil
	shown   []string                          // tests that run the same
	drawing string                            // what it pictures; it has no command
}

// documents are accounted for block by block, in their order. A journey goes through its documents one after
// the other, on one site.
var documents = []struct {
	site bool // whether a hub's host is needed
	name string
	read []document
}{
	{true, "install and operate", []document{readme, operations, pluginReadme, consumersGuide}},
	{true, "from protonmsg", []document{migration}},
	{false, "in a checkout", []document{contributing, brokersGuide, metricsGuide, performance, reliability,
		selinuxGuide, architecture}},
}

type document struct {
	file   string
	blocks []accounted
}

// blocksOf finds every block of a document: fenced, or indented below an empty line.
func blocksOf(t testing.TB, file string) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	return findBlocks(file, string(text))
}

func findBlocks(file, text string) (found []block) {
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		first := i + 1
		switch {
		case strings.HasPrefix(strings.TrimSpace(lines[i]), "```"):
			for i++; i < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i]), "```"); i++ {
			}
			found = append(found, block{file, first, unindented(lines[first:min(i, len(lines))])})
		case strings.HasPrefix(lines[i], "    ") && (i == 0 || lines[i-1] == ""):
			for i+1 < len(lines) && (lines[i+1] == "" || strings.HasPrefix(lines[i+1], "    ")) {
				i++
			}
			found = append(found, block{file, first, unindented(lines[first-1 : i+1])})
		}
	}
	return found
}

// unindented takes off what all lines have in front, and empty lines at the end.
func unindented(lines []string) string {
	margin := -1
	for _, line := range lines {
		if indent := len(line) - len(strings.TrimLeft(line, " ")); line != "" && (margin < 0 || indent < margin) {
			margin = indent
		}
	}
	var out strings.Builder
	for _, line := range lines {
		out.WriteString(strings.TrimRight(line[min(len(line), max(margin, 0)):], " ") + "\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

// TestEveryBlockOfTheDocumentsIsAccountedFor: each is run by TestDocumentsAsTheyStand, or by a test that is
// there. One that is new is neither.
func TestEveryBlockOfTheDocumentsIsAccountedFor(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		files[i] = "docs/" + filepath.Base(files[i])
	}
	files = append(files, "README.md", "CONTRIBUTING.md", "hubplugin/README.md")
	known := map[string][]accounted{}
	for _, journey := range documents {
		for _, d := range journey.read {
			known[d.file] = d.blocks
			if !slices.Contains(files, d.file) {
				t.Errorf("%s is accounted for, but is not there", d.file)
			}
		}
	}
	tests, runs, blocks := definedTests(t), 0, 0
	for _, file := range files {
		found := blocksOf(t, file)
		blocks += len(found)
		for i, b := range found {
			if i >= len(known[file]) {
				t.Errorf("%s: nothing runs or excuses this block:\n%s", b.at(), b.text)
				continue
			}
			a := known[file][i]
			if !strings.HasPrefix(b.text, a.opens) {
				t.Errorf("%s: a block that begins with %q is accounted for here, not this one:\n%s", b.at(),
					a.opens, b.text)
			}
			if a.run != nil {
				runs++
			}
			if command := commandLine.FindString(b.text); a.drawing != "" && command != "" {
				t.Errorf("%s: this is no drawing, it has the command %q", b.at(), command)
			}
			for _, name := range a.shown {
				if !tests[name] {
					t.Errorf("%s: it is excused by %s, which there is not", b.at(), name)
				}
			}
			if a.run == nil && len(a.shown) == 0 && a.drawing == "" {
				t.Errorf("%s: it is neither run nor excused", b.at())
			}
		}
		if len(found) < len(known[file]) {
			t.Errorf("%s has %d blocks, %d are accounted for", file, len(found), len(known[file]))
		}
	}
	t.Logf("%d blocks in %d documents, %d of them run by TestDocumentsAsTheyStand", blocks, len(files), runs)
}

// commandLine is a line that a reader could type.
var commandLine = regexp.MustCompile(`(?m)^\s*(\$ |koji-relay |make |systemctl |apt-get |dnf |install ` +
	`|curl |rabbitmqctl |pip |python3? |runuser |cp |sh |\.ci/).*`)

// definedTests are the names of all tests, in Go and in Python.
func definedTests(t testing.TB) map[string]bool {
	t.Helper()
	cmd := exec.Command("git", "grep", "-hoE", "^(func|def) (Test|Benchmark|test_)[A-Za-z0-9_]+", "--",
		"*_test.go",
		"*/test_*.py")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list the tests: %v", err)
	}
	there := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		there[strings.Fields(line)[1]] = true
	}
	return there
}

// TestDocumentsAsTheyStand goes through the documents as a reader does, and runs what they say.
func TestDocumentsAsTheyStand(t *testing.T) {
	t.Parallel()
	mode, err := where()
	if err != nil {
		skipOrFail(t, "a hub's host: %v", err)
	}
	for _, journey := range documents {
		t.Run(journey.name, func(t *testing.T) {
			t.Parallel()
			var s *hubSite
			if journey.site {
				if mode != "docker" {
					t.Log("not shown here: a hub's host with systemd needs a container engine")
					return
				}
				s = newHubSite(t)
			}
			for _, d := range journey.read {
				for i, b := range blocksOf(t, d.file) {
					if i >= len(d.blocks) || d.blocks[i].run == nil {
						continue
					}
					if !t.Run(b.at(), func(t *testing.T) { d.blocks[i].run(t, s, b) }) {
						return // what follows stands on it
					}
				}
			}
		})
	}
}

// printed compares what was printed with what a document shows, but for ids, times, counts, versions and
// hosts. A line … stands for any number of lines.
func printed(t testing.TB, at, shown, got string) {
	t.Helper()
	have := normal(got)
	next, gap := 0, false
	for _, want := range normal(shown) {
		if want == "…" {
			gap = true
			continue
		}
		for gap && next < len(have) && have[next] != want {
			next++
		}
		if next >= len(have) || have[next] != want {
			t.Errorf("%s: it shows\n%s\nbut this is printed:\n%s\nThe first line that differs, without ids, times, "+
				"counts and hosts:\n%s\n%s", at, shown, got, want, strings.Join(have[min(next, len(have)):min(next+1,
				len(have))], ""))
			return
		}
		next, gap = next+1, false
	}
	if !gap && next < len(have) {
		t.Errorf("%s: after what it shows, this is printed as well:\n%s", at, strings.Join(have[next:], "\n"))
	}
}

var normalisations = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?`), "TIME"},
	{regexp.MustCompile(`(localhost|\d+\.\d+\.\d+\.\d+|[a-z0-9-]+\.example\.com):\d+`), "HOST"},
	{regexp.MustCompile(`\b\d+(\.\d+)? (ms|s|min|h|days?)\b`), "TIME"},
	{regexp.MustCompile(`\b\d*[1-9]\d*\.\d+\b|\b\d+\.\d*[1-9]\d*\b|\b\d*[1-9]\d*\b`), "N"}, // 0 stays
	{regexp.MustCompile(`\s+`), " "},
}

// normal is the lines of text that are not empty, with what differs each time replaced.
func normal(text string) (lines []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "{") { // an answer in JSON is compared to the byte
			for _, n := range normalisations {
				line = n.pattern.ReplaceAllString(line, n.with)
			}
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestPrintedTellsDocumentsApart: what is normalised, and what is not.
func TestPrintedTellsDocumentsApart(t *testing.T) {
	t.Parallel()
	const shown = "All is well.\n\nbroker  mq.example.com:5671  up for 55 min\ndead    0\n"
	for _, c := range []struct {
		got  string
		same bool
	}{
		{"All is well.\nbroker localhost:5672 up for 7 s\ndead 0\n", true},
		{"All is well.\nbroker localhost:5672 up for 7 s\ndead 1\n", false},
		{"All is well.\nbroker localhost:5672 down for 7 s\ndead 0\n", false},
		{"All is well.\nbroker localhost:5672 up for 7 s\ndead 0\nmore\n", false},
		{"All is well.\nbroker localhost:5672 up for 7 s\n", false},
	} {
		probe := &counting{TB: t}
		printed(probe, "here", shown, c.got)
		if same := probe.errors == 0; same != c.same {
			t.Errorf("%q: taken for the same: %v, want %v", c.got, same, c.same)
		}
	}
}

// counting is a test whose errors are counted only.
type counting struct {
	testing.TB
	errors int
}

func (c *counting) Errorf(string, ...any) { c.errors++ }

// exchange is one command of a session, which stood behind "$ ", and what it prints.
type exchange struct{ command, shown string }

func exchanges(text string) (all []exchange) {
	for line := range strings.Lines(text) {
		last := len(all) - 1
		switch {
		case strings.HasPrefix(line, "$ "):
			all = append(all, exchange{command: line[2:]})
		case last < 0:
		case unfinished(all[last].command):
			all[last].command += line
		default:
			all[last].shown += line
		}
	}
	return all
}

// unfinished reports whether a shell would wait for more.
func unfinished(command string) bool {
	trimmed := strings.TrimRight(command, "\n ")
	if _, rest, ok := strings.Cut(command, "<<'EOF'"); ok {
		return !strings.Contains(rest, "\nEOF\n")
	}
	return strings.HasSuffix(trimmed, "\\") || strings.HasSuffix(trimmed, "|")
}

// fill puts what a reader puts in the place of an example. Each must be there.
func fill(t testing.TB, b block, pairs ...string) string {
	t.Helper()
	text := b.text
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%s: it has no %q", b.at(), pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// inCheckout runs a script in the repository's top directory.
func inCheckout(t testing.TB, at, script string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, documentLimit), "bash", "-ec", script)
	cmd.Dir = ".."
	// A make of the documents is the first one, also where the tests are run by another.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "MAKELEVEL=", "MAKEFLAGS="), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", at, err, script, cmp.Or(string(out), "(nothing was printed)"))
	}
	return string(out)
}
