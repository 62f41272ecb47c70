package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The packages' build writes man pages and completions with this flag. They come from a test, so that neither
// the writer nor what it needs is in the program (docs/decisions/0009-man-pages-and-packages.md).
var docsDir = flag.String("docs", "", "write man pages and shell completions into this `directory`")

// writeDocs fills dir with man1/*.1, with the documents that are man pages too, and with the completions
// bash, zsh and fish. The pages bear the month of SOURCE_DATE_EPOCH.
func writeDocs(dir string) error {
	man := filepath.Join(dir, "man1")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	for _, m := range manuals {
		if err := m.write(dir); err != nil {
			return err
		}
	}
	root := rootCommand()
	header := &doc.GenManHeader{Source: "koji-relay", Manual: "koji-relay"}
	undated(root)
	if err := doc.GenManTree(root, header, man); err != nil {
		return err
	}
	for shell, write := range map[string]func(string) error{
		"bash": func(path string) error { return root.GenBashCompletionFileV2(path, true) },
		"zsh":  root.GenZshCompletionFile,
		"fish": func(path string) error { return root.GenFishCompletionFile(path, true) },
	} {
		if err := write(filepath.Join(dir, shell)); err != nil {
			return err
		}
	}
	return nil
}

// manual is a document that is a man page too.
type manual struct{ section, name, summary, file string }

var manuals = []manual{
	{"5", "protonmsg.conf", "configuration of koji-relay", "configuration.md"},
	{"7", "koji-relay-runbook", "what to do when an alert of koji-relay fires", "runbook.md"},
}

func (m manual) page(dir string) string {
	return filepath.Join(dir, "man"+m.section, m.name+"."+m.section)
}

// write makes the page from the document. Links lose their targets, which a page cannot follow.
func (m manual) write(dir string) error {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", m.file))
	if err != nil {
		return err
	}
	_, body, _ := bytes.Cut(text, []byte("\n"))
	body = keysAsList(markdownLink.ReplaceAll(body, []byte("$1")))
	head := fmt.Sprintf("%% %q %q \"\" \"koji-relay\" \"koji-relay\"\n# NAME\n%s - %s\n\n# DESCRIPTION\n",
		strings.ToUpper(m.name), m.section, m.name, m.summary)
	if err := os.MkdirAll(filepath.Dir(m.page(dir)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.page(dir), md2man.Render(append([]byte(head), body...)), 0o644)
}

// keysAsList makes entries of a list of the tables of keys, which are wider than a terminal.
func keysAsList(text []byte) []byte {
	text = bytes.Replace(text, []byte("Keys that protonmsg had are in bold."),
		[]byte("Keys that protonmsg had are marked with its name."), 1)
	text = keyTable.ReplaceAll(text, nil)
	return keyRow.ReplaceAllFunc(text, func(row []byte) []byte {
		cells := keyRow.FindSubmatch(row)
		key, value, example, changed, meaning := cells[1], cells[2], cells[3], cells[4], cells[5]
		entry := fmt.Sprintf("**%s**", bytes.Trim(key, "`*"))
		if bytes.HasPrefix(key, []byte("**")) {
			entry += " (protonmsg)"
		}
		entry += fmt.Sprintf("\n: %s. Default: %s.", meaning, value)
		if len(example) > 0 {
			entry += fmt.Sprintf(" Example: %s.", example)
		}
		return fmt.Appendf(nil, "%s Changed by: %s.\n\n", entry, changed)
	})
}

var (
	keyTable = regexp.MustCompile(`(?m)^\| key \|.*\n\|-.*\n`)
	keyRow   = regexp.MustCompile("(?m)^\\| (\\**`[a-z_]+`\\**) \\| (.*?) \\| (.*?) ?\\| (.*?) \\| (.*) \\|\n")
)

var markdownLink = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)

func TestDocumentsAreManPagesToo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := writeDocs(dir); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[manual][]string{
		manuals[0]: {"topic_prefix", "max_age", "preserve_order"},
		manuals[1]: {"KojiRelayNotReady", "koji-relay status"},
	} {
		text, err := os.ReadFile(m.page(dir))
		if err != nil {
			t.Fatal(err)
		}
		plain := strings.ReplaceAll(string(text), `\`, "")
		for _, word := range want {
			if !strings.Contains(plain, word) {
				t.Errorf("%s says nothing of %s", m.name, word)
			}
		}
		if strings.Contains(string(text), "\n.TS") {
			t.Errorf("%s has a table, which is wider than a terminal", m.name)
		}
		checkRoff(t, m.page(dir))
	}
}

// undated leaves out cobra's last line, which says when and by what a page was made.
func undated(c *cobra.Command) {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		undated(sub)
	}
}

func TestEveryCommandHasAManPageAndExamples(t *testing.T) {
	t.Parallel()
	dir := *docsDir
	if dir == "" {
		dir = t.TempDir()
	}
	if err := writeDocs(dir); err != nil {
		t.Fatal(err)
	}
	each(rootCommand(), func(c *cobra.Command) {
		page := filepath.Join(dir, "man1", strings.ReplaceAll(c.CommandPath(), " ", "-")+".1")
		text, err := os.ReadFile(page)
		if err != nil {
			t.Errorf("%s has no man page: %v", c.CommandPath(), err)
			return
		}
		if !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s shows no example in its --help", c.CommandPath())
		}
		for flagName := range strings.FieldsSeq("config json") {
			if f := c.Flags().Lookup(flagName); f != nil && !bytes.Contains(text, []byte(`--`+flagName)) {
				t.Errorf("%s does not explain --%s", page, flagName)
			}
		}
		if i := bytes.IndexFunc(text, func(r rune) bool { return r > unicode.MaxASCII }); i >= 0 {
			t.Errorf("%s shows wrong in the C locale: %q", filepath.Base(page), text[max(0, i-20):i+4])
		}
		checkRoff(t, page)
	})
	text, err := os.ReadFile(filepath.Join(dir, "man1", "koji-relay.1"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte("Exit codes")) {
		t.Error("koji-relay(1) does not document the exit codes")
	}
}

// checkRoff lets groff, where it is installed, read a page as man does in the C locale.
func checkRoff(t *testing.T, page string) {
	t.Helper()
	path, err := exec.LookPath("groff")
	if err != nil {
		return
	}
	out, err := exec.Command(path, "-t", "-man", "-Tascii", "-rLL=80n", "-ww", "-z", page).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff reads %s: %v\n%s", filepath.Base(page), err, out)
	}
}

// each calls f for c and all commands below it that help shows.
func each(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			each(sub, f)
		}
	}
}

func TestHelpFitsATerminal(t *testing.T) {
	t.Parallel()
	each(rootCommand(), func(c *cobra.Command) {
		var out, errs bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := run(t.Context(), args, strings.NewReader(""), &out, &errs); code != exitOK || errs.Len() > 0 {
			t.Errorf("%s: exit code %d, %s", args, code, errs.String())
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
				t.Errorf("%s: %d columns: %s", args, n, line)
			}
		}
	})
}

func TestCompletionsNameEveryCommand(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"__complete", ""}, strings.NewReader(""), &stdout, &stderr)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	for _, c := range rootCommand().Commands() {
		if c.IsAvailableCommand() && !strings.Contains(stdout.String(), c.Name()+"\t") {
			t.Errorf("the shell does not offer %s", c.Name())
		}
	}
}

func TestCompletionsOfferFilesOnlyWhereOneIsTaken(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command, []string)
	walk = func(c *cobra.Command, path []string) {
		for _, sub := range c.Commands() {
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
		if len(c.Commands()) > 0 || c.ValidArgsFunction == nil && c.ValidArgs != nil {
			return
		}
		var out bytes.Buffer
		args := append(append([]string{"__complete"}, path...), "--config", t.TempDir(), "")
		if c.Flags().Lookup("config") == nil {
			args = append(append([]string{"__complete"}, path...), "")
		}
		run(t.Context(), args, strings.NewReader(""), &out, &out)
		offered := strings.Contains("\n"+out.String(), "\n:0\n") // the shell's own choice
		if takes := strings.Contains(c.Use, "FILE"); takes != offered {
			t.Errorf("%v: takes a file: %v; the shell is told %q", path, takes, &out)
		}
	}
	walk(rootCommand(), nil)
}
