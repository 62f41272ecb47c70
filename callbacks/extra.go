package callbacks

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth is how deeply kwargs may be nested. Python's json.dumps, which wrote them, gives up at its recursion
// limit (1000 by default), and PostgreSQL's json type a few thousand levels later.
const maxDepth = 1000

// span is a part of the kwargs, by offsets.
type span struct{ start, end int }

// found is what one pass over the kwargs brings back for a rule.
type found struct {
	values  [maxPlaces][]byte // raw values by position, nil where missing
	build   span              // the dict whose `extra` may be cut
	extra   []byte            // its `extra`, raw; nil where missing
	taskID  bool              // the kwargs have a task_id
	members int
	end     int // behind the last member
}

// notObject is the reason why kwargs that are JSON are not kwargs.
type notObject string

func (k notObject) Error() string { return "kwargs are " + string(k) + ", not a JSON object" }

// find passes over kwargs once, checks that they are one JSON object, and collects what b reads. Of a key that
// is there twice the last one counts, as in Python.
func (b *boundRule) find(kwargs []byte) (found, error) {
	var f found
	c := cursor{data: kwargs, room: maxDepth}
	if c.space() != '{' {
		raw, err := c.value()
		if err == nil {
			err = c.end()
		}
		if err != nil {
			return f, notJSON(err)
		}
		return f, notObject(kindOf(raw))
	}
	if err := c.enter(); err != nil {
		return f, notJSON(err)
	}
	f.end = c.pos
	for {
		m, more, err := c.nextMember(f.members == 0)
		if err == nil && !more {
			err = c.end()
		}
		if err != nil {
			return f, notJSON(err)
		}
		if !more {
			return f, nil
		}
		if err := b.readMember(&c, &f, m.key); err != nil {
			return f, notJSON(err)
		}
		f.members++
		f.end = c.pos
	}
}

func notJSON(err error) error { return &kwargsError{err} }

// kwargsError is text that is not JSON.
type kwargsError struct{ err error }

func (e *kwargsError) Error() string { return "kwargs are not JSON that can be sent: " + e.err.Error() }
func (e *kwargsError) Unwrap() error { return e.err }

// readMember passes over one value of the kwargs and keeps what b wants of it.
func (b *boundRule) readMember(c *cursor, f *found, key []byte) error {
	start, inside := c.pos, false
	var top string
	for i, p := range b.places {
		if keyIs(key, p.top) {
			top = p.top
			inside = inside || p.sub != ""
			f.values[i] = nil
		}
	}
	trim := b.build != "" && keyIs(key, b.build)
	if trim {
		top, inside = b.build, true
		f.build, f.extra = span{}, nil
	}
	f.taskID = f.taskID || b.taskID && keyIs(key, "task_id")
	if !inside || !c.at('{') {
		raw, err := c.value()
		if err != nil || top == "" {
			return err
		}
		for i, p := range b.places {
			if p.sub == "" && p.top == top {
				f.values[i] = raw
			}
		}
		return nil
	}
	if err := c.enter(); err != nil {
		return err
	}
	for first := true; ; first = false {
		m, more, err := c.nextMember(first)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		raw, err := c.value()
		if err != nil {
			return err
		}
		for i, p := range b.places {
			if p.sub != "" && p.top == top && keyIs(m.key, p.sub) {
				f.values[i] = raw
			}
		}
		if trim && keyIs(m.key, "extra") {
			f.extra = raw
		}
	}
	if trim {
		f.build = span{start, c.pos}
	}
	return nil
}

// cutExtra writes the object dict without its member `extra`, or with what of it the configuration keeps. What
// remains is the text that Python's json.dumps gives for the dict without the key.
func (r *Rules) cutExtra(out *strings.Builder, dict []byte) {
	r.copyMembers(out, dict, func(m member, raw []byte) []byte {
		if !keyIs(m.key, "extra") {
			return raw
		}
		if len(r.extraKeep) == 0 || raw[0] != '{' {
			return nil
		}
		var kept strings.Builder
		r.copyMembers(&kept, raw, func(m member, raw []byte) []byte {
			if name, ok := stringValue(m.key); ok && r.extraKeep[name] {
				return raw
			}
			return nil
		})
		if kept.Len() == len("{}") {
			return nil
		}
		return []byte(kept.String())
	})
}

// copyMembers writes an object with the members for which keep gives a value; the text between them stays as it
// is. The object has been passed over before, so that no error can occur.
func (r *Rules) copyMembers(out *strings.Builder, object []byte, keep func(member, []byte) []byte) {
	c := cursor{data: object, room: maxDepth}
	_ = c.enter()
	indent, end, kept := []byte(nil), c.pos, false
	out.WriteByte('{')
	for first := true; ; first = false {
		m, more, err := c.nextMember(first)
		if err != nil || !more {
			break
		}
		between := object[end:m.start]
		if first {
			indent = between
		}
		colon := object[m.start:c.pos]
		raw, _ := c.value()
		end = c.pos
		value := keep(m, raw)
		if value == nil {
			continue
		}
		if !kept {
			between = indent // the separator belonged to a member that is gone
		}
		out.Write(between)
		out.Write(colon)
		out.Write(value)
		kept = true
	}
	if kept {
		out.Write(object[end:])
	} else {
		out.WriteByte('}')
	}
}

// pythonLen is the number of characters that Python's json.dumps gives for the value raw, with its default
// separators and ASCII escapes, however raw itself is spaced and escaped. It builds nothing.
func pythonLen(raw []byte) int {
	n := 0
	for i := 0; i < len(raw); {
		switch b := raw[i]; b {
		case ' ', '\t', '\r', '\n':
			i++
		case ',', ':':
			n += 2
			i++
		case '"':
			length, size := pythonStringLen(raw[i:])
			n += length
			i += size
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			end := i + 1
			for end < len(raw) && bytes.IndexByte([]byte("0123456789+-.eE"), raw[end]) >= 0 {
				end++
			}
			n += pythonNumberLen(raw[i:end])
			i = end
		default: // braces, brackets and the letters of true, false and null
			n++
			i++
		}
	}
	return n
}

// pythonStringLen is the length that Python gives the string at the beginning of raw, and its size in raw, both
// with the quotes.
func pythonStringLen(raw []byte) (length, size int) {
	length = 1
	for i := 1; ; {
		switch b := raw[i]; {
		case b == '"':
			return length + 1, i + 1
		case b == '\\':
			// Each half of a surrogate pair is six characters in both spellings: no need to join them.
			r, n := rune(raw[i+1]), 2
			if r == 'u' {
				r, _ = hex4(raw[i+2:])
				n = 6
			} else {
				r, _ = unescape(raw[i : i+2])
			}
			length += pythonRuneLen(r)
			i += n
		case b < 0x7f:
			length++ // '"', '\\' and control characters are escaped in raw already
			i++
		default:
			r, n := utf8.DecodeRune(raw[i:])
			length += pythonRuneLen(r)
			i += n
		}
	}
}

func pythonRuneLen(r rune) int {
	switch {
	case r == '"', r == '\\', r == '\n', r == '\r', r == '\t', r == '\f', r == '\b':
		return 2
	case r < 0x20, r >= 0x7f && r <= 0xffff: // DEL is not printable: Python escapes it
		return 6
	case r > 0xffff:
		return 12
	}
	return 1
}

func pythonNumberLen(raw []byte) int {
	if isInteger(raw) {
		if string(raw) == "-0" {
			return 1
		}
		return len(raw)
	}
	f, _ := strconv.ParseFloat(string(raw), 64) // out of range is an infinity, as in Python
	var buf [32]byte
	return len(AppendFloat(buf[:0], f))
}
