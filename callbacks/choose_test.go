package callbacks_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

func TestEventsThatProtonmsgPassesOverAreSkipped(t *testing.T) {
	t.Parallel()
	sign := func(sigkey string) string {
		return `{` + sigkey + `"build": {"name": "bash"}, "rpm": {"name": "bash"}}`
	}
	for _, row := range []struct{ callback, kwargs string }{
		{"postBuildStateChange", `{"attribute": "volume_id", "old": 0, "new": 1, "info": {}}`},
		{"postBuildStateChange", `{"attribute": "owner_id", "old": 0, "new": 77, "info": {}}`},
		{"preBuildStateChange", `{"attribute": "volume_id", "old": 0, "new": 1, "info": {}}`},
		{"postTaskStateChange", `{"attribute": "weight", "old": 1.0, "new": 1.5, "info": {}}`},
		{"preTaskStateChange", `{"attribute": "weight", "old": 1.0, "new": 1.5, "info": {}}`},
		{"postTaskStateChange", `{"attribute": "State", "new": "OPEN"}`},
		{"postTaskStateChange", `{"attribute": null, "new": "OPEN"}`},
		{"postTaskStateChange", `{"new": "OPEN"}`},
		{"postRPMSign", sign(`"sigkey": "", `)},
		{"postRPMSign", sign(`"sigkey": null, `)},
		{"postRPMSign", sign(`"sigkey": false, `)},
		{"postRPMSign", sign(`"sigkey": 0, `)},
		{"postRPMSign", sign(`"sigkey": -0.0, `)},
		{"postRPMSign", sign(`"sigkey": [ ], `)},
		{"postRPMSign", sign(`"sigkey": {}, `)},
		{"postRPMSign", sign(``)},
		{"preRPMSign", sign(`"sigkey": "", `)},
		{"preCommit", `{}`},
		{"postCommit", `{}`},
	} {
		t.Run(row.callback+row.kwargs, func(t *testing.T) {
			t.Parallel()
			got := translate(t, row.callback, row.kwargs)
			if len(got.Skipped) != 1 || len(got.Messages)+len(got.Undeliverable) != 0 {
				t.Fatalf("got %+v", got)
			}
			if skipped := got.Skipped[0]; skipped.Reason == "" || skipped.Message.ID == "" ||
				skipped.Message.Body != "" {
				t.Errorf("got %+v, want a reason, an id and no body", skipped)
			}
		})
	}
	for _, sigkey := range []string{`" "`, `"0"`, `1`, `true`, `[0]`, `{"a": null}`, `1e-300`} {
		if got := translate(t, "postRPMSign", sign(`"sigkey": `+sigkey+`, `)); len(got.Messages) != 1 {
			t.Errorf("sigkey %s gave no message", sigkey)
		}
	}
}

func TestSkippedEventCanBeFoundByItsBuildAndTag(t *testing.T) {
	t.Parallel()
	rules, err := callbacks.New(callbacks.Options{Events: []string{"postTag"},
		ExcludeTags: []string{"*-rebuild"}})
	if err != nil {
		t.Fatal(err)
	}
	const kwargs = `{"tag": {"name": "f40-rebuild"}, "build": {"name": "n", "version": "1", "release": "2"}, ` +
		`"user": {"name": "u"}}`
	for callback, reason := range map[string]string{"postTag": callbacks.Excluded,
		"postUntag": callbacks.NotAskedFor} {
		got := rules.Translate(message.Commit{ID: commitID,
			Events: []message.Event{{Callback: callback, Kwargs: []byte(kwargs)}}})
		if len(got.Skipped) != 1 || got.Skipped[0].Reason != reason {
			t.Fatalf("%s: got %+v", callback, got)
		}
		if m := got.Skipped[0].Message; len(m.Props) != 6 || m.Props[1].Value != "f40-rebuild" || m.Address == "" {
			t.Errorf("%s: got %+v", callback, m)
		}
	}
}

func TestEventsChooseCallbacksByGlob(t *testing.T) {
	t.Parallel()
	all := []string{"postTag", "postUntag", "preTag", "postBuildPromote", "postImport", "preCommit",
		"postCommit", "postNew", "x/y"}
	for _, row := range []struct {
		events string
		want   string
	}{
		{"", "postTag postUntag postBuildPromote postImport"},
		{"protonmsg", "postTag postUntag postBuildPromote postImport"},
		{"protonmsg pre*", "postTag postUntag preTag postBuildPromote postImport"},
		{"*", "postTag postUntag preTag postBuildPromote postImport postNew x/y"},
		{"post*", "postTag postUntag postBuildPromote postImport postNew"},
		{"*Tag", "postTag preTag"},
		{"p[or]*Tag postImport", "postTag preTag postImport"},
		{"preCommit postCommit", ""},
		{"posttag", ""},
		{"postN?w", "postNew"},
	} {
		t.Run(row.events, func(t *testing.T) {
			t.Parallel()
			rules := newRules(t, callbacks.Options{Events: strings.Fields(row.events)})
			c := message.Commit{ID: commitID}
			for i, name := range all {
				c.Events = append(c.Events, message.Event{Number: i, Callback: name, Kwargs: []byte(`{"type": "rpm"}`)})
			}
			got := rules.Translate(c)
			var names []string
			for _, m := range got.Messages {
				names = append(names, m.Callback)
			}
			if diff := cmp.Diff(row.want, strings.Join(names, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(got.Skipped) != len(all)-len(names) {
				t.Errorf("%d skipped", len(got.Skipped))
			}
		})
	}
}

func TestExcludedTagsMakeNoTagMessages(t *testing.T) {
	t.Parallel()
	rules, err := callbacks.New(callbacks.Options{Events: []string{"*"},
		ExcludeTags: []string{"f3?-rebuild", "scratch"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		callback, tag string
		skipped       bool
	}{
		{"postTag", `{"name": "f39-rebuild"}`, true},
		{"preTag", `{"name": "f39-rebuild"}`, true},
		{"postUntag", `{"name": "scratch"}`, true},
		{"preUntag", `{"name": "scratch"}`, true},
		{"postTag", `{"name": "f39"}`, false},
		{"postTag", `{"name": "scratch2"}`, false},
		{"postTag", `{"name": null}`, false},
		{"postTag", `null`, false},
		{"postRepoInit", `{"name": "scratch"}`, false},
	} {
		event := message.Event{Callback: row.callback, Kwargs: []byte(`{"tag": ` + row.tag + `, "repo_id": 1}`)}
		got := rules.Translate(message.Commit{ID: commitID, Events: []message.Event{event}})
		if want := !row.skipped; (len(got.Messages) == 1) != want || (len(got.Skipped) == 0) != want {
			t.Errorf("%s of %s: %+v, want a message: %v", row.callback, row.tag, got, want)
		}
	}
	if _, err := callbacks.New(callbacks.Options{ExcludeTags: []string{"f[9-3]"}}); err == nil ||
		!strings.Contains(err.Error(), `"f[9-3]"`) {
		t.Errorf("a range that runs backwards: %v", err)
	}
}

func TestPatternWithABackwardsRangeIsRefusedByName(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"post[Z-A]*", "[b-a]"} {
		_, err := callbacks.New(callbacks.Options{Events: []string{"*", pattern}})
		if err == nil || !strings.Contains(err.Error(), strconv.Quote(pattern)) {
			t.Errorf("events %q: error is %v", pattern, err)
		}
	}
}

// Koji takes a slash in the name of a tag, and Python's * crosses it.
func TestPatternsArePythons(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		pattern, tag string
		excluded     bool
	}{
		{"*-rebuild", "f44/sub-rebuild", true},
		{"f[!3]*-x", "f4-x", true},
		{"f[!3]*-x", "f39-x", false},
		{"f[", "f[", true},
	} {
		rules := newRules(t, callbacks.Options{ExcludeTags: []string{row.pattern}})
		kwargs := fmt.Appendf(nil, `{"tag": {"name": %q}}`, row.tag)
		got := rules.Translate(message.Commit{ID: commitID,
			Events: []message.Event{{Callback: "postTag", Kwargs: kwargs}}})
		if (len(got.Messages) == 0) != row.excluded {
			t.Errorf("%s excludes %s: %+v", row.pattern, row.tag, got)
		}
	}
}
