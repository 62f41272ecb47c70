package history

import (
	"bufio"
	"encoding/json"
	"os"
	"testing"

	"koji-relay/internal/message"
)

func golden(tb testing.TB) []message.Message {
	f, err := os.Open("../testdata/golden/messages.extra500.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var all []message.Message
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 10<<20)
	for lines.Scan() {
		var m struct {
			Commit, Callback, Address, Body string
			Event                           int
			Props                           [][3]any
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			tb.Fatal(err)
		}
		one := message.Message{Commit: m.Commit, Event: m.Event, Callback: m.Callback, Address: m.Address,
			Body: m.Body}
		for _, p := range m.Props {
			v := p[2]
			if f, ok := v.(float64); ok {
				v = int64(f)
			}
			one.Props = append(one.Props, message.Prop{Key: p[0].(string), Value: v})
		}
		all = append(all, one)
	}
	return all
}

// BenchmarkPack models what one recorded message costs besides the database: 2 KiB of Koji's JSON, extra
// cut at 500.
func BenchmarkPack(b *testing.B) {
	all := golden(b)
	in, out := 0, 0
	for i := 0; b.Loop(); i++ {
		m := &all[i%len(all)]
		packed, err := Pack(m)
		if err != nil {
			b.Fatal(err)
		}
		in, out = in+len(m.Body), out+len(packed)
	}
	b.ReportMetric(float64(in)/float64(b.N), "body-B/msg")
	b.ReportMetric(float64(out)/float64(b.N), "packed-B/msg")
}
