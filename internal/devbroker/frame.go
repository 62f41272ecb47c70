package devbroker

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
type frame struct {
	kind    byte
	channel uint16
	body    []byte
}

const (
	frameAMQP    = 0
	frameSASL    = 1
	frameHead    = 8
	minFrameSize = 512 // every peer must take frames of this size
)

// readFrame reads one frame of at most limit bytes. It blocks until r has one. Since limit is what this side
// announced, a false size costs at most that much.
func readFrame(r io.Reader, limit uint32) (frame, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(head[:])
	offset := uint32(head[4]) * 4
	if offset < frameHead || size < offset || size > limit {
		return frame{}, malformed("frame of %d bytes with offset %d where at most %d bytes are allowed", size, offset, limit)
	}
	body := make([]byte, size-frameHead)
	if _, err := io.ReadFull(r, body); err != nil {
		return frame{}, err
	}
	return frame{kind: head[5], channel: binary.BigEndian.Uint16(head[6:]), body: body[offset-frameHead:]}, nil
}

// performative decodes the frame's performative; the rest of the body is its payload.
func (f frame) performative() (described, []byte, error) {
	d := decoder{rest: f.body}
	v, err := d.value()
	if err != nil {
		return described{}, nil, err
	}
	p, ok := v.(described)
	if !ok {
		return described{}, nil, malformed("frame body begins with a %T", v)
	}
	return p, d.rest, nil
}

// appendFrame appends a frame that holds the described list and the payload. Payload may be nil.
func appendFrame(b []byte, kind byte, channel uint16, code uint64, list []any, payload []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 2, kind, byte(channel>>8), byte(channel))
	b = appendValue(b, described{code, list})
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// heartbeat is an empty frame on channel 0.
var heartbeat = []byte{0, 0, 0, 8, 2, frameAMQP, 0, 0}

// protocol headers; the byte after "AMQP" tells the layer.
const (
	headerAMQP = "AMQP\x00\x01\x00\x00"
	headerSASL = "AMQP\x03\x01\x00\x00"
)
