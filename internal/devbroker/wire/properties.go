package wire

import (
	"fmt"
	"slices"
	"strconv"
)

// section is where a message's properties are, or would have to be: bytes from begin to end, the same where
// there are none.
type section struct {
	begin, end int
	list       []any
}

// Fields of the properties section (AMQP 1.0, part 3, section 3.2.4).
const (
	fieldMessageID = 0
	fieldTo        = 2
)

// findProperties finds the properties of an encoded message, behind its header and annotations. ok is false
// when the message is not well-formed up to there.
func findProperties(payload []byte) (s section, ok bool) {
	d := decoder{rest: payload}
	for len(d.rest) > 0 {
		s.begin = len(payload) - len(d.rest)
		v, err := d.value()
		part, isSection := v.(Described)
		if err != nil || !isSection {
			return section{}, false
		}
		switch code := part.Code(); {
		case code == codeProperties:
			s.end = len(payload) - len(d.rest)
			s.list, ok = part.Value.([]any)
			return s, ok
		case code > codeProperties:
			s.end = s.begin
			return s, true
		}
	}
	s.begin, s.end = len(payload), len(payload)
	return s, true
}

// BareProperties reads message-id and to from an encoded message. Anything that cannot be decoded gives empty
// strings: the broker passes messages on unseen.
func BareProperties(payload []byte) (id, to string) {
	s, _ := findProperties(payload)
	f := Fields{of: "properties", list: s.list}
	return idText(f.at(fieldMessageID)), FieldOr(&f, fieldTo, "")
}

// FillTo gives the message with its property "to" set to the address, unless it has one. The message is
// copied, but for a new properties section to the byte; one that cannot be decoded, or whose properties are
// of types that the specification does not have there, is given back as it is.
func FillTo(payload []byte, address string) []byte {
	s, ok := findProperties(payload)
	f := Fields{of: "properties", list: s.list}
	if !ok || f.at(fieldTo) != nil || slices.ContainsFunc(s.list, foreign) {
		return payload
	}
	list := slices.Clone(s.list)
	for len(list) <= fieldTo {
		list = append(list, nil)
	}
	list[fieldTo] = address
	out := make([]byte, 0, len(payload)+len(address)+16)
	out = append(out, payload[:s.begin]...)
	out = appendValue(out, Described{uint64(codeProperties), list})
	return append(out, payload[s.end:]...)
}

// foreign reports a value of a type that no field of the properties section has.
func foreign(v any) bool {
	switch v.(type) {
	case nil, string, Symbol, []byte, uint32, uint64, uuid, timestamp:
		return false
	}
	return true
}

func idText(id any) string {
	switch id := id.(type) {
	case string:
		return id
	case uint64:
		return strconv.FormatUint(id, 10)
	case uuid:
		return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	case []byte:
		return string(id)
	}
	return ""
}
