package callbacks_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"koji-relay/callbacks"
)

const docsDir = "../docs"

// asyncAPI is what the tests read of docs/asyncapi.yaml.
type asyncAPI struct {
	Version  string `yaml:"asyncapi"`
	Channels map[string]struct {
		Address    string
		Title      string
		Parameters map[string]ref
		Messages   map[string]ref
	}
	Operations map[string]struct {
		Action  string
		Channel ref
	}
	Components struct {
		Parameters map[string]struct{ Enum []string }
		Messages   map[string]struct {
			Name, Title      string
			Headers, Payload ref
		}
	}
}

type ref struct {
	To string `yaml:"$ref"`
}

func loadAsyncAPI(t testing.TB) (doc asyncAPI, raw any) {
	t.Helper()
	text, err := os.ReadFile(docsDir + "/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, into := range []any{&doc, &raw} {
		if err := yaml.Unmarshal(text, into); err != nil {
			t.Fatalf("read docs/asyncapi.yaml: %v", err)
		}
	}
	return doc, raw
}

func TestEachRuleHasItsChannel(t *testing.T) {
	t.Parallel()
	doc, _ := loadAsyncAPI(t)
	if doc.Version != "3.0.0" {
		t.Errorf("the document is of AsyncAPI %s", doc.Version)
	}
	sent := make(map[string]bool)
	for name, o := range doc.Operations {
		if o.Action != "send" {
			t.Errorf("operation %s: the relay sends, and does not %s", name, o.Action)
		}
		sent[o.Channel.To] = true
	}
	shapes := callbacks.Shapes()
	for _, shape := range shapes {
		name := shape.Type
		channel, message := doc.Channels[name], doc.Components.Messages[name]
		topic, _ := strings.CutPrefix(channel.Address, "{topic_prefix}.")
		closed, parameter, open := strings.Cut(topic, "{")
		if closed != shape.Topic || open != shape.Open || open && !strings.HasSuffix(parameter, "}") {
			t.Errorf("channel %s has the address %s, the rule's topic is %s (open: %t)", name, channel.Address,
				shape.Topic, shape.Open)
		}
		if to := channel.Messages[name].To; to != "#/components/messages/"+name || len(channel.Messages) != 1 {
			t.Errorf("channel %s has the messages %v", name, channel.Messages)
		}
		if !sent["#/channels/"+name] {
			t.Errorf("no operation sends to channel %s", name)
		}
		want := "schemas/" + name + ".json#/$defs/"
		if message.Headers.To != want+"props" || message.Payload.To != want+"body" || message.Name != name {
			t.Errorf("message %s is %+v", name, message)
		}
		if title := titleOf(t, name); channel.Title != title || message.Title != title {
			t.Errorf("%s is called %q, %q and, in its schema, %q", name, channel.Title, message.Title, title)
		}
	}
	if n := len(shapes); len(doc.Channels) != n || len(doc.Components.Messages) != n ||
		len(doc.Operations) != n {
		t.Errorf("%d channels, %d messages and %d operations for %d rules",
			len(doc.Channels), len(doc.Components.Messages), len(doc.Operations), n)
	}
}

func titleOf(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docsDir, "schemas", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Title string }
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema.Title
}

// TestEveryTopicIsOfOneChannel: also where a channel's parameters say which words may stand in its address.
func TestEveryTopicIsOfOneChannel(t *testing.T) {
	t.Parallel()
	doc, _ := loadAsyncAPI(t)
	patterns := make(map[string]*regexp.Regexp)
	for name, channel := range doc.Channels {
		words := strings.Split(strings.TrimPrefix(channel.Address, "{topic_prefix}."), ".")
		for i, word := range words {
			parameter, open := strings.CutPrefix(word, "{")
			if !open {
				words[i] = regexp.QuoteMeta(word)
				continue
			}
			to := channel.Parameters[strings.TrimSuffix(parameter, "}")].To
			enum := doc.Components.Parameters[strings.TrimPrefix(to, "#/components/parameters/")].Enum
			words[i] = "(" + strings.Join(enum, "|") + ")"
			if enum == nil {
				words[i] = "[^.]+"
			}
		}
		patterns[name] = regexp.MustCompile("^" + strings.Join(words, "[.]") + "$")
	}
	for _, run := range []string{"extra0", "extra500"} {
		every(t, run, func(m goldenMessage) {
			want, _ := m.Props[0][2].(string)
			if doc.Channels[want].Address == "" {
				want = "other"
			}
			for name, pattern := range patterns {
				if pattern.MatchString(m.Address) != (name == want) {
					t.Errorf("%s of type %s: does channel %s (%s) fit?", m.Address, want, name, pattern)
				}
			}
		})
	}
}

func TestEveryReferenceLeadsSomewhere(t *testing.T) {
	t.Parallel()
	_, raw := loadAsyncAPI(t)
	files, err := filepath.Glob(schemaDir + "/*.json")
	if err != nil {
		t.Fatal(err)
	}
	documents := map[string]any{filepath.Join(docsDir, "asyncapi.yaml"): raw}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var document any
		if err := json.Unmarshal(text, &document); err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		documents[filepath.Clean(file)] = document
	}
	count := 0
	for file, document := range documents {
		references(document, func(to string) {
			count++
			path, pointer, _ := strings.Cut(to, "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			found, ok := documents[target]
			for word := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
				object, _ := found.(map[string]any)
				found, ok = object[word]
			}
			if !ok {
				t.Errorf("%s refers to %s, which is not there", file, to)
			}
		})
	}
	if count < 150 {
		t.Errorf("only %d references were found", count)
	}
}

// references calls each with the target of every $ref in value.
func references(value any, each func(to string)) {
	switch v := value.(type) {
	case map[string]any:
		if to, ok := v["$ref"].(string); ok {
			each(to)
		}
		for _, inner := range v {
			references(inner, each)
		}
	case []any:
		for _, inner := range v {
			references(inner, each)
		}
	}
}
