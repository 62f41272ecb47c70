package callbacks

import (
	"bytes"
	"fmt"
	"strconv"
)

// cursor reads JSON text in place: it finds where values begin and end and changes nothing. encoding/json
// cannot serve here: it gives no offsets of members, and its RawMessage copies each level of nesting once
// more.
//
// It accepts exactly JSON's grammar (RFC 8259), except that it does not look at the encoding: bytes
// above 0x7f in a string pass. Callers check UTF-8 where they need it.
type cursor struct {
	data []byte
	pos  int
	room int      // further levels of nesting that are allowed
	bits []uint64 // of the last value's nesting, for the next one
}

// syntaxError says where text stops being JSON.
type syntaxError struct {
	offset int
	what   string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("byte %d: %s", e.offset, e.what) }

func (c *cursor) fail(what string) error { return &syntaxError{c.pos, what} }

// unexpected is the error for the byte at the cursor, or for the end of the text.
func (c *cursor) unexpected(wanted string) error {
	if c.pos >= len(c.data) {
		return c.fail("the text ends where " + wanted + " should be")
	}
	return c.fail("found " + strconv.QuoteToASCII(string(c.data[c.pos:c.pos+1])) + " where " + wanted +
		" should be")
}

// space passes over white space and gives the byte at the cursor, or 0 at the end.
func (c *cursor) space() byte {
	for ; c.pos < len(c.data); c.pos++ {
		switch b := c.data[c.pos]; b {
		case ' ', '\n', '\t', '\r':
		default:
			return b
		}
	}
	return 0
}

// end fails unless only white space is left.
func (c *cursor) end() error {
	c.space()
	if c.pos < len(c.data) {
		return c.fail("text after the end of the JSON value")
	}
	return nil
}

// enter steps into the object or array at the cursor, which the caller has seen there.
func (c *cursor) enter() error {
	if c.room == 0 {
		return c.fail("values are nested too deeply")
	}
	c.room--
	c.pos++
	return nil
}

// member is one key of an object, with its quotes and escapes; start is its offset.
type member struct {
	key   []byte
	start int
}

// nextMember moves to the next value of the object that enter stepped into; at the object's end more is false
// and the cursor stands behind it. The caller passes over the value before it calls again.
func (c *cursor) nextMember(first bool) (m member, more bool, err error) {
	if more, err = c.nextElement(first, '}'); !more {
		return member{}, false, err
	}
	m.start = c.pos
	m.key, err = c.key()
	c.space()
	return m, err == nil, err
}

// nextElement moves to the next element of the array, or member of the object, that ends with closing.
func (c *cursor) nextElement(first bool, closing byte) (more bool, err error) {
	b := c.space()
	if b == closing {
		c.pos++
		c.room++
		return false, nil
	}
	if first {
		return true, nil
	}
	if b != ',' {
		return false, c.unexpected("',' or '" + string(closing) + "'")
	}
	c.pos++
	c.space()
	return true, nil
}

// key passes over a member's name and colon.
func (c *cursor) key() ([]byte, error) {
	if c.space() != '"' {
		return nil, c.unexpected("a member's name")
	}
	key, err := c.string()
	if err != nil {
		return nil, err
	}
	if c.space() != ':' {
		return nil, c.unexpected("':'")
	}
	c.pos++
	return key, nil
}

// nesting remembers, one bit for each open level, whether that is an object. It does not recurse, so that
// text made to nest deeply costs an eighth of its size and not the process.
type nesting struct {
	bits  []uint64
	depth int
}

func (n *nesting) push(object bool) {
	if n.depth%64 == 0 {
		n.bits = append(n.bits, 0)
	}
	if object {
		n.bits[n.depth/64] |= 1 << (n.depth % 64)
	}
	n.depth++
}

func (n *nesting) pop() {
	n.depth--
	n.bits[n.depth/64] &^= 1 << (n.depth % 64)
	if n.depth%64 == 0 {
		n.bits = n.bits[:n.depth/64]
	}
}

func (n *nesting) object() bool {
	return n.bits[(n.depth-1)/64]&(1<<((n.depth-1)%64)) != 0
}

// value passes over the value at the cursor and gives its text.
func (c *cursor) value() ([]byte, error) {
	open := nesting{bits: c.bits[:0]}
	c.space()
	start := c.pos
	for {
		nested, err := c.token(&open)
		if err != nil {
			return nil, err
		}
		if nested {
			continue
		}
		if done, err := c.close(&open); done || err != nil {
			c.bits = open.bits
			return c.data[start:c.pos], err
		}
	}
}

// token passes over a scalar, an empty container, or the beginning of another one: then nested is true and
// the cursor stands where a value must follow.
func (c *cursor) token(open *nesting) (nested bool, err error) {
	switch b := c.space(); b {
	case '"':
		_, err = c.string()
	case '{', '[':
		if open.depth >= c.room {
			return false, c.fail("values are nested too deeply")
		}
		c.pos++
		if c.space() == b+2 { // '}' is '{' + 2, ']' is '[' + 2
			c.pos++
			return false, nil
		}
		open.push(b == '{')
		if b == '{' {
			_, err = c.key()
		}
		return err == nil, err
	case 't':
		err = c.literal("true")
	case 'f':
		err = c.literal("false")
	case 'n':
		err = c.literal("null")
	default:
		err = c.number()
	}
	return false, err
}

// close passes over what ends containers after a value; done means that none is open any more. Otherwise the
// cursor stands where the next value must follow.
func (c *cursor) close(open *nesting) (done bool, err error) {
	for open.depth > 0 {
		object := open.object()
		switch b := c.space(); {
		case b == ',':
			c.pos++
			if object {
				_, err = c.key()
			}
			return false, err
		case b == '}' && object, b == ']' && !object:
			c.pos++
			open.pop()
		case object:
			return false, c.unexpected("',' or '}'")
		default:
			return false, c.unexpected("',' or ']'")
		}
	}
	return true, nil
}

func (c *cursor) literal(word string) error {
	if !bytes.HasPrefix(c.data[c.pos:], []byte(word)) {
		return c.unexpected("a value")
	}
	c.pos += len(word)
	return nil
}

// number passes over -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?.
func (c *cursor) number() error {
	if c.at('-') {
		c.pos++
	}
	switch {
	case c.at('0'):
		c.pos++
	case !c.digits():
		return c.unexpected("a value")
	}
	if c.at('.') {
		c.pos++
		if !c.digits() {
			return c.unexpected("a digit")
		}
	}
	if c.at('e') || c.at('E') {
		c.pos++
		if c.at('+') || c.at('-') {
			c.pos++
		}
		if !c.digits() {
			return c.unexpected("a digit")
		}
	}
	return nil
}

func (c *cursor) at(b byte) bool { return c.pos < len(c.data) && c.data[c.pos] == b }

// digits passes over digits and reports whether there were any.
func (c *cursor) digits() bool {
	start := c.pos
	for c.pos < len(c.data) && c.data[c.pos]-'0' <= 9 {
		c.pos++
	}
	return c.pos > start
}

// plain marks the bytes that stand for themselves inside a string.
var plain = func() (t [256]bool) {
	for b := 0x20; b < len(t); b++ {
		t[b] = b != '"' && b != '\\'
	}
	return t
}()

// string passes over the string at the cursor and gives its text with the quotes.
func (c *cursor) string() ([]byte, error) {
	start, i := c.pos, c.pos+1
	for {
		for i < len(c.data) && plain[c.data[i]] {
			i++
		}
		c.pos = i
		if i >= len(c.data) {
			return nil, c.fail("the text ends inside a string")
		}
		switch c.data[i] {
		case '"':
			c.pos++
			return c.data[start:c.pos], nil
		case '\\':
			n := escapeLen(c.data[i:])
			if n == 0 {
				return nil, c.fail("an escape that JSON does not have")
			}
			i += n
		default:
			return nil, c.fail("a control character inside a string")
		}
	}
}

// escapeLen is the length of the escape that text begins with, 0 if it is none.
func escapeLen(text []byte) int {
	if len(text) < 2 {
		return 0
	}
	switch text[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if _, ok := hex4(text[2:]); ok {
			return 6
		}
	}
	return 0
}

// hex4 reads the four hexadecimal digits that text begins with.
func hex4(text []byte) (r rune, ok bool) {
	if len(text) < 4 {
		return 0, false
	}
	for _, b := range text[:4] {
		switch {
		case b-'0' <= 9:
			b -= '0'
		case b|0x20 >= 'a' && b|0x20 <= 'f':
			b = b | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(b)
	}
	return r, true
}
