package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// defaultSection lends its settings to every other section.
const defaultSection = "DEFAULT"

// document is what Python's ConfigParser makes of one or more files, plus where each thing stood. See
// docs/decisions/0002-own-ini-reader.md for why no library reads it.
type document struct {
	files    []string
	sections []*section // as first seen; defaultSection is not among them
	defaults *section
	problems []Problem
	unread   bool // a file could not be taken at all, so what is missing proves nothing
}

type section struct {
	name    string
	place   place
	entries map[string]*entry
	order   []string
}

// entry is one setting; its lines are the text after the delimiter and the continuation lines.
type entry struct {
	name  string // lower case
	lines []string
	place place
}

// place is where something stands. The zero value is nowhere.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

func (e *entry) raw() string { return strings.TrimRightFunc(strings.Join(e.lines, "\n"), isSpace) }

func newDocument() *document {
	return &document{defaults: &section{name: defaultSection, entries: map[string]*entry{}}}
}

// readDocument reads a file, or the *.conf files of a directory in the order of their names, as Koji's
// read_config_files does.
func readDocument(path string) (*document, error) {
	files := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if info.IsDir() {
		if files, err = configFiles(path); err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("read the configuration: no *.conf file in the directory %s", path)
		}
	}
	doc := newDocument()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
		doc.read(file, text)
	}
	return doc, nil
}

// configFiles lists dir's *.conf files, sorted. A directory that is not there has none.
func configFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries { // sorted by name
		name := filepath.Join(dir, e.Name())
		if !strings.HasSuffix(name, ".conf") {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			files = append(files, name)
		}
	}
	return files, nil
}

// read adds one file: a later file overrides an earlier one, but within a file nothing may be said twice.
func (d *document) read(file string, text []byte) {
	d.files = append(d.files, file)
	if at := invalidUTF8(text); at >= 0 {
		d.problem(file, 1+strings.Count(string(text[:at]), "\n"), "", "", "not UTF-8; save the file as UTF-8")
		d.unread = true
		return
	}
	r := fileReader{doc: d, file: file, sections: map[string]int{}, entries: map[[2]string]int{}}
	if rest, found := strings.CutPrefix(string(text), "\ufeff"); found {
		// ConfigParser takes the mark for a part of the first line and refuses the file.
		d.problem(file, 1, "", "", "begins with a byte order mark, which Koji cannot read; save the file as UTF-8 without it")
		text = []byte(rest)
	}
	// Python's universal newlines: each of \n, \r\n and \r ends a line.
	lines := strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(text)), "\n")
	for i, line := range lines {
		last := i == len(lines)-1
		if last && line == "" {
			break
		}
		r.readLine(i+1, line)
	}
}

func (d *document) problem(file string, line int, section, key, text string) {
	d.problems = append(d.problems, Problem{File: file, Line: line, Section: section, Key: key, Text: text})
}

// fileReader is the state of ConfigParser's line loop:
//
//	line                                  meaning
//	first non-blank is # or ;             comment, also between continuation lines
//	blank                                 part of the value above it, if one is open
//	deeper than the line of the last key  continuation of its value
//	[name]                                section; what follows the bracket is ignored
//	key = value, key : value              setting
type fileReader struct {
	doc      *document
	file     string
	section  *section
	entry    *entry // open for continuation lines; nil after a section header
	indent   int
	headless bool // settings before the first section were reported

	sections map[string]int    // line of each section of this file
	entries  map[[2]string]int // line of each (section, key) of this file
}

func (r *fileReader) readLine(number int, line string) {
	value := strings.TrimFunc(line, isSpace)
	switch {
	case strings.HasPrefix(value, "#"), strings.HasPrefix(value, ";"):
		return
	case value == "":
		if r.entry != nil {
			r.entry.lines = append(r.entry.lines, "")
		}
		return
	}
	indent := utf8.RuneCountInString(line) - utf8.RuneCountInString(strings.TrimLeftFunc(line, isSpace))
	if r.entry != nil && indent > r.indent {
		r.entry.lines = append(r.entry.lines, value)
		return
	}
	r.indent = indent
	if name, found := sectionName(value); found {
		r.beginSection(number, name)
		return
	}
	if r.section == nil {
		if !r.headless {
			r.doc.problem(r.file, number, "", "", "stands before the first section; put a line such as [broker] above it")
		}
		r.headless = true
		return
	}
	r.readSetting(number, value)
}

// sectionName matches greedily, as Python does since 3.10: "[a] = [b]" is a section named "a] = [b". (To
// older ones it is "a".) The warning about an unknown section shows who meant a comment.
func sectionName(value string) (string, bool) {
	end := strings.LastIndexByte(value, ']')
	if value[0] != '[' || end < 2 {
		return "", false
	}
	return value[1:end], true
}

func (r *fileReader) beginSection(number int, name string) {
	r.entry = nil
	if name == defaultSection {
		r.section = r.doc.defaults
		return
	}
	if first, found := r.sections[name]; found {
		r.doc.problem(r.file, number, name, "", fmt.Sprintf("section appears twice, first on line %d; join the two", first))
	} else {
		r.sections[name] = number
	}
	r.section = r.doc.section(name)
	if r.section == nil {
		r.section = &section{name: name, place: place{r.file, number}, entries: map[string]*entry{}}
		r.doc.sections = append(r.doc.sections, r.section)
	}
}

func (r *fileReader) readSetting(number int, line string) {
	at := strings.IndexAny(line, "=:")
	if at < 0 {
		// Not shown: it may be the second half of a URL with a password.
		r.doc.problem(r.file, number, r.section.name, "",
			`neither a setting nor a section; write "key = value", or indent the line if it continues the one above`)
		return
	}
	name := strings.ToLower(strings.TrimFunc(line[:at], isSpace))
	if name == "" {
		r.entry = nil
		r.doc.problem(r.file, number, r.section.name, "", fmt.Sprintf(`no key before the "%c"; write "key = value"`, line[at]))
		return
	}
	id := [2]string{r.section.name, name}
	if first, found := r.entries[id]; found {
		r.doc.problem(r.file, number, r.section.name, name, fmt.Sprintf("set twice, first on line %d; keep one of the two", first))
	} else {
		r.entries[id] = number
	}
	r.entry = &entry{name: name, lines: []string{strings.TrimFunc(line[at+1:], isSpace)}, place: place{r.file, number}}
	if _, found := r.section.entries[name]; !found {
		r.section.order = append(r.section.order, name)
	}
	r.section.entries[name] = r.entry
}

func (d *document) section(name string) *section {
	for _, s := range d.sections {
		if s.name == name {
			return s
		}
	}
	return nil
}

// lookup finds a setting in its section or in [DEFAULT], which lends only to sections that exist.
func (d *document) lookup(sectionName, name string) *entry {
	s := d.section(sectionName)
	if s == nil {
		return nil
	}
	if e := s.entries[name]; e != nil {
		return e
	}
	return d.defaults.entries[name]
}

func (d *document) lastFile() string { return d.files[len(d.files)-1] }

// isSpace is Python's str.isspace: Unicode's white space and the four separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(text []byte) int {
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size == 1 {
			return at
		}
		at += size
	}
	return -1
}
