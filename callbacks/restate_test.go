package callbacks_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// restated is one line of testdata/restate.py.
type restated struct {
	Callback string          `json:"callback"`
	Kwargs   string          `json:"kwargs"`
	Want     json.RawMessage `json:"want"`
}

// expected is what restate.py says that a callback must become.
type expected struct {
	Address string                     `json:"address"`
	Props   map[string]json.RawMessage `json:"props"`
	Body    *string                    `json:"body"` // null: the kwargs to the byte
}

// TestTranslationIsWhatAPlainRestatementSays compares random events with the rules as somebody else wrote
// them down, in Python. KOJI_RELAY_RESTATE_EVENTS is how many for each limit, KOJI_RELAY_RESTATE_SEED which.
func TestTranslationIsWhatAPlainRestatementSays(t *testing.T) {
	t.Parallel()
	count := environment(t, "KOJI_RELAY_RESTATE_EVENTS", 1500)
	seed := environment(t, "KOJI_RELAY_RESTATE_SEED", 1)
	for _, limit := range []int{0, 40, -200} {
		t.Run("extra_limit "+strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command("python3", "testdata/restate.py", strconv.Itoa(seed), strconv.Itoa(count),
				strconv.Itoa(limit)).Output()
			if err != nil {
				t.Fatalf("python3 testdata/restate.py: %v", err)
			}
			rules, err := callbacks.New(callbacks.Options{Events: []string{"*"}, ExtraLimit: limit})
			if err != nil {
				t.Fatal(err)
			}
			lines, compared := bufio.NewScanner(bytes.NewReader(out)), 0
			for lines.Buffer(nil, 1<<20); lines.Scan() && !t.Failed(); compared++ {
				var r restated
				if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
					t.Fatal(err)
				}
				r.compare(t, rules)
			}
			if compared < count && !t.Failed() {
				t.Errorf("%d events were compared, not %d", compared, count)
			}
		})
	}
}

func environment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text, given := os.LookupEnv(name)
	if !given {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func (r restated) compare(t *testing.T, rules *callbacks.Rules) {
	t.Helper()
	event := message.Event{Callback: r.Callback, Kwargs: []byte(r.Kwargs)}
	got := rules.Translate(message.Commit{ID: commitID, Events: []message.Event{event}})
	switch {
	case string(r.Want) == "null":
		if len(got.Skipped) != 1 {
			t.Errorf("%s %s is no message, but became %+v", r.Callback, r.Kwargs, got)
		}
		return
	case string(r.Want) == `"undeliverable"`:
		if len(got.Undeliverable) != 1 {
			t.Errorf("%s %s has no address, but became %+v", r.Callback, r.Kwargs, got)
		}
		return
	case len(got.Messages) != 1:
		t.Errorf("%s %s became %+v, not a message", r.Callback, r.Kwargs, got)
		return
	}
	var want expected
	if err := json.Unmarshal(r.Want, &want); err != nil {
		t.Fatal(err)
	}
	m, body := got.Messages[0], r.Kwargs
	if want.Body != nil {
		body = *want.Body
	}
	wantProps, haveProps := map[string]string{}, map[string]string{}
	for key, raw := range want.Props {
		wantProps[key] = typed(t, raw)
	}
	for _, p := range m.Props {
		text, _ := p.Value.(json.RawMessage)
		haveProps[p.Key] = property(p.Value, text)
	}
	if m.Address != want.Address || m.Body != body || !cmp.Equal(wantProps, haveProps) {
		t.Errorf("%s %s\nbecame %s %v\n%s\nnot    %s %v\n%s", r.Callback, r.Kwargs, m.Address, haveProps, m.Body,
			want.Address, wantProps, body)
	}
}

// property is a value with its type; of one that AMQP cannot carry its text.
func property(v any, text json.RawMessage) string {
	switch v.(type) {
	case nil, bool, string, int64, float64:
		if v != nil || text == nil || string(text) == "null" {
			return fmt.Sprintf("%T %v", v, v)
		}
	}
	return "not for AMQP: " + string(text)
}

// typed is a JSON value as the property that it must become.
func typed(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	s, ok := v.(string)
	if ok && strings.ContainsRune(s, utf8.RuneError) && !bytes.Contains(raw, []byte(`\ufffd`)) {
		return property(nil, raw) // half of a surrogate pair
	}
	number, ok := v.(json.Number)
	if !ok {
		return property(v, raw)
	}
	if n, err := strconv.ParseInt(number.String(), 10, 64); err == nil {
		return property(n, nil)
	} else if !strings.ContainsAny(number.String(), ".eE") {
		return property(nil, raw) // AMQP has no such integer
	}
	f, err := number.Float64()
	if err != nil {
		t.Fatal(err)
	}
	return property(f, nil)
}

// FuzzTranslateAsRestated compares any event with the rules as somebody else wrote them down, in Python.
func FuzzTranslateAsRestated(f *testing.F) {
	seeds, err := exec.Command("python3", "testdata/restate.py", "7", "60", "0").Output()
	if err != nil {
		f.Fatalf("python3 testdata/restate.py: %v", err)
	}
	var callbackNames []string
	for line := range bytes.Lines(seeds) {
		var r restated
		if err := json.Unmarshal(line, &r); err != nil {
			f.Fatal(err)
		}
		if !slices.Contains(callbackNames, r.Callback) {
			callbackNames = append(callbackNames, r.Callback)
		}
		f.Add(uint8(slices.Index(callbackNames, r.Callback)), []byte(r.Kwargs))
	}
	const limit = 40
	rules, err := callbacks.New(callbacks.Options{Events: []string{"*"}, ExtraLimit: limit})
	if err != nil {
		f.Fatal(err)
	}
	python := exec.Command("python3", "testdata/restate.py", "--serve", strconv.Itoa(limit))
	questions, err := python.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	out, err := python.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := python.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { questions.Close(); _ = python.Wait() })
	answers := bufio.NewReader(out)
	f.Fuzz(func(t *testing.T, callback uint8, kwargs []byte) {
		if !utf8.Valid(kwargs) {
			return
		}
		question, err := json.Marshal(restated{Callback: callbackNames[int(callback)%len(callbackNames)],
			Kwargs: string(kwargs)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := questions.Write(append(question, '\n')); err != nil {
			t.Fatal(err)
		}
		line, err := answers.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		var r restated
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if string(r.Want) != `"odd"` {
			r.compare(t, rules)
			return
		}
		event := message.Event{Callback: r.Callback, Kwargs: kwargs}
		got := rules.Translate(message.Commit{ID: commitID, Events: []message.Event{event}})
		if len(got.Messages)+len(got.Skipped)+len(got.Undeliverable) != 1 {
			t.Fatalf("%s %q became %+v", r.Callback, kwargs, got)
		}
	})
}
