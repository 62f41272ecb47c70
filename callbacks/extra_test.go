package callbacks

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"koji-relay/internal/message"
)

// extraCase is a line of testdata/extra.jsonl: a question to testdata/extra.py and Python's answer.
type extraCase struct {
	Kwargs string   `json:"kwargs"`
	Dict   string   `json:"dict"` // build or info
	Limit  int      `json:"limit"`
	Keep   []string `json:"keep"`
	Length *int     `json:"length"` // of json.dumps(extra), null where there is none
	Body   string   `json:"body"`
}

func readExtraCases(t *testing.T, text []byte) []extraCase {
	t.Helper()
	var cases []extraCase
	d := json.NewDecoder(bytes.NewReader(text))
	for d.More() {
		var c extraCase
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, c)
	}
	return cases
}

// check compares what we make of a case with Python's answer.
func (c extraCase) check(t *testing.T) {
	t.Helper()
	callback := "postTag"
	if c.Dict == "info" {
		callback = "postBuildStateChange"
	}
	rules, err := New(Options{ExtraLimit: c.Limit, ExtraKeep: c.Keep})
	if err != nil {
		t.Fatal(err)
	}
	found, err := table[callback].find([]byte(c.Kwargs))
	if err != nil {
		t.Fatalf("%s\n%v", c.Kwargs, err)
	}
	switch {
	case (found.extra == nil) != (c.Length == nil):
		t.Errorf("%s\nextra found: %t, by Python: %t", c.Kwargs, found.extra != nil, c.Length != nil)
	case c.Length != nil && pythonLen(found.extra) != *c.Length:
		t.Errorf("%s\nlength of extra %d, Python's is %d", c.Kwargs, pythonLen(found.extra), *c.Length)
	}
	got := rules.Translate(message.Commit{
		ID:     "00000000-0000-4000-8000-000000000001",
		Events: []message.Event{{Callback: callback, Kwargs: []byte(c.Kwargs)}},
	})
	if len(got.Messages) != 1 {
		t.Fatalf("%s\nno message: %+v", c.Kwargs, got)
	}
	body := got.Messages[0].Body
	cut := c.Length != nil && c.Limit != 0 && *c.Length > max(c.Limit, -c.Limit)
	switch {
	case !cut && body != c.Kwargs:
		t.Errorf("%s\nis within the limit %d, but the body is\n%s", c.Kwargs, c.Limit, body)
	case pythonSpacing(c.Kwargs) && body != c.Body:
		t.Errorf("limit %d, keep %q\nbody   %s\nPython %s", c.Limit, c.Keep, body, c.Body)
	case !sameJSON(t, body, c.Body):
		t.Errorf("limit %d, keep %q\nbody   %s\nmeans another thing than\nPython %s", c.Limit, c.Keep, body, c.Body)
	}
}

// pythonSpacing reports whether text is spaced and escaped as json.dumps does, as far as the cases go.
func pythonSpacing(text string) bool {
	return strings.HasPrefix(text, `{"tag": {`) || strings.HasPrefix(text, `{"attribute": "state"`)
}

// sameJSON compares values; the spelling of numbers counts as its float64.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var values [2]any
	for i, text := range []string{a, b} {
		if strings.Contains(text, "1e400") || strings.Contains(text, "Infinity") {
			return true // not JSON for Go; its length is what the case is about
		}
		if err := json.Unmarshal([]byte(text), &values[i]); err != nil {
			t.Errorf("%s\nis not JSON: %v", text, err)
			return false
		}
	}
	return reflect.DeepEqual(values[0], values[1])
}

func TestExtraIsTrimmedAsPythonWouldTrimIt(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/extra.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range readExtraCases(t, text) {
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			t.Parallel()
			c.check(t)
		})
	}
}

// The committed table is Python's answer still, and it holds for thousands of documents nobody thought of.
func TestTrimmingAgreesWithPythonOnRandomExtra(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("KOJI_RELAY_REQUIRE_SERVERS") == "1" {
			t.Fatal("python3 is not there to compare with; install it")
		}
		t.Skip("python3 is not there to compare with")
	}
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	var questions bytes.Buffer
	for range 3000 {
		c := extraCase{
			Kwargs: `{"tag": {"name": "t"}, "build": {"name": "n", "extra": ` + randomJSON(random, 0) +
				`, "epoch": null}}`,
			Dict: "build", Limit: random.IntN(60) - 10, Keep: []string{"a", "é"}[:random.IntN(3)],
		}
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		questions.Write(append(line, '\n'))
	}
	committed, err := os.ReadFile("testdata/extra.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(questions []byte) []byte {
		cmd := exec.CommandContext(t.Context(), python, "testdata/extra.py")
		cmd.Stdin, cmd.Stderr = bytes.NewReader(questions), os.Stderr
		answer, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if !bytes.Equal(ask(committed), committed) {
		t.Error("testdata/extra.jsonl is not what testdata/extra.py answers; run it again on the file and read " +
			"the difference")
	}
	for _, c := range readExtraCases(t, ask(questions.Bytes())) {
		c.check(t)
		if t.Failed() {
			return
		}
	}
}

// randomJSON writes a value as json.dumps would, from pieces that have been trouble somewhere.
func randomJSON(r *rand.Rand, depth int) string {
	words := []string{`""`, `"a"`, `"\u00e9"`, `"\ud83d\ude00"`, `"\u007f"`, `"/"`, `"\\\""`, `"\n\u0000"`,
		`"\u2028"`, `"\ud800"`, `"plain words"`}
	scalars := append([]string{"null", "true", "false", "0", "-1", "9223372036854775808", "1.5", "-0.0", "1e+16",
		"5e-324", "0.0001"}, words...)
	switch n := r.IntN(10); {
	case depth > 3 || n < 5:
		if r.IntN(4) == 0 {
			f := r.NormFloat64() * []float64{1, 1e-6, 1e8, 1e15, 1e20, 1e300}[r.IntN(6)]
			return string(AppendFloat(nil, f))
		}
		return scalars[r.IntN(len(scalars))]
	case n < 7:
		items := make([]string, r.IntN(4))
		for i := range items {
			items[i] = randomJSON(r, depth+1)
		}
		return "[" + strings.Join(items, ", ") + "]"
	default:
		r.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
		items := words[:r.IntN(4)]
		for i := range items {
			items[i] += ": " + randomJSON(r, depth+1)
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
}

func TestFloatsAreSpelledAsPythonSpellsThem(t *testing.T) {
	t.Parallel()
	// Each is Python's repr of itself.
	for _, want := range []string{
		"0.0", "-0.0", "1.0", "-1.0", "0.1", "1.5", "0.0001", "1e-05", "1.5e-05", "123456789.125",
		"9999999999999998.0", "1e+16", "1.2345678901234568e+16", "1e+22", "1e+100", "5e-324",
		"1.7976931348623157e+308", "2.2250738585072014e-308", "100000.0", "1e-10", "NaN", "Infinity", "-Infinity",
	} {
		f, err := strconv.ParseFloat(want, 64)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(AppendFloat([]byte("x"), f)); got != "x"+want {
			t.Errorf("%s is spelled %s", want, got[1:])
		}
	}
}
