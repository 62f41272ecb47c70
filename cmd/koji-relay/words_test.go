package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

const columns = 110

// nested is a clause that makes a reader go back.
var nested = regexp.MustCompile(`(?i)\bof (which|whom)\b`)

// Documents, messages and comments are read at night, on a terminal.
func TestTextsAreShortToRead(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	list, err := exec.CommandContext(t.Context(), "git", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		t.Skip("these are not the sources as git has them")
	}
	read := 0
	for path := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if strings.Contains(path, "testdata/") || path == "LICENSE" || filepath.Base(path) == "words_test.go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || !utf8.Valid(text) {
			continue // removed and not yet committed, or a picture
		}
		read++
		for _, complaint := range complaints(string(text), filepath.Ext(path) == ".md") {
			t.Errorf("%s%s", path, complaint)
		}
		if !said(path) {
			continue
		}
		for _, found := range counted.FindAllString(string(text), -1) {
			t.Errorf("%s: %q says \"1 messages\" some day; use inspect.Count", path, found)
		}
	}
	if read < 100 {
		t.Errorf("read %d files only", read)
	}
}

// counted is a number with a noun in the plural, whatever the number. inspect.Count knows better.
var counted = regexp.MustCompile(`%d (?:more )?(?:attempt|broker|commit|dead letter|error|event|gap|item|` +
	`line|message|problem|reader|replay|topic|warning)s\b`)

// complaints names the lines that a reader stumbles over. In markdown these are long lines of prose, too: not
// those of tables, commands, and parts that a script writes.
func complaints(text string, markdown bool) (all []string) {
	fenced, written := false, false
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		where := ":" + strconv.Itoa(n) + ": "
		if nested.MatchString(line) {
			all = append(all, where+"two sentences say it better: "+nested.FindString(line))
		}
		if !markdown {
			continue
		}
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case strings.HasPrefix(line, "<!-- end "):
			written = false
		case strings.Contains(line, ": written by "):
			written = true
		}
		prose := !fenced && !written && !strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "    ")
		if width := utf8.RuneCountInString(line); prose && width > columns {
			all = append(all, where+strconv.Itoa(width)+" columns")
		}
	}
	return all
}

// said reports whether the texts of a file are said by the program.
func said(path string) bool {
	return filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") &&
		!strings.Contains(path, "storetest/") && !strings.Contains(path, "devbroker/") &&
		!strings.HasPrefix(path, "integration/")
}

func TestTextsThatAreLongToReadAreFound(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("word ", 25)
	for text, want := range map[string]int{
		"short\n":                              0,
		long + "\n":                            1,
		"- " + long + "\n":                     1,
		"| " + long + " |\n":                   0,
		"    " + long + "\n":                   0,
		"```\n" + long + "\n```\n" + long:      1,
		"<!-- x: written by y -->\n" + long:    0,
		"<!-- end of figures -->\n" + long:     1,
		"a message, of which nobody knows\n":   1,
		strings.Repeat("ä", columns) + "\n":    0,
		strings.Repeat("ä", columns+1) + "\nb": 1,
	} {
		if got := complaints(text, true); len(got) != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := complaints(long, false); len(got) > 0 {
		t.Errorf("a line of code: %q", got)
	}
}
