package callbacks_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

func TestEventWithoutAddressIsUndeliverableWithItsReason(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 1001) + strings.Repeat("]", 1001)
	for _, row := range []struct{ callback, kwargs, reason string }{
		{"postPackageListChange", `{"tag": {"name": "t"}}`, `no address: "action" is missing`},
		{"postPackageListChange", `{"action": null}`, `no address: "action" is null, not a string`},
		{"postPackageListChange", `{"action": 1}`, `no address: "action" is a number, not a string`},
		{"prePackageListChange", `{"action": ["add"]}`, `no address: "action" is an array, not a string`},
		{"postPackageListChange", `{"action": "\ud800"}`,
			`no address: "action" holds half a surrogate pair, which is not text`},
		{"postPackageListChange", `{"action": "a\u0000b"}`, `no address: it would hold the character U+0000`},
		{"other\x00", `{}`, `no address: it would hold the character U+0000`},
		{"postImport", `{"type": {}, "build": {}}`, `no address: "type" is an object, not a string`},
		{"postImport", `{"build": {}}`, `no address: "type" is missing`},
		{"postTaskStateChange", `{"attribute": "state", "new": false}`,
			`no address: "new" is a boolean, not a string`},
		{"postTaskStateChange", `{"attribute": "state", "new": 2}`, `no address: "new" is a number, not a string`},
		{"postBuildStateChange", `{"attribute": "state"}`, `no address: "new" is missing`},
		{"postBuildStateChange", `{"attribute": "state", "new": null}`,
			`no address: "new" is null, not the number of a build state`},
		{"postBuildStateChange", `{"attribute": "state", "new": "COMPLETE"}`,
			`no address: "new" is a string, not the number of a build state`},
		{"postBuildStateChange", `{"attribute": "state", "new": true}`,
			`no address: "new" is a boolean, not the number of a build state`},
		{"postBuildStateChange", `{"attribute": "state", "new": 1.0}`,
			`no address: "new" is a number, not the number of a build state`},
		{"postBuildStateChange", `{"attribute": "state", "new": 5}`,
			`no address: "new" is 5, not a build state; they are 0 to 4`},
		{"preBuildStateChange", `{"attribute": "state", "new": -1}`,
			`no address: "new" is -1, not a build state; they are 0 to 4`},
		{"postBuildStateChange", `{"attribute": "state", "new": 99999999999999999999999999}`,
			`no address: "new" is 999999999999999999999999…, not a build state; they are 0 to 4`},
		{"postTag", `null`, "kwargs are null, not a JSON object"},
		{"postTag", ` [1] `, "kwargs are an array, not a JSON object"},
		{"postNewThing", `"x"`, "kwargs are a string, not a JSON object"},
		{"postTag", ``, "kwargs are not JSON that can be sent: byte 0: the text ends where a value should be"},
		{"postTag", `{"a": NaN}`,
			"kwargs are not JSON that can be sent: byte 6: found \"N\" where a value should be"},
		{"postTag", `{"a": 1} {}`,
			"kwargs are not JSON that can be sent: byte 9: text after the end of the JSON value"},
		{"postTag", `{"a": 1`, "kwargs are not JSON that can be sent: byte 7: the text ends where ',' or '}' " +
			"should be"},
		{"postTag", "{\"a\": \"\xff\"}", "kwargs are not valid UTF-8 at byte 7"},
		{"postTag", "{\"a\": \"\xed\xa0\x80\"}", "kwargs are not valid UTF-8 at byte 7"},
		{"postTag", `{"a": ` + deep + `}`,
			"kwargs are not JSON that can be sent: byte 1005: values are nested too deeply"},
	} {
		t.Run(row.callback+row.reason, func(t *testing.T) {
			t.Parallel()
			got := translate(t, row.callback, row.kwargs)
			id, err := callbacks.MessageID(commitID, 3)
			if err != nil {
				t.Fatal(err)
			}
			want := callbacks.Translation{Undeliverable: []message.Undeliverable{{
				ID: id, Commit: commitID, Event: 3, Callback: row.callback, Kwargs: []byte(row.kwargs),
				Reason: row.reason,
			}}}
			if row.kwargs == "" {
				want.Undeliverable[0].Kwargs = got.Undeliverable[0].Kwargs
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUndeliverableEventLeavesItsNeighboursAlone(t *testing.T) {
	t.Parallel()
	line := []byte(`{"commit": "` + commitID + `", "events": [` +
		`{"callback": "postTag", "kwargs": {"n": 0}}, ` +
		"{\"callback\": \"postTag\", \"kwargs\": {\"n\": \"\xff\"}}, " +
		`{"callback": "postTag", "kwargs": [2]}, ` +
		`{"callback": "postImport", "kwargs": {"n": 3}}, ` +
		`{"callback": "postCommit", "kwargs": {}}, ` +
		`{"callback": "postUntag", "kwargs": {"n": 5}}]}`)
	c, err := callbacks.DecodeCommit(line)
	if err != nil {
		t.Fatal(err)
	}
	got := newRules(t, callbacks.Options{}).Translate(c)
	if len(got.Messages) != 2 || got.Messages[0].Body != `{"n": 0}` || got.Messages[1].Body != `{"n": 5}` {
		t.Errorf("messages are %+v", got.Messages)
	}
	if got.Messages[0].Event != 0 || got.Messages[1].Event != 5 || len(got.Skipped) != 1 {
		t.Errorf("numbers are wrong: %+v", got)
	}
	var dead []int
	for _, u := range got.Undeliverable {
		dead = append(dead, u.Event)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, dead); diff != "" {
		t.Errorf("undeliverable (-want +got):\n%s", diff)
	}
	clear(line) // the reader's buffer is used again
	if string(got.Undeliverable[1].Kwargs) != "[2]" || got.Messages[1].Body != `{"n": 5}` {
		t.Error("what came out changes with the buffer that the commit was read from")
	}
}

func TestCommitWithoutUUIDIsUndeliverableUnderAStableID(t *testing.T) {
	t.Parallel()
	c := message.Commit{ID: "abc", Events: []message.Event{
		{Number: 0, Callback: "postTag", Kwargs: []byte(`{}`)},
		{Number: 1, Callback: "postTag", Kwargs: []byte(`{}`)},
	}}
	rules := newRules(t, callbacks.Options{})
	first, second := rules.Translate(c).Undeliverable, rules.Translate(c).Undeliverable
	if len(first) != 2 || first[0].ID == first[1].ID ||
		!strings.Contains(first[0].Reason, `"abc" is not a UUID`) {
		t.Errorf("undeliverable are %+v", first)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the ids change:\n%s", diff)
	}
}
