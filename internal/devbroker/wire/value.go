// Package wire reads and writes the frames of AMQP 1.0 for the embedded broker: values, performatives, and
// the little of a message that the broker looks at. It does no I/O but reading a frame, and whatever a peer
// sends costs no more than a bounded multiple of its size.
package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// AMQP types that have no Go type of their own (AMQP 1.0, part 1, section 1.6). The others are nil, bool,
// uint8..uint64, int8..int64, float32, float64, []byte (binary), string and []any (list).
type (
	Symbol    string
	timestamp int64    // milliseconds since the Unix epoch
	uuid      [16]byte // in network order
	char      rune
	decimal   []byte // 4, 8 or 16 bytes as they came
	Pairs     []any  // a map: key, value, key, value, ...
	array     []any  // elements of one type
	Symbols   []Symbol
	Described struct {
		Descriptor any // a uint64, or a symbol for a type that this package does not know
		Value      any
	}
)

// Type constructors (AMQP 1.0, part 1, section 1.6).
const (
	typeDescribed = 0x00
	typeNull      = 0x40
	typeTrue      = 0x41
	typeFalse     = 0x42
	typeUint0     = 0x43
	typeUlong0    = 0x44
	typeList0     = 0x45
	typeUbyte     = 0x50
	typeByte      = 0x51
	typeSmallUint = 0x52
	typeSmallUlng = 0x53
	typeSmallInt  = 0x54
	typeSmallLong = 0x55
	typeBool      = 0x56
	typeUshort    = 0x60
	typeShort     = 0x61
	typeUint      = 0x70
	typeInt       = 0x71
	typeFloat     = 0x72
	typeChar      = 0x73
	typeDecimal32 = 0x74
	typeUlong     = 0x80
	typeLong      = 0x81
	typeDouble    = 0x82
	typeTimestamp = 0x83
	typeDecimal64 = 0x84
	typeDecimal12 = 0x94
	typeUUID      = 0x98
	typeVbin8     = 0xa0
	typeStr8      = 0xa1
	typeSym8      = 0xa3
	typeVbin32    = 0xb0
	typeStr32     = 0xb1
	typeSym32     = 0xb3
	typeList8     = 0xc0
	typeMap8      = 0xc1
	typeList32    = 0xd0
	typeMap32     = 0xd1
	typeArray8    = 0xe0
	typeArray32   = 0xf0
)

// maxDepth and maxElements (of all lists, maps and arrays of one value together) keep a hostile frame from
// costing much more than its size: zero-width elements (null, true, list0 ...) make an array of a few bytes
// claim billions.
const (
	maxDepth    = 32
	maxElements = 1 << 16
)

// decoder reads AMQP values from a byte slice. The values that it returns may share the slice's memory.
type decoder struct {
	rest  []byte
	depth int
	left  *int // elements that may still be claimed; nil = maxElements
}

// Error says what is wrong with the peer's encoding; it ends the connection with amqp:decode-error.
type Error struct{ what string }

func (e *Error) Error() string { return e.what }

// Malformed is an Error, of the encoding or of what is encoded.
func Malformed(format string, args ...any) error {
	return &Error{fmt.Sprintf(format, args...)}
}

func (d *decoder) take(n int) ([]byte, error) {
	if n < 0 || n > len(d.rest) {
		return nil, Malformed("value of %d bytes in the %d that are left", n, len(d.rest))
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) byte() (byte, error) {
	b, err := d.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// length reads a size or count of one byte (wide = false) or four.
func (d *decoder) length(wide bool) (int, error) {
	if !wide {
		b, err := d.byte()
		return int(b), err
	}
	b, err := d.take(4)
	if err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b)
	if n > math.MaxInt32 {
		return 0, Malformed("length %d", n)
	}
	return int(n), nil
}

// Value reads one value with its constructor.
func (d *decoder) value() (any, error) {
	code, err := d.byte()
	if err != nil {
		return nil, err
	}
	if code == typeDescribed {
		return d.described()
	}
	return d.body(code)
}

func (d *decoder) described() (any, error) {
	if d.depth++; d.depth > maxDepth {
		return nil, Malformed("values nested deeper than %d", maxDepth)
	}
	defer func() { d.depth-- }()
	descriptor, err := d.value()
	if err != nil {
		return nil, err
	}
	v, err := d.value()
	if err != nil {
		return nil, err
	}
	return Described{canonicalDescriptor(descriptor), v}, nil
}

// Body reads the value that follows the constructor code.
func (d *decoder) body(code byte) (any, error) {
	switch code >> 4 {
	case 0x4:
		return zeroWidth(code)
	case 0x5, 0x6, 0x7, 0x8, 0x9:
		return d.fixed(code)
	case 0xa, 0xb:
		return d.variable(code)
	case 0xc, 0xd:
		return d.compound(code)
	case 0xe, 0xf:
		return d.array(code)
	}
	return nil, Malformed("unknown type 0x%02x", code)
}

func zeroWidth(code byte) (any, error) {
	switch code {
	case typeNull:
		return nil, nil
	case typeTrue:
		return true, nil
	case typeFalse:
		return false, nil
	case typeUint0:
		return uint32(0), nil
	case typeUlong0:
		return uint64(0), nil
	case typeList0:
		return []any(nil), nil
	}
	return nil, Malformed("unknown type 0x%02x", code)
}

func (d *decoder) fixed(code byte) (any, error) {
	b, err := d.take(1 << (code>>4 - 5))
	if err != nil {
		return nil, err
	}
	switch code {
	case typeUbyte:
		return b[0], nil
	case typeByte:
		return int8(b[0]), nil
	case typeSmallUint:
		return uint32(b[0]), nil
	case typeSmallUlng:
		return uint64(b[0]), nil
	case typeSmallInt:
		return int32(int8(b[0])), nil
	case typeSmallLong:
		return int64(int8(b[0])), nil
	case typeBool:
		if b[0] > 1 {
			return nil, Malformed("boolean 0x%02x", b[0])
		}
		return b[0] == 1, nil
	case typeUshort:
		return binary.BigEndian.Uint16(b), nil
	case typeShort:
		return int16(binary.BigEndian.Uint16(b)), nil
	case typeUint:
		return binary.BigEndian.Uint32(b), nil
	case typeInt:
		return int32(binary.BigEndian.Uint32(b)), nil
	case typeFloat:
		return math.Float32frombits(binary.BigEndian.Uint32(b)), nil
	case typeChar:
		return char(binary.BigEndian.Uint32(b)), nil
	case typeUlong:
		return binary.BigEndian.Uint64(b), nil
	case typeLong:
		return int64(binary.BigEndian.Uint64(b)), nil
	case typeDouble:
		return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
	case typeTimestamp:
		return timestamp(binary.BigEndian.Uint64(b)), nil
	case typeUUID:
		return uuid(b), nil
	case typeDecimal32, typeDecimal64, typeDecimal12:
		return decimal(b), nil
	}
	return nil, Malformed("unknown type 0x%02x", code)
}

func (d *decoder) variable(code byte) (any, error) {
	switch code {
	case typeVbin8, typeStr8, typeSym8, typeVbin32, typeStr32, typeSym32:
	default:
		return nil, Malformed("unknown type 0x%02x", code)
	}
	n, err := d.length(code >= 0xb0)
	if err != nil {
		return nil, err
	}
	b, err := d.take(n)
	if err != nil {
		return nil, err
	}
	switch code {
	case typeVbin8, typeVbin32:
		return b, nil
	case typeStr8, typeStr32:
		return string(b), nil
	}
	return Symbol(b), nil
}

// sub reads the size and the count of a compound or array, and gives a decoder over exactly its bytes.
func (d *decoder) sub(wide bool) (decoder, int, error) {
	size, err := d.length(wide)
	if err != nil {
		return decoder{}, 0, err
	}
	b, err := d.take(size)
	if err != nil {
		return decoder{}, 0, err
	}
	if d.left == nil {
		d.left = new(int)
		*d.left = maxElements
	}
	in := decoder{rest: b, depth: d.depth + 1, left: d.left}
	if in.depth > maxDepth {
		return decoder{}, 0, Malformed("values nested deeper than %d", maxDepth)
	}
	count, err := in.length(wide)
	if err != nil {
		return decoder{}, 0, err
	}
	if *d.left -= count; *d.left < 0 {
		return decoder{}, 0, Malformed("more than %d elements", maxElements)
	}
	return in, count, nil
}

func (d *decoder) compound(code byte) (any, error) {
	isMap := code == typeMap8 || code == typeMap32
	if !isMap && code != typeList8 && code != typeList32 {
		return nil, Malformed("unknown type 0x%02x", code)
	}
	in, count, err := d.sub(code >= 0xd0)
	if err != nil {
		return nil, err
	}
	if count > len(in.rest) {
		return nil, Malformed("%d elements in %d bytes", count, len(in.rest))
	}
	if isMap && count%2 != 0 {
		return nil, Malformed("map of %d elements", count)
	}
	elements := make([]any, 0, count)
	for range count {
		v, err := in.value()
		if err != nil {
			return nil, err
		}
		elements = append(elements, v)
	}
	if len(in.rest) != 0 {
		return nil, Malformed("%d bytes after the last element", len(in.rest))
	}
	if isMap {
		return Pairs(elements), nil
	}
	return elements, nil
}

func (d *decoder) array(code byte) (any, error) {
	if code != typeArray8 && code != typeArray32 {
		return nil, Malformed("unknown type 0x%02x", code)
	}
	in, count, err := d.sub(code >= 0xf0)
	if err != nil {
		return nil, err
	}
	element, err := in.byte()
	if err != nil {
		return nil, err
	}
	var descriptor any
	isDescribed := element == typeDescribed
	if isDescribed {
		if descriptor, err = in.value(); err != nil {
			return nil, err
		}
		if element, err = in.byte(); err != nil {
			return nil, err
		}
	}
	elements := make(array, 0, min(count, 64))
	for range count {
		v, err := in.body(element)
		if err != nil {
			return nil, err
		}
		if isDescribed {
			v = Described{canonicalDescriptor(descriptor), v}
		}
		elements = append(elements, v)
	}
	if len(in.rest) != 0 {
		return nil, Malformed("%d bytes after the last element", len(in.rest))
	}
	return elements, nil
}
