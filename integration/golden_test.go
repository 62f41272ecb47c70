package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// commit is one hub transaction of testdata/golden: its line as it stands is a request of the hub plugin.
type commit struct {
	ID   string
	Line []byte
}

// goldenMessage is one message that protonmsg made of it.
type goldenMessage struct {
	Commit   string `json:"commit"`
	Event    int    `json:"event"`
	Callback string `json:"callback"`
	Address  string `json:"address"`
	Props    []prop `json:"props"`
	Body     string `json:"body"`
}

// id is the message-id: UUIDv5 of the event's number in its commit.
func (m goldenMessage) id() string { return messageID(m.Commit, m.Event) }

func messageID(commit string, event int) string {
	return uuid.NewSHA1(uuid.MustParse(commit), []byte(strconv.Itoa(event))).String()
}

// golden is one run of testdata/golden.
type golden struct {
	commits  []commit
	messages []goldenMessage
}

// loadGolden reads a run: extra0 or extra500.
func loadGolden(t testing.TB, run string) golden {
	t.Helper()
	var g golden
	readLines(t, "commits."+run+".jsonl", func(line []byte) error {
		var c struct {
			Commit string `json:"commit"`
		}
		err := json.Unmarshal(line, &c)
		g.commits = append(g.commits, commit{c.Commit, bytes.Clone(line)})
		return err
	})
	readLines(t, "messages."+run+".jsonl", func(line []byte) error {
		var m goldenMessage
		err := json.Unmarshal(line, &m)
		g.messages = append(g.messages, m)
		return err
	})
	return g
}

func readLines(t testing.TB, name string, each func(line []byte) error) {
	t.Helper()
	f, err := os.Open("../testdata/golden/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		if err := each(lines.Bytes()); err != nil {
			t.Fatalf("%s:%d: %v", name, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// topics are the addresses of all messages, each once.
func (g golden) topics() []string {
	var topics []string
	for _, m := range g.messages {
		topics = append(topics, m.Address)
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

func (g golden) ids() []string {
	var ids []string
	for _, m := range g.messages {
		ids = append(ids, m.id())
	}
	return ids
}

// compare checks every golden message against what came with its id: topic, application-properties with their
// AMQP types, body. Anything that came and is not golden is an error too.
func (g golden) compare(t testing.TB, b brokerKind, part string, box *inbox) {
	t.Helper()
	got := box.byID()
	for _, want := range g.messages {
		name := fmt.Sprintf("%s event %d of commit %s", want.Callback, want.Event, want.Commit)
		deliveries := got[want.id()]
		delete(got, want.id())
		if len(deliveries) != 1 {
			t.Errorf("%s came %d times", name, len(deliveries))
			continue
		}
		d := deliveries[0]
		if topic := b.topicOf(part, d.Link); topic != want.Address {
			t.Errorf("%s came over topic %s, not %s", name, topic, want.Address)
		}
		if d.Body == nil {
			t.Errorf("%s has no body that is one AMQP value holding a string", name)
		} else if *d.Body != want.Body {
			t.Errorf("%s: body differs (-want +got):\n%s", name, cmp.Diff(want.Body, *d.Body))
		}
		if diff := cmp.Diff(sortedProps(want.Props), sortedProps(d.Props)); diff != "" {
			t.Errorf("%s: application-properties differ (-want +got):\n%s", name, diff)
		}
	}
	for id, deliveries := range got {
		t.Errorf("message %s of topic %s came, and protonmsg sends no such message", id, deliveries[0].Link)
	}
}

// sortedProps gives props a comparable form; their order is free on the wire.
func sortedProps(props []prop) []string {
	var lines []string
	for _, p := range props {
		lines = append(lines, p.String())
	}
	slices.Sort(lines)
	return lines
}
