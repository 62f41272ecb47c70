package callbacks

import (
	"bytes"
	"math"
	"strconv"
	"unicode/utf8"
)

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

// pythonStringLen is the length that Python gives the string at the beginning of raw, and its size in raw,
// both with the quotes.
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

// AppendFloat appends f as Python writes it (repr, and so json.dumps): the shortest digits that give f back,
// always with a point or an exponent.
func AppendFloat(dst []byte, f float64) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64) // two digits of exponent at least, in both languages
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if bytes.IndexByte(dst[start:], '.') < 0 {
		dst = append(dst, ".0"...)
	}
	return dst
}
