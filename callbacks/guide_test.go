package callbacks_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"koji-relay/callbacks"
)

// TestConsumersGuideHasTheTableOfRules: its topics, types and application-properties are those of the table.
func TestConsumersGuideHasTheTableOfRules(t *testing.T) {
	t.Parallel()
	rows := make(map[string][]string) // cells by type
	for line := range strings.Lines(consumersGuide(t)) {
		cells := strings.Split(line, " | ")
		if kind, schema, ok := strings.Cut(cells[min(1, len(cells)-1)], "](schemas/"); ok && len(cells) == 4 {
			kind = strings.TrimPrefix(kind, "[")
			if schema != kind+".json)" {
				t.Errorf("%s leads to the schema %s", kind, schema)
			}
			rows[kind] = cells
		}
	}
	for _, shape := range callbacks.Shapes() {
		if shape.Type == "other" || strings.HasPrefix(shape.Type, "pre") {
			continue
		}
		cells := rows[shape.Type]
		delete(rows, shape.Type)
		if cells == nil {
			t.Errorf("docs/consumers.md has no %s", shape.Type)
			continue
		}
		topic := strings.Trim(cells[0], "| `")
		if closed := strings.TrimRight(topic, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"); closed != shape.Topic ||
			(closed != topic) != shape.Open {
			t.Errorf("%s: the topic is %s, in the table of rules %s (open: %t)", shape.Type, topic, shape.Topic,
				shape.Open)
		}
		if diff := cmp.Diff("`"+strings.Join(shape.Props[1:], "` `")+"` |\n", cells[3]); diff != "" {
			t.Errorf("%s: application-properties (-table of rules +docs/consumers.md):\n%s", shape.Type, diff)
		}
	}
	for kind := range rows {
		t.Errorf("docs/consumers.md has %s, which is of no rule", kind)
	}
}

func consumersGuide(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(docsDir + "/consumers.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestMessageInTheConsumersGuideIsReal: what is shown there is a golden message, in the form of the schemas.
func TestMessageInTheConsumersGuideIsReal(t *testing.T) {
	t.Parallel()
	_, block, _ := strings.Cut(consumersGuide(t), "```json\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("docs/consumers.md shows no message")
	}
	shown, err := jsonschema.UnmarshalJSON(strings.NewReader(block))
	if err != nil {
		t.Fatalf("read the message of docs/consumers.md: %v", err)
	}
	genuine := false
	every(t, "extra0", func(m goldenMessage) {
		genuine = genuine || cmp.Equal(shown, any(asInstance(t, m)))
	})
	if !genuine {
		t.Errorf("docs/consumers.md shows a message that no hub sent:\n%s", block)
	}
}
