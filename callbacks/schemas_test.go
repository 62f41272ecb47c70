package callbacks_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"koji-relay/callbacks"
)

// The schemas that consumers read, docs/schemas/TYPE.json, against what the table makes. TYPE is the
// application-property "type"; callbacks that the table does not know share other.json.

const schemaDir = "../docs/schemas"

// loadSchemas compiles every schema but koji.json, which only has parts of the others.
func loadSchemas(t testing.TB) map[string]*jsonschema.Schema {
	t.Helper()
	files, err := filepath.Glob(schemaDir + "/*.json")
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schemas := make(map[string]*jsonschema.Schema)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		schema, err := compiler.Compile(file)
		if err != nil {
			t.Fatalf("compile %s: %v", file, err)
		}
		if schema.DraftVersion != 2020 {
			t.Errorf("%s is of draft %d, not 2020-12", file, schema.DraftVersion)
		}
		if name != "koji" {
			schemas[name] = schema
		}
	}
	return schemas
}

func schemaOf(t testing.TB, schemas map[string]*jsonschema.Schema, kind any) *jsonschema.Schema {
	t.Helper()
	name, _ := kind.(string)
	if s := schemas[name]; s != nil {
		return s
	}
	return schemas["other"]
}

// asInstance is a message in the form that the schemas describe: body parsed, props as an object.
func asInstance(t testing.TB, m goldenMessage) map[string]any {
	t.Helper()
	body, err := jsonschema.UnmarshalJSON(strings.NewReader(m.Body))
	if err != nil {
		t.Fatalf("body of %s: %v", m.Address, err)
	}
	props := make(map[string]any)
	for _, p := range m.Props {
		key, _ := p[0].(string)
		props[key] = p[2]
	}
	id, err := callbacks.MessageID(m.Commit, m.Event)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"message_id": id, "address": m.Address, "props": props, "body": body}
}

// every calls each with protonmsg's golden messages, and with the pre events' and an unknown callback's that
// the golden commits give besides. No hub of the golden data promoted a build, so one is made of a golden tag
// event.
func every(t testing.TB, run string, each func(goldenMessage)) {
	t.Helper()
	for _, m := range goldenMessages(t, run) {
		each(m)
		if m.Callback == "postTag" && m.Event == 1 {
			for _, made := range promotions(t, m) {
				each(made)
			}
		}
	}
	limit := map[string]int{"extra0": 0, "extra500": 500}[run]
	rules := newRules(t, callbacks.Options{Events: []string{"pre*"}, ExtraLimit: limit})
	golden(t, "commits."+run+".jsonl", func(line []byte) {
		c, err := callbacks.DecodeCommit(line)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range rules.Translate(c).Messages {
			each(asGolden(m))
		}
	})
}

// promotions gives a pre and a post event of a promotion, and one of a callback that is not in the table.
func promotions(t testing.TB, tag goldenMessage) (made []goldenMessage) {
	t.Helper()
	var body struct{ Build, User json.RawMessage }
	if err := json.Unmarshal([]byte(tag.Body), &body); err != nil {
		t.Fatal(err)
	}
	line := fmt.Appendf(nil, `{"commit": %q, "events": [`, tag.Commit)
	for i, callback := range []string{"preBuildPromote", "postBuildPromote", "postNewThing"} {
		line = fmt.Appendf(line,
			`%s{"callback": %q, "kwargs": {"draft_release": "2,draft_7", "target_release": "2", "build": %s, `+
				`"user": %s}}`, strings.Repeat(", ", min(i, 1)), callback, body.Build, body.User)
	}
	c, err := callbacks.DecodeCommit(append(line, "]}"...))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range newRules(t, callbacks.Options{Events: []string{"*"}}).Translate(c).Messages {
		made = append(made, asGolden(m))
	}
	return made
}

func TestEveryMessageFitsTheSchemaOfItsType(t *testing.T) {
	t.Parallel()
	schemas := loadSchemas(t)
	for _, run := range []string{"extra0", "extra500"} {
		t.Run(run, func(t *testing.T) {
			t.Parallel()
			seen := make(map[string]int)
			every(t, run, func(m goldenMessage) {
				seen[strings.TrimPrefix(m.Callback, "post")]++
				if err := schemaOf(t, schemas, m.Props[0][2]).Validate(asInstance(t, m)); err != nil {
					t.Errorf("%s event %d of commit %s: %v", m.Callback, m.Event, m.Commit, err)
				}
			})
			seen["other"] = seen["NewThing"]
			for name := range schemas {
				if seen[name] == 0 {
					t.Errorf("no message tries the schema %s", name)
				}
			}
		})
	}
}

// TestSchemasRefuseEachMissingKeyAndWrongType takes a message of each type apart: each key that its schema
// requires is left out, and each value that its schema names is replaced by one of each type that it may not
// have.
func TestSchemasRefuseEachMissingKeyAndWrongType(t *testing.T) {
	t.Parallel()
	schemas := loadSchemas(t)
	tried := make(map[string]int)
	every(t, "extra0", func(m goldenMessage) {
		schema := schemaOf(t, schemas, m.Props[0][2])
		name := m.Address // not its type: one schema has several shapes of address and body
		if tried[name] > 0 {
			return
		}
		instance := asInstance(t, m)
		refused := func(what string) {
			t.Helper()
			tried[name]++
			if schema.Validate(instance) == nil {
				t.Errorf("the schema of %s accepts it %s", name, what)
			}
		}
		takeApart(schema, "", instance, refused)
		if err := schema.Validate(instance); err != nil {
			t.Errorf("%s was not put together again: %v", name, err)
		}
	})
	if len(tried) < 30 {
		t.Errorf("only %d topics were tried: %v", len(tried), slices.Sorted(maps.Keys(tried)))
	}
	for name, n := range tried {
		if n < 10 {
			t.Errorf("%s: %d ways to be wrong, there should be more", name, n)
		}
	}
}

// takeApart changes object in every wrong way that schema knows of, calls refused for each, and changes it
// back.
func takeApart(schema *jsonschema.Schema, path string, object map[string]any, refused func(what string)) {
	for ; schema.Ref != nil; schema = schema.Ref {
		requiredKeys(schema, path, object, refused)
	}
	requiredKeys(schema, path, object, refused)
	for _, branch := range schema.AllOf {
		if branch.If != nil && branch.If.Validate(object) == nil {
			takeApart(branch.Then, path, object, refused)
		}
	}
	for key, below := range schema.Properties {
		value, here := object[key]
		if !here {
			continue
		}
		right := admitted(below)
		for _, wrong := range []any{nil, true, json.Number("1.5"), "text", []any{}, map[string]any{}} {
			if right == 0 && key == "result" || right&kindOf(wrong) != 0 { // a task's result is anything
				continue
			}
			object[key] = wrong
			refused(fmt.Sprintf("with %s.%s = %v", path, key, wrong))
		}
		object[key] = value
		if inner, ok := value.(map[string]any); ok {
			takeApart(below, path+"."+key, inner, refused)
		}
	}
}

func requiredKeys(schema *jsonschema.Schema, path string, object map[string]any, refused func(string)) {
	for _, key := range schema.Required {
		value := object[key]
		delete(object, key)
		refused("without " + path + "." + key)
		object[key] = value
	}
}

// kinds are sets of JSON types. No wrong value is of the last two: they are narrower than a type.
type kinds int

const (
	isNull kinds = 1 << iota
	isBoolean
	isNumber
	isString
	isArray
	isObject
	isInteger
	isConstant
)

var kindNames = map[string]kinds{
	"null": isNull, "boolean": isBoolean, "number": isNumber, "string": isString, "array": isArray,
	"object": isObject, "integer": isInteger,
}

func kindOf(value any) kinds {
	switch value.(type) {
	case nil:
		return isNull
	case bool:
		return isBoolean
	case json.Number:
		return isNumber
	case string:
		return isString
	case []any:
		return isArray
	}
	return isObject
}

// admitted are the kinds that schema admits; 0 where it admits all.
func admitted(schema *jsonschema.Schema) (all kinds) {
	if schema.Types != nil {
		for _, name := range schema.Types.ToStrings() {
			all |= kindNames[name]
		}
	}
	if schema.Const != nil || schema.Enum != nil {
		all |= isConstant
	}
	if schema.Ref != nil {
		all |= admitted(schema.Ref)
	}
	for _, one := range schema.AnyOf {
		all |= admitted(one)
	}
	return all
}

func TestSchemasAdmitWhatANewerKojiAdds(t *testing.T) {
	t.Parallel()
	schemas := loadSchemas(t)
	every(t, "extra500", func(m goldenMessage) {
		instance := asInstance(t, m)
		addKeys(instance)
		if err := schemaOf(t, schemas, m.Props[0][2]).Validate(instance); err != nil {
			t.Errorf("%s event %d of commit %s: %v", m.Callback, m.Event, m.Commit, err)
		}
	})
}

// addKeys puts a key into every object but the types of a build, which are objects themselves.
func addKeys(value any) {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			if key != "btypes" {
				addKeys(inner)
			}
		}
		v["added_by_a_newer_koji"] = json.Number("1")
	case []any:
		for _, inner := range v {
			addKeys(inner)
		}
	}
}

func TestEachRuleHasItsSchema(t *testing.T) {
	t.Parallel()
	schemas := loadSchemas(t)
	for _, shape := range callbacks.Shapes() {
		schema := schemas[shape.Type]
		if schema == nil {
			t.Errorf("there is no docs/schemas/%s.json", shape.Type)
			continue
		}
		delete(schemas, shape.Type)
		props := schema.Properties["props"]
		for props.Ref != nil {
			props = props.Ref
		}
		want := slices.Sorted(slices.Values(shape.Props))
		if diff := cmp.Diff(want, slices.Sorted(slices.Values(props.Required))); diff != "" {
			t.Errorf("%s: required props (-table +schema):\n%s", shape.Type, diff)
		}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(props.Properties))); diff != "" {
			t.Errorf("%s: props (-table +schema):\n%s", shape.Type, diff)
		}
		address := shape.Topic
		if shape.Open {
			address = map[string]string{"task.": "task.free", "pre.task.": "pre.task.free", "build.": "build.complete",
				"pre.build.": "pre.build.complete"}[address]
			if address == "" {
				address = shape.Topic + "anything"
			}
		}
		for given, right := range map[string]bool{address: true, "x" + address: false, shape.Topic + ".": false,
			strings.ToUpper(address): false} {
			if err := schema.Properties["address"].Validate(given); (err == nil) != right && shape.Type != "other" {
				t.Errorf("%s: address %q: %v", shape.Type, given, err)
			}
		}
	}
	for name := range schemas {
		t.Errorf("docs/schemas/%s.json is of no rule", name)
	}
}
