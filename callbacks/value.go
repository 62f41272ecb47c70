package callbacks

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// The functions here take the raw text of one value that the cursor has passed over, so it is JSON.

// kindOf names a value's type for a person.
func kindOf(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// shorten keeps a number that goes into a reason to a readable length.
func shorten(raw []byte) string {
	const shown = 24
	if len(raw) > shown {
		return string(raw[:shown]) + "…"
	}
	return string(raw)
}

func isInteger(raw []byte) bool {
	return (raw[0] == '-' || raw[0]-'0' <= 9) && !bytes.ContainsAny(raw, ".eE")
}

// isFalsy is Python's `not value`, where a missing value counts as None.
func isFalsy(raw []byte) bool {
	if raw == nil {
		return true
	}
	switch raw[0] {
	case 'n', 'f':
		return true
	case 't':
		return false
	case '"':
		return len(raw) == 2
	case '{', '[':
		return len(bytes.Trim(raw[1:len(raw)-1], " \t\r\n")) == 0
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	return err == nil && f == 0
}

// stateName is the name of the build state whose number raw is. Python would count -1 from the end; Koji has
// no such state, so neither have we.
func stateName(raw []byte) (string, bool) {
	if !isInteger(raw) {
		return "", false
	}
	n, err := strconv.Atoi(string(raw))
	if err != nil || n < 0 || n >= len(buildStates) {
		return "", false
	}
	return buildStates[n], true
}

// propValue is the value of an application-property. What AMQP cannot express stays as its text
// (message.Prop).
func propValue(raw []byte) any {
	switch raw[0] {
	case 'n':
		return nil
	case 't':
		return true
	case 'f':
		return false
	case '"':
		if s, ok := stringValue(raw); ok {
			return s
		}
	case '{', '[':
	default:
		if isInteger(raw) {
			if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
				return n
			}
			break
		}
		if f, err := strconv.ParseFloat(string(raw), 64); err == nil {
			return f
		}
	}
	return json.RawMessage(bytes.Clone(raw))
}

// stringValue decodes a string. It refuses what is no string (also a missing value) and what is not text:
// half a surrogate pair has no form in UTF-8, and a replacement character would be another value.
func stringValue(raw []byte) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	text := raw[1 : len(raw)-1]
	escape := bytes.IndexByte(text, '\\')
	if escape < 0 {
		return string(text), true
	}
	out := make([]byte, 0, len(text))
	for ; escape >= 0; escape = bytes.IndexByte(text, '\\') {
		out = append(out, text[:escape]...)
		r, n := unescape(text[escape:])
		if utf16.IsSurrogate(r) {
			return "", false
		}
		out = utf8.AppendRune(out, r)
		text = text[escape+n:]
	}
	return string(append(out, text...)), true
}

// unescape reads the escape that text begins with, two of them where they are a surrogate pair; n is its
// length. Half a pair comes back as it is.
func unescape(text []byte) (r rune, n int) {
	switch text[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default: // '"', '\\' and '/' stand for themselves
		return rune(text[1]), 2
	}
	r, _ = hex4(text[2:])
	if utf16.IsSurrogate(r) && len(text) >= 12 && text[6] == '\\' && text[7] == 'u' {
		low, _ := hex4(text[8:])
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return r, 6
}

// keyIs compares a member's raw key with a name.
func keyIs(key []byte, name string) bool {
	if bytes.IndexByte(key, '\\') < 0 {
		return string(key[1:len(key)-1]) == name
	}
	s, ok := stringValue(key)
	return ok && s == name
}
