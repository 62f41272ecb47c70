// Package frame reads the encoded values and performatives of AMQP 1.0, as far as the login and the guard
// need them. It promises bounded time for any input. It copies nothing.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The performatives that we look at (AMQP 1.0 transport, section 2.7; messaging, section 3.4).
const (
	Open        = 0x10
	Begin       = 0x11
	Flow        = 0x13
	Transfer    = 0x14
	Disposition = 0x15
	End         = 0x17

	Accepted = 0x24
	Rejected = 0x25
	Released = 0x26
	Modified = 0x27
)

// ErrMalformed is what every error of this package wraps.
var ErrMalformed = errors.New("malformed frame")

// maxNesting bounds how deep values may stand in each other. Those of real brokers do so up to five.
const maxNesting = 32

// Size is how many bytes the encoded value at the beginning of b takes, its constructor included.
func Size(b []byte) (int, error) { return nestedSize(b, maxNesting) }

func nestedSize(b []byte, depth int) (int, error) {
	if len(b) == 0 || depth == 0 {
		return 0, ErrMalformed
	}
	size := 0
	switch kind := b[0]; kind >> 4 {
	case 0x0: // a descriptor and a value
		descriptor, err := nestedSize(b[1:], depth-1)
		if err != nil {
			return 0, err
		}
		value, err := nestedSize(b[1+descriptor:], depth-1)
		if err != nil {
			return 0, err
		}
		return 1 + descriptor + value, nil
	case 0x4:
		size = 1
	case 0x5:
		size = 2
	case 0x6:
		size = 3
	case 0x7:
		size = 5
	case 0x8:
		size = 9
	case 0x9:
		size = 17
	case 0xa, 0xc, 0xe:
		if len(b) < 2 {
			return 0, ErrMalformed
		}
		size = 2 + int(b[1])
	case 0xb, 0xd, 0xf:
		if len(b) < 5 {
			return 0, ErrMalformed
		}
		size = 5 + int(binary.BigEndian.Uint32(b[1:5]))
	}
	if size == 0 || size > len(b) {
		return 0, ErrMalformed
	}
	return size, nil
}

// Performative is a described list: its code, and its fields as far as they are read.
type Performative struct {
	Code   uint64
	Fields []byte
	left   int // of the fields
}

// Parse reads the beginning of b. The fields are read by Next.
func Parse(b []byte) (Performative, error) {
	var p Performative
	switch {
	case len(b) >= 3 && b[0] == 0 && b[1] == 0x53:
		p.Code, b = uint64(b[2]), b[3:]
	case len(b) >= 10 && b[0] == 0 && b[1] == 0x80:
		p.Code, b = binary.BigEndian.Uint64(b[2:10]), b[10:]
	default:
		return p, ErrMalformed
	}
	var ok bool
	if p.Fields, p.left, ok = Items(b); !ok {
		return p, ErrMalformed
	}
	return p, nil
}

// Items gives the encoded items of a list or map, and how many they are.
func Items(b []byte) (content []byte, count int, ok bool) {
	switch {
	case len(b) >= 1 && b[0] == 0x45:
		return nil, 0, true
	case len(b) >= 3 && (b[0] == 0xc0 || b[0] == 0xc1):
		size := int(b[1])
		if size < 1 || len(b)-2 < size {
			return nil, 0, false
		}
		return b[3 : 2+size], int(b[2]), true
	case len(b) >= 9 && (b[0] == 0xd0 || b[0] == 0xd1):
		size := binary.BigEndian.Uint32(b[1:5])
		if size < 4 || uint64(len(b)-5) < uint64(size) {
			return nil, 0, false
		}
		return b[9 : 5+size], int(binary.BigEndian.Uint32(b[5:9])), true
	}
	return nil, 0, false
}

// Next gives the next field, encoded; null where the list has ended.
func (p *Performative) Next() ([]byte, error) {
	if p.left <= 0 {
		return null, nil
	}
	n, err := Size(p.Fields)
	if err != nil {
		return nil, err
	}
	field := p.Fields[:n]
	p.Fields, p.left = p.Fields[n:], p.left-1
	return field, nil
}

var null = []byte{0x40}

// IsNull reports whether an encoded field is null.
func IsNull(field []byte) bool { return field[0] == 0x40 }

// Skip passes over so many fields.
func (p *Performative) Skip(fields int) error {
	for range fields {
		if _, err := p.Next(); err != nil {
			return err
		}
	}
	return nil
}

// Number reads the next field, an unsigned number or a boolean; absent is what null means.
func (p *Performative) Number(absent uint32) (uint32, error) {
	field, err := p.Next()
	if err != nil {
		return 0, err
	}
	return Number(field, absent)
}

// Number reads an encoded unsigned number or boolean; absent is what null means.
func Number(field []byte, absent uint32) (uint32, error) {
	switch kind := field[0]; {
	case kind == 0x40:
		return absent, nil
	case kind == 0x41:
		return 1, nil
	case kind == 0x42, kind == 0x43, kind == 0x44:
		return 0, nil
	case kind == 0x50, kind == 0x52, kind == 0x56: // ubyte, small uint, boolean
		return uint32(field[1]), nil
	case kind == 0x60:
		return uint32(binary.BigEndian.Uint16(field[1:])), nil
	case kind == 0x70:
		return binary.BigEndian.Uint32(field[1:]), nil
	}
	return 0, fmt.Errorf("%w: constructor %#02x in place of a number", ErrMalformed, field[0])
}

// Flag is Number for a boolean.
func (p *Performative) Flag() (bool, error) {
	n, err := p.Number(0)
	return n != 0, err
}

// Unlimited is what an absent limit means.
const Unlimited = math.MaxUint32
