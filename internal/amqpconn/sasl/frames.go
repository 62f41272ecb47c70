package sasl

import (
	"encoding/binary"
	"fmt"
	"io"

	"koji-relay/internal/amqpconn/frame"
)

// The performatives that are used (AMQP 1.0 security, section 5.3.3).
const (
	codeMechanisms = 0x40
	codeInit       = 0x41
	codeOutcome    = 0x44
)

// maxFrame is generous: the specification allows 512 bytes.
const maxFrame = 1 << 16

// protocol is the header by which both sides begin.
var protocol = []byte{'A', 'M', 'Q', 'P', 3, 1, 0, 0}

// initFrame encodes sasl-init. The response is present even if empty: without one a server sends a challenge.
func initFrame(mechanism string, response []byte) []byte {
	var list []byte
	list = append(list, 0xa3, byte(len(mechanism)))
	list = append(list, mechanism...)
	list = append(list, 0xb0)
	list = binary.BigEndian.AppendUint32(list, uint32(len(response)))
	list = append(list, response...)

	body := []byte{0x00, 0x53, codeInit, 0xd0}
	body = binary.BigEndian.AppendUint32(body, uint32(4+len(list)))
	body = binary.BigEndian.AppendUint32(body, 2)
	body = append(body, list...)

	frame := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	frame = append(frame, 2, 1, 0, 0)
	return append(frame, body...)
}

// readFrame reads one frame and returns the encoded fields of its performative, which must be the wanted one.
func readFrame(r io.Reader, want byte) ([]byte, error) {
	var header [8]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	size, offset := binary.BigEndian.Uint32(header[:4]), 4*uint32(header[4])
	if size < offset || offset < 8 || size > maxFrame {
		return nil, fmt.Errorf("read SASL frame: size %d with offset %d is not a SASL frame", size, offset)
	}
	body := make([]byte, size-8)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	p, err := frame.Parse(body[offset-8:])
	if err != nil {
		return nil, fmt.Errorf("read SASL frame: %w", err)
	}
	if p.Code != uint64(want) {
		return nil, fmt.Errorf("read SASL frame: got performative %#x in place of %#x", p.Code, want)
	}
	return p.Fields, nil
}

// parseMechanisms reads the one field of sasl-mechanisms: an array of symbols, or a single symbol.
func parseMechanisms(field []byte) ([]string, error) {
	if len(field) == 0 {
		return nil, frame.ErrMalformed
	}
	kind, rest := field[0], field[1:]
	var count uint64
	switch {
	case kind == 0xa3 || kind == 0xb3: // a lone symbol
		symbol, _, ok := cutSymbol(kind, rest)
		if !ok {
			return nil, frame.ErrMalformed
		}
		return []string{symbol}, nil
	case kind == 0xe0 && len(rest) >= 3:
		count, kind, rest = uint64(rest[1]), rest[2], rest[3:]
	case kind == 0xf0 && len(rest) >= 9:
		count, kind, rest = uint64(binary.BigEndian.Uint32(rest[4:8])), rest[8], rest[9:]
	default:
		return nil, frame.ErrMalformed
	}
	var all []string
	for ; count > 0; count-- {
		symbol, after, ok := cutSymbol(kind, rest)
		if !ok {
			return nil, frame.ErrMalformed
		}
		all, rest = append(all, symbol), after
	}
	return all, nil
}

// cutSymbol splits the first symbol, encoded without its constructor, from text.
func cutSymbol(kind byte, text []byte) (symbol string, rest []byte, ok bool) {
	var size uint64
	switch {
	case kind == 0xa3 && len(text) >= 1:
		size, text = uint64(text[0]), text[1:]
	case kind == 0xb3 && len(text) >= 4:
		size, text = uint64(binary.BigEndian.Uint32(text)), text[4:]
	default:
		return "", nil, false
	}
	if uint64(len(text)) < size {
		return "", nil, false
	}
	return string(text[:size]), text[size:], true
}

// parseOutcome reads the code, the first field of sasl-outcome.
func parseOutcome(fields []byte) (byte, error) {
	if len(fields) < 2 || fields[0] != 0x50 {
		return 0, frame.ErrMalformed
	}
	return fields[1], nil
}
