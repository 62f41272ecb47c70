package message

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPropsKeepTypeAndSpelling(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want any
	}{
		{`1`, int64(1)}, {`-9223372036854775808`, int64(math.MinInt64)},
		{`9223372036854775808`, raw(`9223372036854775808`)}, {`1.0`, 1.0}, {`1e3`, 1000.0}, {`1E+16`, 1e16},
		{`-0.0`, math.Copysign(0, -1)}, {`1e999`, raw(`1e999`)}, {`null`, nil}, {`true`, true}, {`false`, false},
		{`"a\u0000b"`, "a\x00b"}, {`"\ud83d\ude00"`, "\U0001F600"}, {`"\\ud800"`, `\ud800`},
		{`"\\\ud800"`, raw(`"\\\ud800"`)}, {`"\ud800"`, raw(`"\ud800"`)}, {`"\ude00\ud83d"`, raw(`"\ude00\ud83d"`)},
		{`"\ud83d\ude00\ud800"`, raw(`"\ud83d\ude00\ud800"`)}, {`[1, 2.50]`, raw(`[1, 2.50]`)},
		{`{"a":  1}`, raw(`{"a":  1}`)},
	} {
		got, err := DecodeProps([]byte(`{"k": ` + test.text + `}`))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if diff := cmp.Diff([]Prop{{Key: "k", Value: test.want}}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.text, diff)
		}
	}
}

func TestBrokenPropsAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{``, `[]`, `null`, `{"a": }`, `{"a": 1`, `{"a": 1} 2`, `{1: 2}`, `{"a": NaN}`} {
		if got, err := DecodeProps([]byte(text)); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func FuzzProps(f *testing.F) {
	for _, text := range []string{`{}`, `{"a": 1, "a": 1.0, "": null}`, `{"s": "\ud800\\\u0000é"}`,
		`{"n": [1e999, {"x": -0.0}]}`, `{"b":true}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		first, err := DecodeProps(text)
		if err != nil {
			return
		}
		encoded, err := EncodeProps(first)
		if err != nil {
			if bytes.ContainsRune(text, '\uFFFD') || !json.Valid(text) || !utf8Valid(text) {
				return
			}
			t.Fatalf("%q was read as %v and cannot be written: %v", text, first, err)
		}
		second, err := DecodeProps(encoded)
		if err != nil {
			t.Fatalf("%q was written as %q and cannot be read: %v", text, encoded, err)
		}
		if diff := cmp.Diff(first, second, cmp.Comparer(sameFloat)); diff != "" {
			t.Fatalf("%q became %q (-first +second):\n%s", text, encoded, diff)
		}
	})
}

// sameFloat tells 0 from -0.
func sameFloat(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }

func utf8Valid(b []byte) bool { return bytes.Equal(bytes.ToValidUTF8(b, nil), b) }

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// What the short way reads it reads as the long one does, and it reads what most messages have.
func TestFlatPropsAreReadAsAllOthers(t *testing.T) {
	t.Parallel()
	flat := 0
	for _, text := range []string{
		`{}`, ` { } `, `{"a": "b"}`, `{"a":1,"b" : -1, "c": null,"d":true, "e":false}`, `{"a": "café"}`,
		`{"a": "café"}`, `{"a": 0}`, `{"a": -0}`, `{"a": 01}`, `{"a": 1.0}`, `{"a": 1e3}`,
		`{"a": 9223372036854775807}`, `{"a": 9223372036854775808}`, `{"a": -}`, `{"a": nul}`, `{"a": nulll}`,
		`{"a": truefalse}`, `{"a": 1 2}`, `{"a": 1}x`, `{"a": 1,}`, `{"a"}`, `{"a": {"b": 1}}`, `{"a": [1]}`,
		`{"a": "x`, "{\"a\": \"\xff\"}", "{\"a\": \"\n\"}", `[]`, ``, `{`, `{"a": 1--2}`, `{"a": 1, "a": 2}`,
		`{"type": "Tag", "tag": "f40", "n": 7}`,
	} {
		short, ok := flatProps([]byte(text))
		if !ok {
			continue
		}
		flat++
		long, err := decodeProps([]byte(text))
		if err != nil || !reflect.DeepEqual(short, long) {
			t.Errorf("%s was read as %v, want %v, %v", text, short, long, err)
		}
	}
	if flat < 9 {
		t.Errorf("%d texts were read the short way", flat)
	}
}

func BenchmarkDecodeProps(b *testing.B) {
	text := []byte(`{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", "release": "1", ` +
		`"user": "kojira", "n": 7}`)
	for b.Loop() {
		if _, err := DecodeProps(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodePropsWhateverTheyAre(b *testing.B) {
	text := []byte(`{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", "release": "1", ` +
		`"user": "kojira", "n": 7}`)
	for b.Loop() {
		if _, err := decodeProps(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeProps(b *testing.B) {
	props, err := DecodeProps([]byte(`{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", ` +
		`"release": "1", "user": "kojira", "n": 7}`))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := EncodeProps(props); err != nil {
			b.Fatal(err)
		}
	}
}

// What is written without encoding/json is what encoding/json writes.
func TestEveryCharacterIsWrittenAsJSON(t *testing.T) {
	t.Parallel()
	for r := range rune(0x2100) {
		text := "a" + string(r) + "b"
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(text); err != nil {
			t.Fatal(err)
		}
		got, err := EncodeProps([]Prop{{Key: "k", Value: text}})
		if want := `{"k": ` + strings.TrimSpace(want.String()) + `}`; err != nil || string(got) != want {
			t.Errorf("%q was written as %s, %v; want %s", text, got, err, want)
		}
	}
}
