package callbacks

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"koji-relay/internal/message"
)

const fuzzCommit = "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55"

// What DecodeCommit accepts is JSON by encoding/json's judgement, and the kwargs are parts of it.
func FuzzDecodeCommit(f *testing.F) {
	for _, seed := range []string{
		`{"commit": "` + fuzzCommit +
			`", "events": [{"event": 0, "callback": "postTag", "kwargs": {"a": [1, -2.5e+3, "\u00e9\\", null, ` +
			`true]}}]}`,
		`{"events": [{"kwargs": [], "callback": "x", "y": {}}], "commit": "` + strings.ToUpper(fuzzCommit) +
			`", "z": {"": [[]]}}`,
		`{"commit": "` + fuzzCommit +
			`", "events": [{"event": 5, "callback": "a", "kwargs": 0}, {"event": 1, "callback": "b", "kwargs": "` +
			"\xff" + `"}]}`,
		`{"commit": "` + fuzzCommit + `", "events": []} x`, `[`, `{"`, `{"a": "\u12`, "{\"a\": 1,}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		c, err := DecodeCommit(text)
		if !bytes.Equal(before, text) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if !reflect.DeepEqual(c, message.Commit{}) || !utf8.ValidString(err.Error()) {
				t.Fatalf("beside the error %q came %+v", err, c)
			}
			return
		}
		if !json.Valid(text) && levels(text) < 10_000 {
			t.Fatalf("accepted what is not JSON: %q", text)
		}
		numbers := map[int]bool{}
		for _, e := range c.Events {
			if numbers[e.Number] || e.Number < 0 || e.Callback == "" || !utf8.ValidString(e.Callback) {
				t.Fatalf("event %+v came through", e)
			}
			numbers[e.Number] = true
			if !bytes.Contains(text, e.Kwargs) || !json.Valid(e.Kwargs) {
				t.Fatalf("kwargs %q are not a value of %q", e.Kwargs, text)
			}
			if _, err := MessageID(c.ID, e.Number); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A body is JSON that means the kwargs without extra, with all else as it was; the length that decides is the
// one of text built in the plainest way.
func FuzzTranslate(f *testing.F) {
	for _, seed := range []string{
		`{"tag": {"name": "t"}, "build": {"name": "n", "extra": {"a": 1}, "z": 2}, "user": {"name": "u"}}`,
		`{"build":{"extra":"\ud83d\ude00\ud800\/\u0041é` + "\x7f" + `"}}`,
		` { "build" : { "\u0065xtra" : [1.50, 1E5, -0, 1e400] } } `,
		`{"build": {"extra": 1, "a": 2, "extra": {"extra": 3}}, "build": {"b": {"extra": 4}, "extra": null}}`,
		`{"build": null}`, `{}`, `[1]`, `{"build": {"extra": {}`,
	} {
		for _, limit := range []int{0, 1, -4, 20} {
			f.Add([]byte(seed), limit)
		}
	}
	f.Fuzz(func(t *testing.T, kwargs []byte, limit int) {
		rules, err := New(Options{Events: []string{"*"}, ExtraLimit: limit})
		if err != nil {
			t.Fatal(err)
		}
		keeping, err := New(Options{ExtraLimit: limit, ExtraKeep: []string{"a", "é"}})
		if err != nil {
			t.Fatal(err)
		}
		commit := message.Commit{ID: fuzzCommit, Events: []message.Event{{Callback: "postTag", Kwargs: kwargs}}}
		got := rules.Translate(commit)
		if len(got.Undeliverable) == 1 {
			var object map[string]json.RawMessage
			if utf8.Valid(kwargs) && json.Unmarshal(kwargs, &object) == nil && object != nil &&
				levels(kwargs) < maxDepth {
				t.Fatalf("%q is undeliverable: %s", kwargs, got.Undeliverable[0].Reason)
			}
			return
		}
		body := got.Messages[0].Body
		want := decodeObject(t, kwargs)
		if build, ok := want["build"].(map[string]any); ok {
			_, there := build["extra"]
			if there && rules.extraLimit > 0 && len(plainDumps(rawExtra(t, kwargs))) > rules.extraLimit {
				delete(build, "extra")
			} else if body != string(kwargs) {
				t.Fatalf("nothing was to be cut from %q, but the body is %q", kwargs, body)
			}
		} else if body != string(kwargs) {
			t.Fatalf("body of %q is %q", kwargs, body)
		}
		if have := decodeObject(t, []byte(body)); !reflect.DeepEqual(want, have) {
			t.Fatalf("body of %q (limit %d) is %q", kwargs, limit, body)
		}
		decodeObject(t, []byte(keeping.Translate(commit).Messages[0].Body))
	})
}

// levels bounds the depth of text from above. Deep nesting is where encoding/json gives up, at 10,000.
func levels(text []byte) int { return bytes.Count(text, []byte("[")) + bytes.Count(text, []byte("{")) }

func decodeObject(t *testing.T, text []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q is not JSON: %v", text, err)
	}
	return v
}

// rawExtra finds build.extra by way of encoding/json; maps, for its struct fields match without regard to
// case.
func rawExtra(t *testing.T, kwargs []byte) []byte {
	t.Helper()
	var outer, build map[string]json.RawMessage
	if err := json.Unmarshal(kwargs, &outer); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(outer["build"], &build); err != nil {
		t.Fatal(err)
	}
	return build["extra"]
}

// plainDumps is json.dumps by way of encoding/json's tokens: slow and obvious.
func plainDumps(raw []byte) string {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out strings.Builder
	type level struct{ object, value, any bool }
	levels := []level{{}}
	for {
		token, err := d.Token()
		if err != nil {
			return out.String()
		}
		top := &levels[len(levels)-1]
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			levels = levels[:len(levels)-1]
			out.WriteString(delim.String())
			continue
		}
		switch {
		case top.object && top.value:
			out.WriteString(": ")
		case top.any:
			out.WriteString(", ")
		}
		top.any = true
		top.value = top.object && !top.value
		switch v := token.(type) {
		case json.Delim:
			out.WriteString(v.String())
			levels = append(levels, level{object: v == '{'})
		case string:
			out.WriteByte('"')
			for _, unit := range utf16.Encode([]rune(v)) {
				if unit >= 0x20 && unit < 0x7f && unit != '"' && unit != '\\' {
					out.WriteByte('x')
				} else if strings.ContainsRune("\"\\\n\r\t\b\f", rune(unit)) {
					out.WriteString(`\x`)
				} else {
					out.WriteString(`\uxxxx`)
				}
			}
			out.WriteByte('"')
		case json.Number:
			switch f, _ := v.Float64(); { // out of range is an infinity
			case strings.ContainsAny(v.String(), ".eE"):
				out.Write(AppendFloat(nil, f))
			case v == "-0":
				out.WriteByte('0')
			default:
				out.WriteString(v.String())
			}
		case bool:
			out.WriteString(strconv.FormatBool(v))
		case nil:
			out.WriteString("null")
		}
	}
}
