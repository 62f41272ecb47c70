package history

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"koji-relay/internal/message"
)

// The words of Koji's events, in the order in which its JSON has them. A message of 1 to 2 KiB is too short
// to be compressed well by itself; with these words known beforehand it takes half. A change of the file
// needs a new number: old messages are read with the old one.
//
//go:embed words1.txt
var words1 []byte

const wordsID = 1

// maxContent bounds what unpacking one message may take, in memory.
const maxContent = 1 << 30

// Without entropy coding: it would make the tables of a code for each message, which takes a third of the time
// and saves a tenth of the size.
var pack = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(128<<10), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false),
		zstd.WithNoEntropyCompression(true), zstd.WithEncoderDictRaw(wordsID, words1))
	if err != nil {
		panic(err) // of options that never change
	}
	return e
})

var unpack = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxContent), zstd.WithDecoderDictRaw(wordsID, words1))
	if err != nil {
		panic(err)
	}
	return d
})

// plainText has buffers for what is packed: a new one for each message would be most of the recorder's
// garbage.
var plainText = sync.Pool{New: func() any { return new([]byte) }}

// maxKept bounds the buffers that are kept.
const maxKept = 256 << 10

// Pack gives the stored form of properties and body.
func Pack(m *message.Message) ([]byte, error) {
	props, err := message.EncodeProps(m.Props)
	if err != nil {
		return nil, err
	}
	buffer := plainText.Get().(*[]byte)
	defer plainText.Put(buffer)
	plain := binary.AppendUvarint((*buffer)[:0], uint64(len(props)))
	plain = append(append(plain, props...), m.Body...)
	if cap(plain) <= maxKept {
		*buffer = plain
	}
	return pack().EncodeAll(plain, make([]byte, 0, len(plain)/3)), nil
}

// Unpack is the inverse of Pack.
func Unpack(content []byte) (props, body []byte, err error) {
	plain, err := unpack().DecodeAll(content, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("unpack a message of the history: %w", err)
	}
	n, width := binary.Uvarint(plain)
	if width <= 0 || uint64(len(plain)-width) < n {
		return nil, nil, errors.New("unpack a message of the history: it is damaged")
	}
	return plain[width : width+int(n)], plain[width+int(n):], nil
}
