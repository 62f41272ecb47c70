package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// lineReader reads lines of any length. Before it waits for more input it flushes out: what is translated
// shows at once, and in a file that is once a buffer. bufio.Scanner would search a long line again after each
// read.
type lineReader struct {
	r    *bufio.Reader
	long []byte // a line that is longer than r's buffer
}

func newLineReader(r io.Reader, out *bufio.Writer) lineReader {
	return lineReader{r: bufio.NewReaderSize(flushingReader{r, out}, 64<<10)}
}

// next gives a line, valid until the next call, or io.EOF. The last line need not end.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	l.long = l.long[:0]
	for errors.Is(err, bufio.ErrBufferFull) {
		l.long = append(l.long, line...)
		line, err = l.r.ReadSlice('\n')
	}
	l.long = append(l.long, line...)
	return l.long, err
}

type flushingReader struct {
	r   io.Reader
	out *bufio.Writer
}

func (f flushingReader) Read(p []byte) (int, error) {
	_ = f.out.Flush() // the writer keeps its error
	return f.r.Read(p)
}

// messagePrinter writes messages as JSON Lines in the spelling of Python's json.dumps (", " and ": ", ASCII
// only), straight into its writer: a body is not copied once more to be escaped.
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
