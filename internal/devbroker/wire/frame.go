package wire

import (
	"encoding/binary"
	"io"
)

// A frame (AMQP 1.0, part 2, section 2.3):
//
//	+----------+------+------+---------+------------------+--------------+---------+
//	| size: 4  | doff | type | channel | extended header  | performative | payload |
//	|          |  1   |  1   |    2    | doff*4 - 8 bytes |              |         |
//	+----------+------+------+---------+------------------+--------------+---------+
//
// An empty body is a heartbeat.
type Frame struct {
	Kind    byte
	Channel uint16
	Body    []byte
}

const (
	FrameAMQP    = 0
	FrameSASL    = 1
	frameHead    = 8
	MinFrameSize = 512 // every peer must take frames of this size
)

// ReadFrame reads one frame of at most limit bytes. It blocks until r has one. Since limit is what this side
// announced, a false size costs at most that much.
func ReadFrame(r io.Reader, limit uint32) (Frame, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	offset := uint32(head[4]) * 4
	if offset < frameHead || size < offset || size > limit {
		return Frame{}, Malformed("frame of %d bytes with offset %d where at most %d bytes are allowed", size,
			offset, limit)
	}
	body := make([]byte, size-frameHead)
	if _, err := io.ReadFull(r, body); err != nil {
		return Frame{}, err
	}
	return Frame{Kind: head[5], Channel: binary.BigEndian.Uint16(head[6:]), Body: body[offset-frameHead:]}, nil
}

// Performative decodes the frame's performative; the rest of the body is its payload.
func (f Frame) Performative() (Described, []byte, error) {
	d := decoder{rest: f.Body}
	v, err := d.value()
	if err != nil {
		return Described{}, nil, err
	}
	p, ok := v.(Described)
	if !ok {
		return Described{}, nil, Malformed("frame body begins with a %T", v)
	}
	return p, d.rest, nil
}

// AppendFrame appends a frame that holds the described list and the payload. Payload may be nil.
func AppendFrame(b []byte, kind byte, channel uint16, code uint64, list []any, payload []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 2, kind, byte(channel>>8), byte(channel))
	b = appendValue(b, Described{code, list})
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// Heartbeat is an empty frame on channel 0.
var Heartbeat = []byte{0, 0, 0, 8, 2, FrameAMQP, 0, 0}

// protocol headers; the byte after "AMQP" tells the layer.
const (
	HeaderAMQP = "AMQP\x00\x01\x00\x00"
	HeaderSASL = "AMQP\x03\x01\x00\x00"
)
