package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"gopkg.in/ini.v1"
)

// defaultSection lends its settings to every other section.
const defaultSection = "DEFAULT"

// document is what Python's ConfigParser makes of one or more files, plus where each thing stood.
// docs/decisions/0002-ini-reader.md says how.
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

// entry is one setting.
type entry struct {
	name  string // lower case
	raw   string // not interpolated; one line for each of the file's
	place place
}

// place is where something stands. The zero value is nowhere.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

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

// unreadable stands for the library's own words, since these hold the line, and that may hold a password.
const unreadable = "cannot be read as an ini file; look for quotes and brackets in odd places"

// iniOptions are those with which the library is nearest to ConfigParser; filter sees to the rest.
var iniOptions = ini.LoadOptions{
	InsensitiveKeys:            true,
	IgnoreContinuation:         true,
	IgnoreInlineComment:        true,
	PreserveSurroundedQuote:    true,
	AllowPythonMultilineValues: true,
}

// read adds one file: a later file overrides an earlier one, but within a file nothing may be said twice.
func (d *document) read(file string, text []byte) {
	d.files = append(d.files, file)
	if at := invalidUTF8(text); at >= 0 {
		d.problem(file, 1+bytes.Count(text[:at], []byte("\n")), "", "", "not UTF-8; save the file as UTF-8")
		d.unread = true
		return
	}
	rest, marked := strings.CutPrefix(string(text), "\ufeff")
	if marked {
		// ConfigParser takes the mark for a part of the first line and refuses the file.
		d.problem(file, 1, "", "",
			"begins with a byte order mark, which Koji cannot read; save the file as UTF-8 without it")
	}
	f := filter{doc: d, file: file, sections: map[string]int{}, settings: map[[2]string]int{}}
	f.read(rest)
	options := iniOptions
	options.ReaderBufferSize = f.out.Len() + 1 // a value must fit into the buffer, or is cut off
	parsed, err := ini.LoadSources(options, f.out.Bytes())
	if err != nil {
		d.problem(file, 0, "", "", unreadable)
		d.unread = true
		return
	}
	for _, s := range parsed.Sections() {
		d.add(&f, s)
	}
}

// add takes over what the library read in one section.
func (d *document) add(f *filter, parsed *ini.Section) {
	s := d.defaults
	if parsed.Name() != defaultSection {
		if s = d.section(parsed.Name()); s == nil {
			s = &section{name: parsed.Name(), place: place{f.file, f.sections[parsed.Name()]},
				entries: map[string]*entry{}}
			d.sections = append(d.sections, s)
		}
	}
	for _, k := range parsed.Keys() {
		raw := strings.ReplaceAll(k.Value(), "\n"+continued, "\n")
		e := &entry{name: k.Name(), raw: strings.TrimRightFunc(raw, isSpace)}
		e.place = place{f.file, f.settings[[2]string{parsed.Name(), k.Name()}]}
		if _, found := s.entries[e.name]; !found {
			s.order = append(s.order, e.name)
		}
		s.entries[e.name] = e
	}
}

func (d *document) problem(file string, line int, section, key, text string) {
	d.problems = append(d.problems, Problem{File: file, Line: line, Section: section, Key: key, Text: text})
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
