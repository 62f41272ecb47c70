package history

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
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

// isS2 is the first byte of a packed message that is a block of S2. That of zstd, which was used before, is
// another: such messages stay readable.
const isS2 = 1

var words = sync.OnceValue(func() *s2.Dict { return s2.MakeDict(words1, nil) })

// maxWindow is more than the window of what was packed by zstd.
const maxWindow = 8 << 20

// unpackZstd takes memory for what it has decoded, and not for what a damaged header says: DecodeAll takes as
// much as that at once.
func unpackZstd(content []byte) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(content), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow),
		zstd.WithDecoderMaxMemory(maxContent), zstd.WithDecoderDictRaw(wordsID, words1))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

// buffers of a message that is packed: new ones for each would be most of the recorder's garbage.
type buffers struct{ plain, packed []byte }

var pool = sync.Pool{New: func() any { return new(buffers) }}

// maxKept bounds the buffers that are kept.
const maxKept = 256 << 10

// Pack gives the stored form of properties and body.
func Pack(m *message.Message) ([]byte, error) {
	props, err := message.EncodeProps(m.Props)
	if err != nil {
		return nil, err
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	plain := binary.AppendUvarint(b.plain[:0], uint64(len(props)))
	plain = append(append(plain, props...), m.Body...)
	if len(plain) > maxContent {
		return nil, fmt.Errorf("%d bytes are too many for the history", len(plain))
	}
	block := words().Encode(b.packed[:cap(b.packed)], plain)
	if cap(plain) <= maxKept {
		b.plain, b.packed = plain, block
	}
	return append(append(make([]byte, 0, 1+len(block)), isS2), block...), nil
}

// Unpack is the inverse of Pack.
func Unpack(content []byte) (props, body []byte, err error) {
	var plain []byte
	if len(content) > 0 && content[0] == isS2 {
		var n int
		if n, err = s2.DecodedLen(content[1:]); err == nil && n > maxContent {
			err = s2.ErrTooLarge
		}
		if err == nil {
			plain, err = words().Decode(nil, content[1:])
		}
	} else {
		plain, err = unpackZstd(content)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("unpack a message of the history: %w", err)
	}
	n, width := binary.Uvarint(plain)
	if width <= 0 || uint64(len(plain)-width) < n {
		return nil, nil, errors.New("unpack a message of the history: it is damaged")
	}
	return plain[width : width+int(n)], plain[width+int(n):], nil
}
