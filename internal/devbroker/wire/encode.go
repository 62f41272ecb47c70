package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// appendValue appends v with the shortest constructor for it. It panics on a Go type that is not an AMQP
// value: that is a mistake in this package, since only the broker's own frames are encoded.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, typeNull)
	case bool:
		if v {
			return append(b, typeTrue)
		}
		return append(b, typeFalse)
	case uint8:
		return append(b, typeUbyte, v)
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, typeUshort), v)
	case uint32:
		return appendUint(b, v)
	case uint64:
		return appendUlong(b, v)
	case int32:
		if v >= math.MinInt8 && v <= math.MaxInt8 {
			return append(b, typeSmallInt, byte(v))
		}
		return binary.BigEndian.AppendUint32(append(b, typeInt), uint32(v))
	case int64:
		if v >= math.MinInt8 && v <= math.MaxInt8 {
			return append(b, typeSmallLong, byte(v))
		}
		return binary.BigEndian.AppendUint64(append(b, typeLong), uint64(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, typeDouble), math.Float64bits(v))
	case timestamp:
		return binary.BigEndian.AppendUint64(append(b, typeTimestamp), uint64(v))
	case uuid:
		return append(append(b, typeUUID), v[:]...)
	case []byte:
		return appendVariable(b, typeVbin8, string(v))
	case string:
		return appendVariable(b, typeStr8, v)
	case Symbol:
		return appendVariable(b, typeSym8, string(v))
	case Symbols:
		return appendSymbols(b, v)
	case []any:
		return appendCompound(b, typeList8, trimNulls(v))
	case Pairs:
		return appendCompound(b, typeMap8, v)
	case Described:
		b = appendValue(append(b, typeDescribed), v.Descriptor)
		return appendValue(b, v.Value)
	}
	panic(fmt.Sprintf("wire: encode %T", v))
}

func appendUint(b []byte, v uint32) []byte {
	switch {
	case v == 0:
		return append(b, typeUint0)
	case v <= math.MaxUint8:
		return append(b, typeSmallUint, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, typeUint), v)
}

func appendUlong(b []byte, v uint64) []byte {
	switch {
	case v == 0:
		return append(b, typeUlong0)
	case v <= math.MaxUint8:
		return append(b, typeSmallUlng, byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, typeUlong), v)
}

// appendVariable appends s with the one-byte constructor short, or with its four-byte sibling.
func appendVariable(b []byte, short byte, s string) []byte {
	if len(s) <= math.MaxUint8 {
		return append(append(b, short, byte(len(s))), s...)
	}
	b = binary.BigEndian.AppendUint32(append(b, short+0x10), uint32(len(s)))
	return append(b, s...)
}

// appendCompound appends a list or map; short is its one-byte constructor.
func appendCompound(b []byte, short byte, elements []any) []byte {
	if len(elements) == 0 && short == typeList8 {
		return append(b, typeList0)
	}
	start := len(b)
	b = append(b, short+0x10, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, e := range elements {
		b = appendValue(b, e)
	}
	const head, shortHead = 9, 3
	size := len(b) - start - head // bytes of the elements
	if size+1 <= math.MaxUint8 && len(elements) <= math.MaxUint8 {
		copy(b[start+shortHead:], b[start+head:])
		b = b[:start+shortHead+size]
		b[start], b[start+1], b[start+2] = short, byte(size+1), byte(len(elements))
		return b
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(size+4))
	binary.BigEndian.PutUint32(b[start+5:], uint32(len(elements)))
	return b
}

// appendSymbols appends an array of symbols: the form of every field of the protocol that may hold several.
func appendSymbols(b []byte, v Symbols) []byte {
	start := len(b)
	b = append(b, typeArray32, 0, 0, 0, 0, 0, 0, 0, 0, typeSym32)
	for _, s := range v {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(len(b)-start-5))
	binary.BigEndian.PutUint32(b[start+5:], uint32(len(v)))
	return b
}

// trimNulls drops trailing nulls: a field that is not there is null.
func trimNulls(list []any) []any {
	for len(list) > 0 && list[len(list)-1] == nil {
		list = list[:len(list)-1]
	}
	return list
}
