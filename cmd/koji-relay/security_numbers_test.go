package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// securityNumbers is where each number of docs/security.md comes from: a constant of a file, a key's
// default, or another piece of the source.
var securityNumbers = []struct {
	said string // in the document, with its number
	file string
	name string // of a constant; of a key in config/keys.go; or empty
	is   string // its source text; in docs/security.md the same number stands in words for people
}{
	{"mode is 0660", "config/keys.go", "socket_mode", "0660"},
	{"(`control.sock`, 0600)", "internal/daemon/daemon.go", "", "Path: c.Control, Mode: 0o600"},
	{"`max_request_bytes` (64 MiB)", "config/keys.go", "max_request_bytes", fmt.Sprint(64 << 20)},
	{"`max_inflight_bytes` (128 MiB)", "config/keys.go", "max_inflight_bytes", fmt.Sprint(128 << 20)},
	{"more than 100,000 events", "internal/message/message.go", "MaxEvents", "100_000"},
	{"end after 5 s", "internal/ingest/ingest.go", "bodyTimeout", "5 * time.Second"},
	{"1,024 for the hub", "internal/daemon/listener.go", "mostHub", "1024"},
	{"64 for the page", "internal/daemon/listener.go", "mostAdmin", "64"},
	{"16 for commands", "internal/daemon/listener.go", "mostControl", "16"},
	{"400 with the place", "internal/ingest/read.go", "", "http.StatusBadRequest"},
	{"on RabbitMQ 4 it is escaped", "internal/amqpconn/dialect/dialect.go", "", "p.major() >= 4"},
	{"200 of each", "internal/admin/metrics.go", "maxLabelValues", "200"},
}

// TestNumbersOfTheSecurityNotesAreThoseOfTheCode: each number of docs/security.md is that of the code, and a
// new one needs its row here.
func TestNumbersOfTheSecurityNotesAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	left := string(text)
	for _, row := range securityNumbers {
		if !strings.Contains(left, row.said) {
			t.Errorf("docs/security.md does not say %q", row.said)
		}
		left = strings.Replace(left, row.said, "", 1)
		if found := sourceOf(t, row.file, row.name, row.is); found != row.is {
			t.Errorf("docs/security.md says %q, and %s has %s = %s, not %s", row.said, row.file, row.name, found,
				row.is)
		}
	}
	numbers := regexp.MustCompile("`[^`]*`|\\d[\\d,.]*").FindAllString(left, -1)
	numbers = slices.DeleteFunc(numbers, func(n string) bool { return strings.HasPrefix(n, "`") }) // names
	if len(numbers) > 0 {
		t.Errorf("docs/security.md has numbers without a row in this test: %q", numbers)
	}
}

// sourceOf gives the value of a constant or of a key's default; without a name it is text, if the file has
// that.
func sourceOf(t *testing.T, file, name, text string) string {
	t.Helper()
	source, err := os.ReadFile("../../" + file)
	if err != nil {
		t.Fatal(err)
	}
	if name == "" {
		if strings.Contains(string(source), text) {
			return text
		}
		return "nothing"
	}
	if file == "config/keys.go" {
		row := regexp.MustCompile(`name: "` + name + `",[^\n]* def: "([^"]*)"`).FindSubmatch(source)
		if row == nil {
			return "nothing"
		}
		return string(row[1])
	}
	set := token.NewFileSet()
	parsed, err := parser.ParseFile(set, file, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := "nothing"
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, is := n.(*ast.ValueSpec)
		if !is || len(spec.Values) == 0 {
			return true
		}
		if i := slices.IndexFunc(spec.Names, func(id *ast.Ident) bool { return id.Name == name }); i >= 0 {
			found = string(source[set.Position(spec.Values[i].Pos()).Offset:set.Position(spec.Values[i].End()).Offset])
		}
		return true
	})
	return found
}
