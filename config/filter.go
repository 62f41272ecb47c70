package config

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// filter writes a file down again so that gopkg.in/ini.v1 reads in it what Python's ConfigParser does:
//
//	line                                   is written as
//	first non-blank is # or ;              nothing: a comment, also between continuation lines
//	blank, while a value is open           a continuation line without text
//	deeper than the line of the last key   a continuation line: four spaces, then the text
//	[name]                                 the header, flush left
//	key = value, key : value               the setting, flush left
//
// A line that the library would take otherwise is a problem, and is left out. So is what ConfigParser
// refuses. The filter keeps the number of each line, since the library knows none.
type filter struct {
	doc  *document
	file string
	out  bytes.Buffer

	section  string
	headed   bool // a section has begun
	headless bool // settings before the first section were reported
	open     bool // a value can go on in the next line
	left     bool // its setting was left out, and so is what goes on
	indent   int  // of the last line that was no continuation

	sections map[string]int    // line of each section
	settings map[[2]string]int // line of each section and key
}

// continued stands before each continuation line, which is how the library knows one.
const continued = "    "

func (f *filter) read(text string) {
	// Python's universal newlines: each of \n, \r\n and \r ends a line.
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	number := 0
	for line := range strings.Lines(text) {
		number++
		f.readLine(number, strings.TrimSuffix(line, "\n"))
	}
}

func (f *filter) readLine(number int, line string) {
	text := strings.TrimFunc(line, isSpace)
	switch {
	case strings.HasPrefix(text, "#"), strings.HasPrefix(text, ";"):
		return
	case text == "":
		f.goOn("")
		return
	}
	indent := utf8.RuneCountInString(line) - utf8.RuneCountInString(strings.TrimLeftFunc(line, isSpace))
	if f.open && indent > f.indent {
		f.goOn(text)
		return
	}
	f.indent = indent
	switch name, header := sectionName(text); {
	case header:
		f.beginSection(number, name, text)
	case !f.headed:
		if !f.headless {
			f.problem(number, "", "stands before the first section; put a line such as [broker] above it")
		}
		f.headless = true
	default:
		f.readSetting(number, text)
	}
}

// goOn writes a line of the open value.
func (f *filter) goOn(text string) {
	if f.open && !f.left {
		f.out.WriteString(continued + text + "\n")
	}
}

// sectionName matches greedily, as Python does since 3.10: "[a] = [b]" is a section named "a] = [b". (To
// older ones it is "a".) The warning about an unknown section shows who meant a comment.
func sectionName(text string) (string, bool) {
	end := strings.LastIndexByte(text, ']')
	if text[0] != '[' || end < 2 {
		return "", false
	}
	return text[1:end], true
}

func (f *filter) beginSection(number int, name, text string) {
	f.section, f.headed, f.open = name, true, false
	if first, found := f.sections[name]; found && name != defaultSection {
		f.problem(number, "", fmt.Sprintf("section appears twice, first on line %d; join the two", first))
	} else {
		f.sections[name] = number
	}
	f.out.WriteString(text + "\n")
}

func (f *filter) readSetting(number int, text string) {
	at := strings.IndexAny(text, "=:")
	if at < 0 {
		// Not shown: it may be the second half of a URL with a password.
		f.problem(number, "", `neither a setting nor a section; write "key = value", `+
			`or indent the line if it continues the one above`)
		return
	}
	name := strings.ToLower(strings.TrimFunc(text[:at], isSpace))
	if name == "" {
		f.open = false
		f.problem(number, "", fmt.Sprintf(`no key before the "%c"; write "key = value"`, text[at]))
		return
	}
	id := [2]string{f.section, name}
	if first, found := f.settings[id]; found {
		f.problem(number, name, fmt.Sprintf("set twice, first on line %d; keep one of the two", first))
	}
	f.settings[id] = number
	wrong := reinterpreted(text, at)
	f.open, f.left = true, wrong != ""
	if f.left {
		f.problem(number, "", wrong)
		return
	}
	f.out.WriteString(text + "\n")
}

// What the library reads in another way than ConfigParser, and what to write instead.
const (
	openBracket   = "begins with a [ and is no section; write [name], or take the [ out of the key"
	separatorChar = "one of the control characters 1C to 1F beside the delimiter; remove it"
	oddName       = "a key that begins with a quote, or is a single -; take the quotes off the key"
	foreignName   = "a key with a capital letter outside ASCII, whose small form differs between programs; " +
		"write it small"
	quotedValue = "a value that begins with a backquote or three double quotes; remove the quotes, " +
		"or begin the value on the line below its key, indented"
)

// reinterpreted says why the library must not see a setting, whose delimiter is at an offset; empty means
// that it may.
func reinterpreted(text string, at int) string {
	name, value := strings.TrimFunc(text[:at], isSpace), strings.TrimFunc(text[at+1:], isSpace)
	switch {
	case text[0] == '[':
		return openBracket
	case name != strings.TrimSpace(text[:at]), value != strings.TrimSpace(text[at+1:]):
		return separatorChar
	case name[0] == '"', name[0] == '`', name == "-":
		return oddName
	case strings.ContainsFunc(text[:at], func(r rune) bool {
		return r > unicode.MaxASCII && unicode.ToLower(r) != r
	}):
		return foreignName
	case strings.HasPrefix(value, "`"), strings.HasPrefix(value, `"""`):
		return quotedValue
	}
	return ""
}

func (f *filter) problem(line int, key, text string) {
	f.doc.problem(f.file, line, f.section, key, text)
}

// isSpace is Python's str.isspace: Unicode's white space and the four separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }
