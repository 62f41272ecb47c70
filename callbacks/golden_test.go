package callbacks_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// goldenMessage is a line of testdata/golden/messages.RUN.jsonl: what protonmsg sent on a real hub.
type goldenMessage struct {
	Commit   string   `json:"commit"`
	Event    int      `json:"event"`
	Callback string   `json:"callback"`
	Address  string   `json:"address"`
	Props    [][3]any `json:"props"`
	Body     string   `json:"body"`
}

// golden calls line for each line of a file of testdata/golden.
func golden(t testing.TB, name string, line func([]byte)) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "testdata", "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		line(s.Bytes())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

func goldenMessages(t testing.TB, run string) []goldenMessage {
	t.Helper()
	var out []goldenMessage
	golden(t, "messages."+run+".jsonl", func(line []byte) {
		var m goldenMessage
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	})
	return out
}

// asGolden writes m in the form of the golden file.
func asGolden(m message.Message) goldenMessage {
	g := goldenMessage{Commit: m.Commit, Event: m.Event, Callback: m.Callback, Address: m.Address, Body: m.Body}
	for _, p := range m.Props {
		var kind string
		value := p.Value
		switch v := p.Value.(type) {
		case string:
			kind = "string"
		case int64:
			kind, value = "long", json.Number(fmt.Sprint(v))
		case float64:
			kind, value = "double", json.Number(callbacks.AppendFloat(nil, v))
		case bool:
			kind = "boolean"
		case nil:
			kind = "null"
		default:
			kind = fmt.Sprintf("%T", v)
		}
		g.Props = append(g.Props, [3]any{p.Key, kind, value})
	}
	return g
}

func newRules(t testing.TB, o callbacks.Options) *callbacks.Rules {
	t.Helper()
	r, err := callbacks.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGoldenCommitsGiveProtonmsgsMessagesToTheByte(t *testing.T) {
	t.Parallel()
	for run, limit := range map[string]int{"extra0": 0, "extra500": 500} {
		t.Run(run, func(t *testing.T) {
			t.Parallel()
			rules := newRules(t, callbacks.Options{ExtraLimit: limit})
			want := goldenMessages(t, run)
			var got []goldenMessage
			golden(t, "commits."+run+".jsonl", func(line []byte) {
				c, err := callbacks.DecodeCommit(line)
				if err != nil {
					t.Fatal(err)
				}
				tr := rules.Translate(c)
				for _, u := range tr.Undeliverable {
					t.Errorf("%s of commit %s is undeliverable: %s", u.Callback, u.Commit, u.Reason)
				}
				if n := len(tr.Messages) + len(tr.Skipped) + len(tr.Undeliverable); n != len(c.Events) {
					t.Errorf("commit %s: %d events are accounted for as %d", c.ID, len(c.Events), n)
				}
				for _, m := range tr.Messages {
					got = append(got, asGolden(m))
				}
			})
			if len(got) != len(want) {
				t.Fatalf("%d messages, protonmsg sent %d", len(got), len(want))
			}
			for i := range got {
				if diff := cmp.Diff(want[i], got[i]); diff != "" {
					t.Errorf("message %d (-protonmsg +ours):\n%s", i, diff)
				}
			}
		})
	}
}
