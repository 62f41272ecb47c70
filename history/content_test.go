package history

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"koji-relay/internal/message"
)

func TestWhatIsPackedComesBack(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"empty": "", "short": "{}",
		"of Koji":              `{"build": {"name": "bash"}}`,
		"the words themselves": string(words1), "larger than a block": strings.Repeat(`{"n": 1} `, 1<<20),
		"no text": "\x00\xff\xfe"} {
		m := &message.Message{Props: []message.Prop{{Key: "type", Value: "Tag"}}, Body: body}
		packed, err := Pack(m)
		if err != nil {
			t.Fatal(err)
		}
		props, got, err := Unpack(packed)
		if err != nil || string(got) != body {
			t.Errorf("%s: %d bytes came back, %v; want %d", name, len(got), err, len(body))
		}
		if all, err := message.DecodeProps(props); err != nil || len(all) != 1 || all[0] != m.Props[0] {
			t.Errorf("%s: properties %v, %v", name, all, err)
		}
	}
}

// Messages of before are read as long as they are kept.
func TestWhatWasPackedByZstdIsReadable(t *testing.T) {
	t.Parallel()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(wordsID, words1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	plain := append(binary.AppendUvarint(nil, 2), "[]{\"build\": {\"name\": \"bash\"}}"...)
	props, body, err := Unpack(e.EncodeAll(plain, nil))
	if err != nil || string(props) != "[]" || string(body) != `{"build": {"name": "bash"}}` {
		t.Errorf("it is %q and %q, %v", props, body, err)
	}
}

// The header says that it becomes 943 MB. That much was taken for ten bytes before: the fuzzing of FuzzUnpack
// ended with it. Not in parallel with others, whose memory would count.
func TestDamagedMessageTakesNoMoreMemoryThanItHolds(t *testing.T) {
	damaged := []byte("\x28\xb5\x2f\xfd\x90\x30\x30\x30\x30\x38")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := Unpack(damaged); err == nil {
		t.Error("it was unpacked")
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 4*maxWindow {
		t.Errorf("it took %d bytes", took)
	}
}

// FuzzUnpack: what a disk made of a message is an error or a message, within bounds.
func FuzzUnpack(f *testing.F) {
	packed, err := Pack(&message.Message{Body: `{"build": {"name": "bash"}}`})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, {isS2}, packed, packed[:len(packed)-1], {0x28, 0xb5, 0x2f, 0xfd},
		{isS2, 0xff, 0xff, 0xff, 0xff, 0x0f}, bytes.Repeat([]byte{isS2}, 100)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 1 && content[0] == isS2 && content[1] >= 0x80 {
			return // it says that it is large, and gets as much memory
		}
		_, _, _ = Unpack(content)
	})
}
