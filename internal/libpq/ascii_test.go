package libpq

import (
	"encoding/json"
	"testing"
)

func TestPlainJSONMeansTheSame(t *testing.T) {
	t.Parallel()
	const text = `{"Žluť": ["日本", "é\\n", "😀", 1.0]}`
	plain := PlainJSON(text)
	if want := `{"\u017dlu\u0165": ["\u65e5\u672c", "\u00e9\\n", "\ud83d\ude00", 1.0]}`; plain != want {
		t.Errorf("got %s, want %s", plain, want)
	}
	var before, after map[string][]any
	if err := json.Unmarshal([]byte(text), &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(plain), &after); err != nil || after["Žluť"][2] != before["Žluť"][2] {
		t.Errorf("it reads %v, %v, and was %v", after, err, before)
	}
}

func TestPlainWords(t *testing.T) {
	t.Parallel()
	if got := PlainWords("für “x”"); got != "f?r ?x?" {
		t.Errorf("got %q", got)
	}
}
