// Package golden reads testdata/golden for tests and benchmarks: what protonmsg sent on a real hub. Tests of
// the translation, which compare types as well, read the lines themselves.
package golden

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"koji-relay/internal/message"
)

// Messages are those of a run, extra0 or extra500: the extra_limit that they were made with. They have no
// message-id and no creation-time.
func Messages(tb testing.TB, run string) []message.Message {
	tb.Helper()
	f, err := os.Open(filepath.Join(repository(tb), "testdata", "golden", "messages."+run+".jsonl"))
	must(tb, err)
	defer f.Close()
	var all []message.Message
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var m struct {
			Commit, Callback, Address, Body string
			Event                           int
			Props                           [][3]any // name, AMQP type, value
		}
		must(tb, json.Unmarshal(lines.Bytes(), &m))
		one := message.Message{
			Commit: m.Commit, Event: m.Event, Callback: m.Callback, Address: m.Address, Body: m.Body,
		}
		for _, p := range m.Props {
			value := p[2]
			if n, ok := value.(float64); ok { // all numbers in it are whole
				value = int64(n)
			}
			one.Props = append(one.Props, message.Prop{Key: p[0].(string), Value: value})
		}
		all = append(all, one)
	}
	must(tb, lines.Err())
	if len(all) == 0 {
		tb.Fatalf("no message in run %s", run)
	}
	return all
}

// repository is the directory above the test's that has go.mod.
func repository(tb testing.TB) string {
	tb.Helper()
	at, err := os.Getwd()
	must(tb, err)
	for ; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			tb.Fatal("no go.mod above the test's directory")
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
