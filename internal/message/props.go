package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// EncodeProps gives the JSON object that is stored for props, in their order. protonmsg reads the same
// text, so numbers keep the spelling from which Python, too, recovers the type: a float64 always has a
// point or an exponent. A json.RawMessage is written as it is.
//
// It fails for what JSON has no spelling for: NaN, infinities, invalid UTF-8, a RawMessage that is not JSON.
func EncodeProps(props []Prop) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range props {
		if i > 0 {
			b.WriteString(", ")
		}
		if err := writeString(&b, p.Key); err != nil {
			return nil, fmt.Errorf("encode the name of property %d: %w", i, err)
		}
		b.WriteString(": ")
		if err := writeValue(&b, p.Value); err != nil {
			return nil, fmt.Errorf("encode property %q: %w", p.Key, err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func writeValue(b *bytes.Buffer, value any) error {
	switch v := value.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%v is not a JSON number", v)
		}
		text := strconv.FormatFloat(v, 'g', -1, 64)
		b.WriteString(text)
		if !strings.ContainsAny(text, ".e") {
			b.WriteString(".0")
		}
	case string:
		return writeString(b, v)
	case json.RawMessage:
		if !json.Valid(v) || !utf8.Valid(v) {
			return errors.New("the raw value is not JSON")
		}
		b.Write(v)
	default:
		return fmt.Errorf("a %T is no property value", value)
	}
	return nil
}

func writeString(b *bytes.Buffer, s string) error {
	if isPlain(s) { // nearly all are: a quarter of the time
		b.WriteByte('"')
		b.WriteString(s)
		b.WriteByte('"')
		return nil
	}
	if !utf8.ValidString(s) {
		return errors.New("the text is not UTF-8")
	}
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // Encode ends with a newline
	return nil
}

// isPlain reports whether s is ASCII without anything that JSON escapes.
func isPlain(s string) bool {
	for i := range len(s) {
		if b := s[i]; b < ' ' || b > '~' || b == '"' || b == '\\' {
			return false
		}
	}
	return true
}

// DecodeProps is the inverse of EncodeProps, and reads what protonmsg stored. The order is kept, and a
// value without an AMQP form is kept as its text.
func DecodeProps(text []byte) ([]Prop, error) {
	if props, ok := flatProps(text); ok {
		return props, nil
	}
	return decodeProps(text)
}

// decodeProps reads whatever is JSON.
func decodeProps(text []byte) ([]Prop, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("read the properties: %w", err)
	} else if t != json.Delim('{') {
		return nil, errors.New("read the properties: not a JSON object")
	}
	props := []Prop{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("read the name of property %d: %w", len(props), err)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("read property %q: %w", key, err)
		}
		props = append(props, Prop{Key: key.(string), Value: decodeValue(raw)})
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("read the end of the properties: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("read the properties: text after the object")
	}
	return props, nil
}

// decodeValue gives the AMQP form of one JSON value, or raw itself where there is none.
func decodeValue(raw json.RawMessage) any {
	switch raw[0] {
	case 'n':
		return nil
	case 't':
		return true
	case 'f':
		return false
	case '"':
		var s string
		if loneSurrogate(raw) || !utf8.Valid(raw) || json.Unmarshal(raw, &s) != nil {
			return raw
		}
		return s
	case '{', '[':
		return raw
	}
	if bytes.ContainsAny(raw, ".eE") {
		if f, err := strconv.ParseFloat(string(raw), 64); err == nil {
			return f
		}
		return raw
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n
	}
	return raw
}

// loneSurrogate reports whether the JSON string quoted holds an escape for half of a surrogate pair, which
// encoding/json would replace silently. UTF-8, and with it an AMQP string, has no form for one.
func loneSurrogate(quoted []byte) bool {
	for i := 0; i+1 < len(quoted); i++ {
		if quoted[i] != '\\' {
			continue
		}
		i++ // the escaped character; for \\ this also skips the second backslash
		if quoted[i] != 'u' {
			continue
		}
		high := escapedUnit(quoted[i-1:])
		if !utf16.IsSurrogate(high) {
			continue
		}
		low := escapedUnit(quoted[min(i+5, len(quoted)):])
		if utf16.DecodeRune(high, low) == utf8.RuneError {
			return true
		}
		i += 10 // the rest of both escapes, but for the byte that the loop steps over
	}
	return false
}

// escapedUnit gives the code unit of the \uXXXX that b begins with, or -1.
func escapedUnit(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}
