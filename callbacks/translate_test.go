package callbacks_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

const commitID = "7f3c2a10-5b1e-4c6f-9d2a-0e8b6a4c1f55"

// translate gives the translation of one event under events = *.
func translate(t *testing.T, callback, kwargs string) callbacks.Translation {
	t.Helper()
	return newRules(t, callbacks.Options{Events: []string{"*"}}).Translate(message.Commit{
		ID: commitID, Events: []message.Event{{Number: 3, Callback: callback, Kwargs: []byte(kwargs)}},
	})
}

// describe writes what a message says on one line: address, then props with their types.
func describe(m message.Message) string {
	var b strings.Builder
	b.WriteString(m.Address)
	for _, p := range m.Props {
		switch v := p.Value.(type) {
		case string:
			fmt.Fprintf(&b, " %s=%q", p.Key, v)
		case json.RawMessage:
			fmt.Fprintf(&b, " %s=raw(%s)", p.Key, v)
		default:
			fmt.Fprintf(&b, " %s=%T(%v)", p.Key, v, v)
		}
	}
	return b.String()
}

// One row for each callback of Koji 1.35 with the kwargs that kojihub passes (shortened), the pre events with
// what they lack.
var rows = []struct{ callback, kwargs, want string }{
	{
		"postPackageListChange",
		`{"action": "block", "tag": {"id": 1, "name": "f39"}, "package": {"id": 3, "name": "bash"}, "owner": 1, ` +
			`"block": true, "user": {"id": 1, "name": "mike"}}`,
		`package.block type="PackageListChange" tag="f39" package="bash" action="block" user="mike"`,
	},
	{
		"prePackageListChange",
		`{"action": "remove", "tag": {"name": "f39"}, "package": {"name": "bash"}, "user": {"name": "mike"}}`,
		`pre.package.remove type="prePackageListChange" tag="f39" package="bash" action="remove" user="mike"`,
	},
	{
		"postTaskStateChange",
		`{"attribute": "state", "old": "OPEN", "new": "CLOSED", "info": {"id": 7, "parent": 6, ` +
			`"method": "build", "state": 2, "extra": {"x": 1}}}`,
		`task.closed type="TaskStateChange" id=int64(7) parent=int64(6) method="build" attribute="state" ` +
			`old="OPEN" new="CLOSED"`,
	},
	{ // make_task: no id yet, and for a top level task no parent
		"preTaskStateChange",
		`{"attribute": "state", "old": null, "new": "FREE", "info": {"method": "build", "request": "<xml/>"}}`,
		`pre.task.free type="preTaskStateChange" id=<nil>(<nil>) parent=<nil>(<nil>) method="build" ` +
			`attribute="state" old=<nil>(<nil>) new="FREE"`,
	},
	{
		"postBuildStateChange",
		`{"attribute": "state", "old": 0, "new": 1, "info": {"name": "bash", "version": "5.2", ` +
			`"release": "1.fc39", "extra": null}, "btypes": {"rpm": null}}`,
		`build.complete type="BuildStateChange" name="bash" version="5.2" release="1.fc39" attribute="state" ` +
			`old="BUILDING" new="COMPLETE"`,
	},
	{
		"preBuildStateChange",
		`{"attribute": "state", "old": null, "new": 0, "info": {"name": "bash", "version": "5.2", "release": "1"}}`,
		`pre.build.building type="preBuildStateChange" name="bash" version="5.2" release="1" attribute="state" ` +
			`old=<nil>(<nil>) new="BUILDING"`,
	},
	{
		"postImport",
		`{"type": "archive", "archive": {"name": "x"}, "build": {"name": "bash", "version": "5.2", ` +
			`"release": "1"}, "build_type": "image", "filepath": "/f", "fileinfo": {"type": "no"}}`,
		`import.archive type="Import" importType="archive" name="bash" version="5.2" release="1"`,
	},
	{ // import_build of a new build
		"preImport",
		`{"type": "build", "srpm": "a.src.rpm", "rpms": [], "brmap": {}, "task_id": 1, "build_id": null, ` +
			`"build": null, "logs": null}`,
		`pre.import.build type="preImport" importType="build" name=<nil>(<nil>) version=<nil>(<nil>) ` +
			`release=<nil>(<nil>)`,
	},
	{ // a content generator's import has no build before it is imported
		"preImport", `{"type": "cg", "metadata": {"build": {"name": "no"}}, "directory": "d"}`,
		`pre.import.cg type="preImport" importType="cg" name=<nil>(<nil>) version=<nil>(<nil>) ` +
			`release=<nil>(<nil>)`,
	},
	{
		"postRPMSign",
		`{"sigkey": "abcd1234", "sighash": "ff", "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"rpm": {"name": "bash-doc", "version": "5.3", "release": "2", "arch": "noarch"}}`,
		`sign.rpm type="RPMSign" sigkey="abcd1234" name="bash" version="5.2" release="1" rpm_name="bash-doc" ` +
			`rpm_version="5.3" rpm_release="2" rpm_arch="noarch"`,
	},
	{
		"preRPMSign",
		`{"sigkey": "abcd1234", "sighash": "ff", "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"rpm": {"name": "b", "version": "5", "release": "2", "arch": "src"}}`,
		`pre.sign.rpm type="preRPMSign" sigkey="abcd1234" name="bash" version="5.2" release="1" rpm_name="b" ` +
			`rpm_version="5" rpm_release="2" rpm_arch="src"`,
	},
	{
		"postTag", `{"tag": {"name": "f39"}, "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"user": {"name": "mike"}, "force": null}`,
		`build.tag type="Tag" tag="f39" name="bash" version="5.2" release="1" user="mike"`,
	},
	{
		"preTag", `{"tag": {"name": "f39"}, "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"user": {"name": "mike"}, "force": true}`,
		`pre.build.tag type="preTag" tag="f39" name="bash" version="5.2" release="1" user="mike"`,
	},
	{
		"postUntag", `{"tag": {"name": "f39"}, "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"user": {"name": "mike"}, "force": null, "strict": true}`,
		`build.untag type="Untag" tag="f39" name="bash" version="5.2" release="1" user="mike"`,
	},
	{
		"preUntag", `{"tag": {"name": "f39"}, "build": {"name": "bash", "version": "5.2", "release": "1"}, ` +
			`"user": {"name": "mike"}}`,
		`pre.build.untag type="preUntag" tag="f39" name="bash" version="5.2" release="1" user="mike"`,
	},
	{
		"postRepoInit", `{"tag": {"name": "f39"}, "event": null, "repo_id": 12, "task_id": 5, "opts": {}}`,
		`repo.init type="RepoInit" tag="f39" repo_id=int64(12) task_id=int64(5)`,
	},
	{ // dist repo: no task_id; the pre event has no repo yet
		"preRepoInit", `{"tag": {"name": "f39"}, "with_src": false, "event": null, "repo_id": null, ` +
			`"dist": true, "keys": []}`,
		`pre.repo.init type="preRepoInit" tag="f39" repo_id=<nil>(<nil>) task_id=<nil>(<nil>)`,
	},
	{
		"postRepoDone", `{"repo": {"id": 12, "tag_name": "f39", "task_id": 5}, "data": {"x86_64": ["p", ` +
			`["f"]]}, "expire": false}`,
		`repo.done type="RepoDone" tag="f39" repo_id=int64(12) task_id=int64(5) expire=bool(false)`,
	},
	{
		"preRepoDone", `{"repo": {"id": 12, "tag_name": "f39", "task_id": null}, "data": {}, "expire": true, ` +
			`"task_id": 9}`,
		`pre.repo.done type="preRepoDone" tag="f39" repo_id=int64(12) task_id=<nil>(<nil>) expire=bool(true)`,
	},
	{
		"postBuildPromote",
		`{"draft_release": "1,draft_77", "target_release": "1", "build": {"id": 77, "name": "bash", ` +
			`"version": "5.2", "release": "1", "draft": false}, "user": {"name": "mike"}}`,
		`build.promote type="BuildPromote" build_id=int64(77) name="bash" version="5.2" release="1" ` +
			`draft_release="1,draft_77" target_release="1" user="mike"`,
	},
	{
		"preBuildPromote",
		`{"draft_release": "1,draft_77", "target_release": "1", "build": {"id": 77, "name": "bash", ` +
			`"version": "5.2", "release": "1,draft_77", "draft": true}, "user": {"name": "mike"}}`,
		`pre.build.promote type="preBuildPromote" build_id=int64(77) name="bash" version="5.2" ` +
			`release="1,draft_77" draft_release="1,draft_77" target_release="1" user="mike"`,
	},
	{"postNewThing", `{"a": 1}`, `other.postNewThing type="NewThing"`},
	{"preNewThing", `{}`, `other.preNewThing type="preNewThing"`},
	{"postSCMCheckout", `{}`, `other.postSCMCheckout type="SCMCheckout"`},
	{"thing", `{"build": {"extra": "as it came"}}`, `other.thing type="thing"`},
	{"post", `{}`, `other.post type="post"`},
}

func TestEachCallbackHasItsAddressAndProps(t *testing.T) {
	t.Parallel()
	for i, row := range rows {
		t.Run(fmt.Sprint(i, row.callback), func(t *testing.T) {
			t.Parallel()
			got := translate(t, row.callback, row.kwargs)
			if len(got.Messages) != 1 || len(got.Skipped) != 0 || got.Undeliverable != nil {
				t.Fatalf("translation is %+v", got)
			}
			m := got.Messages[0]
			if diff := cmp.Diff(row.want, describe(m)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if m.Commit != commitID || m.Event != 3 || m.Callback != row.callback || !m.Created.IsZero() {
				t.Errorf("message does not say where it comes from: %+v", m)
			}
			if !strings.Contains(row.callback, "Repo") && m.Body != row.kwargs {
				t.Errorf("body is %s", m.Body)
			}
			if news := strings.HasPrefix(row.want, "pre."); m.News() != news {
				t.Errorf("News is %t", m.News())
			}
		})
	}
}

func TestPropsKeepTypeAndValue(t *testing.T) {
	t.Parallel()
	raw := func(s string) any { return json.RawMessage(s) }
	for kwargs, want := range map[string]any{
		`"text"`:                 "text",
		`""`:                     "",
		`"q\"\\\/\b\f\n\r\t"`:    "q\"\\/\b\f\n\r\t",
		`"\u0000\u001f\u007f"`:   "\x00\x1f\x7f",
		`"\u65e5本"`:              "日本",
		`"\ud83d\ude00\uD83D😀"`:  raw(`"\ud83d\ude00\uD83D😀"`), // half a pair at its end
		`"\ud83d\ude00😀"`:        "😀😀",
		`"\ud83d"`:               raw(`"\ud83d"`),
		`"\ude00\ud83d"`:         raw(`"\ude00\ud83d"`),
		`"\ud83dx\ude00"`:        raw(`"\ud83dx\ude00"`),
		`"\ud83d\u0041"`:         raw(`"\ud83d\u0041"`),
		`"\ufffd"`:               "\ufffd",
		`0`:                      int64(0),
		`-0`:                     int64(0),
		`-1`:                     int64(-1),
		`9223372036854775807`:    int64(9223372036854775807),
		`-9223372036854775808`:   int64(-9223372036854775808),
		`9223372036854775808`:    raw(`9223372036854775808`),
		`-9223372036854775809`:   raw(`-9223372036854775809`),
		`1.0`:                    1.0,
		`-2.5`:                   -2.5,
		`1e+16`:                  1e16,
		`5e-324`:                 5e-324,
		`1E2`:                    100.0,
		`1e400`:                  raw(`1e400`),
		`true`:                   true,
		`false`:                  false,
		`null`:                   nil,
		`{"a": 1}`:               raw(`{"a": 1}`),
		`[1, 2]`:                 raw(`[1, 2]`),
		`{"name": "not looked"}`: raw(`{"name": "not looked"}`),
	} {
		t.Run(kwargs, func(t *testing.T) {
			t.Parallel()
			got := translate(t, "postRepoInit", `{"repo_id": `+kwargs+`, "tag": {"name": `+kwargs+`}}`)
			if len(got.Messages) != 1 {
				t.Fatalf("translation is %+v", got)
			}
			for _, p := range got.Messages[0].Props[1:3] {
				if diff := cmp.Diff(want, p.Value); diff != "" {
					t.Errorf("%s (-want +got):\n%s", p.Key, diff)
				}
			}
		})
	}
}

func TestTaskIDIsAppendedToRepoEventsThatLackIt(t *testing.T) {
	t.Parallel()
	for kwargs, want := range map[string]string{
		`{}`:                           `{"task_id": null}`,
		`{"a": 1}`:                     `{"a": 1, "task_id": null}`,
		`{"a": {"task_id": 5}}`:        `{"a": {"task_id": 5}, "task_id": null}`,
		`{"task_id": 5, "a": 1}`:       `{"task_id": 5, "a": 1}`,
		`{"a": 1, "task_id": null}`:    `{"a": 1, "task_id": null}`,
		`{"task\u005fid": 1}`:          `{"task\u005fid": 1}`,
		`{ "a" : 1 }`:                  `{ "a" : 1, "task_id": null }`,
		` { } `:                        ` {"task_id": null } `,
		`{"a": "\"}", "b": [{}, "}"]}`: `{"a": "\"}", "b": [{}, "}"], "task_id": null}`,
	} {
		for _, callback := range []string{"postRepoInit", "postRepoDone", "preRepoInit", "preRepoDone"} {
			got := translate(t, callback, kwargs)
			if len(got.Messages) != 1 || got.Messages[0].Body != want {
				t.Errorf("%s of %s gives %+v", callback, kwargs, got)
			}
		}
		if got := translate(t, "postTag", kwargs); got.Messages[0].Body != kwargs {
			t.Errorf("postTag of %s gives %s", kwargs, got.Messages[0].Body)
		}
	}
}

func TestOldStateWithoutNameIsNull(t *testing.T) {
	t.Parallel()
	for _, old := range []string{`null`, `5`, `-1`, `"BUILDING"`, `true`, `1.0`} {
		got := translate(t, "postBuildStateChange", `{"attribute": "state", "old": `+old+`, "new": 2}`)
		if len(got.Messages) != 1 || got.Messages[0].Props[5] != (message.Prop{Key: "old"}) {
			t.Errorf("old %s gives %+v", old, got)
		}
	}
}

func TestLastOfARepeatedKeyCounts(t *testing.T) {
	t.Parallel()
	got := translate(t, "postTag",
		`{"tag": {"name": "a", "name": "b"}, "tag": {"id": 1}, "build": {"name": "x"}, "build": {"name": "y", `+
			`"n\u0061me": "z"}}`)
	want := `build.tag type="Tag" tag=<nil>(<nil>) name="z" version=<nil>(<nil>) release=<nil>(<nil>) ` +
		`user=<nil>(<nil>)`
	if diff := cmp.Diff(want, describe(got.Messages[0])); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNamesAreThoseOfTheTable(t *testing.T) {
	t.Parallel()
	names := callbacks.Names()
	if len(names) != 20 || names[0] != "postPackageListChange" || !slices.Contains(names, "preBuildPromote") {
		t.Errorf("%v", names)
	}
}

func TestMessageIDIsTheSameForTheSameEvent(t *testing.T) {
	t.Parallel()
	// By Python: uuid.uuid5(uuid.UUID(commit), str(event)).
	for _, row := range []struct {
		commit string
		event  int
		want   string
	}{
		{commitID, 0, "92be4b02-b526-50cc-b361-39279f625586"},
		{commitID, 12, "47225c9f-83b3-5707-846b-1c717e51a47d"},
		{strings.ToUpper(commitID), 0, "92be4b02-b526-50cc-b361-39279f625586"},
	} {
		got, err := callbacks.MessageID(row.commit, row.event)
		if err != nil || got != row.want {
			t.Errorf("event %d of %s has id %s (%v), want %s", row.event, row.commit, got, err, row.want)
		}
	}
	for _, commit := range []string{"", "x", "urn:uuid:" + commitID, "{" + commitID + "}",
		strings.ReplaceAll(commitID, "-", ""), commitID + " "} {
		if id, err := callbacks.MessageID(commit, 0); err == nil {
			t.Errorf("commit %q gave the id %s", commit, id)
		}
	}
	if id, err := callbacks.MessageID(commitID, -1); err == nil {
		t.Errorf("event -1 gave the id %s", id)
	}
}

func TestRulesAreSharedByGoroutines(t *testing.T) {
	t.Parallel()
	rules := newRules(t, callbacks.Options{Events: []string{"*"}, ExtraLimit: 10, ExtraKeep: []string{"a"}})
	c := message.Commit{ID: commitID}
	for i, row := range rows {
		c.Events = append(c.Events, message.Event{Number: i, Callback: row.callback, Kwargs: []byte(row.kwargs)})
	}
	want := rules.Translate(c)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for range 20 {
				if diff := cmp.Diff(want, rules.Translate(c)); diff != "" {
					t.Error(diff)
					return
				}
			}
		})
	}
	workers.Wait()
}
