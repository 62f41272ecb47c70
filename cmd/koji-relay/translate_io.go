package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime/debug"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// lineReader reads lines of any length, with a buffer that grows to little more than the longest one.
// bufio.Reader would hold a long line twice, and bufio.Scanner doubles its buffer.
type lineReader struct {
	r          io.Reader
	buf        []byte
	start, end int // what of buf is read and not given out
	count      int // lines given out
	err        error
}

const (
	firstBuffer = 64 << 10
	// largeBuffer is the size from which memory is kept in bounds at the cost of time.
	largeBuffer = 8 << 20
)

// next gives a line without its newline, valid until the next call, or io.EOF.
func (l *lineReader) next() ([]byte, error) {
	searched := l.start
	for {
		if i := bytes.IndexByte(l.buf[searched:l.end], '\n'); i >= 0 {
			line := l.buf[l.start : searched+i]
			l.start = searched + i + 1
			l.count++
			return line, nil
		}
		searched = l.end
		if l.err != nil {
			break
		}
		if l.end == len(l.buf) {
			searched -= l.start
			l.makeRoom()
		}
		var n int
		n, l.err = l.r.Read(l.buf[l.end:])
		l.end += n
	}
	if l.start == l.end || !errors.Is(l.err, io.EOF) {
		return nil, l.err
	}
	line := l.buf[l.start:l.end] // the last line need not end
	l.start = l.end
	l.count++
	return line, nil
}

// buffered reports whether more input is at hand.
func (l *lineReader) buffered() bool { return l.start < l.end }

// makeRoom moves what is not given out to the front of the buffer, of a larger one where it fills this one. A large
// buffer grows by a quarter and its predecessor is given back at once: input of 1 GB must fit in a small
// multiple of its longest line, and the collector by itself would let garbage double that.
func (l *lineReader) makeRoom() {
	if l.start > 0 {
		l.end = copy(l.buf, l.buf[l.start:l.end])
		l.start = 0
		return
	}
	size := max(2*len(l.buf), firstBuffer)
	if len(l.buf) >= largeBuffer {
		size = len(l.buf) + len(l.buf)/4
	}
	larger := make([]byte, size)
	copy(larger, l.buf)
	l.buf = larger
	if size > largeBuffer {
		debug.SetGCPercent(25)
		debug.FreeOSMemory()
	}
}

// messagePrinter writes messages as JSON Lines in the spelling of Python's json.dumps (", " and ": ", ASCII only),
// straight into its writer: a body is not copied once more to be escaped.
type messagePrinter struct {
	w       *bufio.Writer
	scratch []byte
}

// print writes one message. The writer keeps the first error for Flush.
func (p *messagePrinter) print(m *message.Message, target string) {
	p.raw(`{"commit": `)
	p.string(m.Commit)
	p.raw(`, "event": `)
	p.scratch = strconv.AppendInt(p.scratch[:0], int64(m.Event), 10)
	_, _ = p.w.Write(p.scratch)
	p.raw(`, "callback": `)
	p.string(m.Callback)
	p.raw(`, "address": `)
	p.string(m.Address)
	p.raw(`, "target": `)
	p.string(target)
	p.raw(`, "message_id": `)
	p.string(m.ID)
	p.raw(`, "props": [`)
	for i, prop := range m.Props {
		if i > 0 {
			p.raw(", ")
		}
		p.raw("[")
		p.string(prop.Key)
		p.raw(", ")
		p.value(prop.Value)
		p.raw("]")
	}
	p.raw(`], "body": `)
	p.string(m.Body)
	p.raw("}\n")
}

// value writes an application-property's AMQP type and value.
func (p *messagePrinter) value(value any) {
	switch v := value.(type) {
	case string:
		p.raw(`"string", `)
		p.string(v)
	case int64:
		p.raw(`"long", `)
		p.raw(strconv.FormatInt(v, 10))
	case float64:
		p.raw(`"double", `)
		p.scratch = callbacks.AppendFloat(p.scratch[:0], v)
		_, _ = p.w.Write(p.scratch)
	case bool:
		p.raw(`"boolean", `)
		p.raw(strconv.FormatBool(v))
	case nil:
		p.raw(`"null", null`)
	case json.RawMessage:
		p.raw(`"unencodable", `)
		_, _ = p.w.Write(v)
	default:
		panic("translate: a prop of a type that message.Prop does not have")
	}
}

func (p *messagePrinter) raw(s string) { _, _ = p.w.WriteString(s) }

// string writes s, which is valid UTF-8, quoted.
func (p *messagePrinter) string(s string) {
	_ = p.w.WriteByte('"')
	plain := 0
	for i := 0; i < len(s); {
		b := s[i]
		if b >= 0x20 && b < 0x7f && b != '"' && b != '\\' {
			i++
			continue
		}
		p.raw(s[plain:i])
		r, size := utf8.DecodeRuneInString(s[i:])
		p.escape(r)
		i += size
		plain = i
	}
	p.raw(s[plain:])
	_ = p.w.WriteByte('"')
}

// escape writes the JSON escape of a character.
func (p *messagePrinter) escape(r rune) {
	switch r {
	case '"', '\\':
		p.scratch = append(p.scratch[:0], '\\', byte(r))
	case '\n':
		p.scratch = append(p.scratch[:0], `\n`...)
	case '\r':
		p.scratch = append(p.scratch[:0], `\r`...)
	case '\t':
		p.scratch = append(p.scratch[:0], `\t`...)
	case '\f':
		p.scratch = append(p.scratch[:0], `\f`...)
	case '\b':
		p.scratch = append(p.scratch[:0], `\b`...)
	default:
		p.scratch = p.scratch[:0]
		if high, low := utf16.EncodeRune(r); high != utf8.RuneError {
			p.scratch = appendUnit(appendUnit(p.scratch, high), low)
		} else {
			p.scratch = appendUnit(p.scratch, r)
		}
	}
	_, _ = p.w.Write(p.scratch)
}

// appendUnit appends the escape of one UTF-16 unit.
func appendUnit(dst []byte, unit rune) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[unit>>12&15], hex[unit>>8&15], hex[unit>>4&15], hex[unit&15])
}
