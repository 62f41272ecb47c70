package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The encodings are those of AMQP 1.0, part 1, section 1.6, written down by hand.
func TestEveryEncodingOfEveryTypeIsRead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		hex  string
		want any
	}{
		{"40", nil},
		{"41", true},
		{"42", false},
		{"5601", true},
		{"5600", false},
		{"50ff", uint8(255)},
		{"60ffff", uint16(65535)},
		{"43", uint32(0)},
		{"52ff", uint32(255)},
		{"70ffffffff", uint32(math.MaxUint32)},
		{"44", uint64(0)},
		{"53ff", uint64(255)},
		{"80ffffffffffffffff", uint64(math.MaxUint64)},
		{"51ff", int8(-1)},
		{"61fffe", int16(-2)},
		{"54ff", int32(-1)},
		{"7180000000", int32(math.MinInt32)},
		{"55ff", int64(-1)},
		{"818000000000000000", int64(math.MinInt64)},
		{"723f800000", float32(1)},
		{"823ff8000000000000", 1.5},
		{"7422500001", decimal(unhex(t, "22500001"))},
		{"842238000000000001", decimal(unhex(t, "2238000000000001"))},
		{"9422080000000000000000000000000001", decimal(unhex(t, "22080000000000000000000000000001"))},
		{"730001f600", char('😀')},
		{"830000000000000001", timestamp(1)},
		{"9800112233445566778899aabbccddeeff", uuid(unhex(t, "00112233445566778899aabbccddeeff"))},
		{"a00201ff", []byte{1, 255}},
		{"b00000000201ff", []byte{1, 255}},
		{"a103e282ac", "€"},
		{"b100000003e282ac", "€"},
		{"a30161", Symbol("a")},
		{"b30000000161", Symbol("a")},
		{"45", []any(nil)},
		{"c00402520541", []any{uint32(5), true}},
		{"d000000007 00000002 520541", []any{uint32(5), true}},
		{"c10702 a3016b a10176", Pairs{Symbol("k"), "v"}},
		{"d10000000a 00000002 a3016b a10176", Pairs{Symbol("k"), "v"}},
		{"e00a02 70 00000001 00000002", array{uint32(1), uint32(2)}},
		{"f00000000d 00000002 70 00000001 00000002", array{uint32(1), uint32(2)}},
		{"e00602 a1 0161 0162", array{"a", "b"}},
		{"e00203 41", array{true, true, true}},
		{"e00502 00532445", array{Described{uint64(0x24), []any(nil)}, Described{uint64(0x24), []any(nil)}}},
		{"00 53 24 45", Described{uint64(0x24), []any(nil)}},
		{"00 80 0000000000000024 45", Described{uint64(0x24), []any(nil)}},
		{"00 a3 12 616d71703a61636365707465643a6c697374 45", Described{uint64(0x24), []any(nil)}},
		{"00 a3 01 78 45", Described{Symbol("x"), []any(nil)}},
	} {
		d := decoder{rest: unhex(t, c.hex)}
		got, err := d.value()
		if err != nil || len(d.rest) != 0 {
			t.Errorf("%s: %v, %d bytes left", c.hex, err, len(d.rest))
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(Described{})); diff != "" {
			t.Errorf("%s: %s", c.hex, diff)
		}
	}
}

func TestMalformedValuesAreRefused(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"nothing":                        "",
		"unknown type":                   "30",
		"unknown zero-width type":        "4f",
		"unknown fixed type":             "5f00",
		"unknown variable type":          "a500",
		"unknown compound type":          "c50100",
		"unknown array type":             "e50100",
		"number cut short":               "70000000",
		"string cut short":               "a10361",
		"size of 4 GB":                   "b1ffffffff",
		"boolean 2":                      "5602",
		"list of more than its bytes":    "c003ff4141",
		"list with bytes left over":      "c00301414141",
		"map of an odd count":            "c10301a1016b",
		"array of billions of nothing":   "f000000005ffffffff40",
		"arrays of nothing, many times":  "d0 0000004a 00000007" + strings.Repeat("f000000005 00003fff 40 ", 7),
		"array without a type":           "e00101",
		"array with bytes left over":     "e004015001 02",
		"described without a value":      "005324",
		"lists nested without end":       strings.Repeat("c07f01", 40) + "40",
		"descriptors nested without end": strings.Repeat("00", 100000),
	} {
		d := decoder{rest: unhex(t, value)}
		got, err := d.value()
		var malformed *Error
		if !errors.As(err, &malformed) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestShortestEncodingIsWritten(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		value any
		hex   string
	}{
		{nil, "40"},
		{true, "41"},
		{false, "42"},
		{uint8(1), "5001"},
		{uint16(1), "600001"},
		{uint32(0), "43"},
		{uint32(255), "52ff"},
		{uint32(256), "7000000100"},
		{uint64(0), "44"},
		{uint64(255), "53ff"},
		{uint64(256), "800000000000000100"},
		{int32(-128), "5480"},
		{int32(128), "7100000080"},
		{int64(-128), "5580"},
		{int64(128), "810000000000000080"},
		{1.5, "823ff8000000000000"},
		{timestamp(1), "830000000000000001"},
		{uuid{15: 1}, "9800000000000000000000000000000001"},
		{[]byte{1}, "a00101"},
		{"a", "a10161"},
		{long, "b10000012c" + hex.EncodeToString([]byte(long))},
		{Symbol("a"), "a30161"},
		{Symbols{"a", "bc"}, "f000000010 00000002 b3 0000000161 000000026263"},
		{[]any{}, "45"},
		{[]any{nil, nil}, "45"},
		{[]any{nil, true, nil}, "c003024041"},
		{[]any{long}, "d000000135 00000001 b10000012c" + hex.EncodeToString([]byte(long))},
		{Pairs{}, "c10100"},
		{Pairs{Symbol("k"), nil}, "c10502a3016b40"},
		{Described{uint64(0x24), []any{}}, "00532445"},
	} {
		if got := appendValue(nil, c.value); !bytes.Equal(got, unhex(t, c.hex)) {
			t.Errorf("%v: %x, want %s", c.value, got, c.hex)
		}
	}
}

func TestFrameLimitsAreKept(t *testing.T) {
	t.Parallel()
	whole := AppendFrame(nil, FrameAMQP, 7, CodeFlow, []any{uint32(1)}, []byte("payload"))
	f, err := ReadFrame(bytes.NewReader(whole), uint32(len(whole)))
	if err != nil || f.Channel != 7 || f.Kind != FrameAMQP {
		t.Fatal(f, err)
	}
	p, payload, err := f.Performative()
	if err != nil || p.Code() != CodeFlow || string(payload) != "payload" {
		t.Fatal(p, payload, err)
	}
	extended := unhex(t, "00000010 03 00 0000 deadbeef 00532445") // four bytes of extended header
	if f, err := ReadFrame(bytes.NewReader(extended), 512); err != nil || len(f.Body) != 4 {
		t.Error("extended header:", f, err)
	}
	for name, head := range map[string]string{
		"larger than announced":      "00000201 02 00 0000",
		"smaller than its own head":  "00000007 02 00 0000",
		"offset into the head":       "00000010 01 00 0000",
		"offset beyond the frame":    "00000010 05 00 0000",
		"size of 4 GB, nothing else": "ffffffff 02 00 0000",
	} {
		var malformed *Error
		if _, err := ReadFrame(bytes.NewReader(unhex(t, head)), 512); !errors.As(err, &malformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestToIsFilledAndNothingElseChanges(t *testing.T) {
	t.Parallel()
	const header, annotations, value = "005370c0020141", "005372c10100", "005377a10178"
	for name, c := range map[string]struct{ before, after string }{
		"no properties": {header + annotations + value,
			header + annotations + "005373c007034040a1026162" + value},
		"empty properties": {header + "00537345" + value, header + "005373c007034040a1026162" + value},
		"message-id":       {"005373c00401a10131" + value, "005373c00903a1013140a1026162" + value},
		"id and subject":   {"005373c0080453014040a10173" + value, "005373c00b04530140a1026162a10173" + value},
		"to is there":      {"005373c006034040a10178" + value, "005373c006034040a10178" + value},
		"foreign types":    {"005373c0030151ff" + value, "005373c0030151ff" + value},
		"nothing":          {"", "005373c007034040a1026162"},
		"not a message":    {"ff", "ff"},
	} {
		if got := FillTo(unhex(t, c.before), "ab"); !bytes.Equal(got, unhex(t, c.after)) {
			t.Errorf("%s: %x", name, got)
		}
	}
}

// FuzzFrame reads whatever comes as a frame, a performative and a message: no panic, no runaway memory. What
// can be decoded and encoded again decodes to the same.
func FuzzFrame(f *testing.F) {
	f.Add(AppendFrame(nil, FrameAMQP, 0, CodeOpen, []any{"c", nil, uint32(512), uint16(1), uint32(1000)}, nil))
	f.Add(AppendFrame(nil, FrameAMQP, 0, CodeBegin, []any{nil, uint32(1), uint32(1), uint32(1)}, nil))
	f.Add(AppendFrame(nil, FrameAMQP, 0, CodeAttach, []any{
		"l", uint32(0), true, nil, nil,
		Described{uint64(CodeSource), []any{"a"}},
		Described{uint64(CodeTarget), []any{"a", nil, nil, nil, nil, nil, Symbols{"topic"}}},
	}, nil))
	f.Add(AppendFrame(nil, FrameAMQP, 0, CodeTransfer, []any{uint32(0), uint32(1), []byte("t")},
		[]byte("\x00Sp\xc0\x01\x00")))
	f.Add(AppendFrame(nil, FrameAMQP, 0, CodeDisposition,
		[]any{true, uint32(0), uint32(9), true, Described{uint64(CodeAccepted), nil}}, nil))
	f.Add(AppendFrame(nil, FrameSASL, 0, CodeSASLInit, []any{Symbol("PLAIN"), []byte("\x00u\x00p")}, nil))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		id, to := BareProperties(data)
		if filled := FillTo(data, "address"); !bytes.Equal(filled, data) {
			if newID, newTo := BareProperties(filled); to != "" || newID != id || newTo != "address" {
				t.Fatalf("filled %x: id %q became %q, to %q became %q", data, id, newID, to, newTo)
			}
		}
		frame, err := ReadFrame(bytes.NewReader(data), 1<<16)
		if err != nil {
			return
		}
		p, payload, err := frame.Performative()
		if err != nil {
			return
		}
		DecodeOpen(p.Value)
		DecodeBegin(p.Value)
		DecodeAttach(p.Value)
		DecodeFlow(p.Value)
		DecodeTransfer(p.Value, payload)
		DecodeDisposition(p.Value)
		DecodeDetach(p.Value)
	})
}
