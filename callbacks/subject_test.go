package callbacks

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"koji-relay/internal/message"
)

func TestSubjectsNameWhatAnEventIsAbout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		callback, kwargs string
		want             []string
	}{
		{"postTag", `{"tag": {"id": 3}, "build": {"id": 7, "name": "bash", "version": "5.2", "release": "1"}}`,
			[]string{"build 7", `nvr "bash" "5.2" "1"`}},
		{"preBuildStateChange",
			`{"attribute": "state", "info": {"name": "bash", "version": "5.2", "release": "1", "task_id": 4}}`,
			[]string{`nvr "bash" "5.2" "1"`}},
		{"postTaskStateChange",
			`{"attribute": "state", "info": {"id": 9, "name": "x", "version": "1", "release": "1"}}`,
			[]string{"task 9"}},
		{"preTaskStateChange", `{"attribute": "state", "info": {"method": "build"}}`,
			[]string{"callback TaskStateChange"}},
		{"preImport", `{"type": "build", "build": null, "build_id": 8}`, []string{"build 8"}},
		{"postRepoInit", `{"tag": {"id": 3}, "repo_id": 5}`, []string{"repo 5"}},
		{"postRepoDone", `{"repo": {"id": 5, "tag_id": 3}}`, []string{"repo 5"}},
		{"postPackageListChange", `{"tag": {"id": 3}, "package": {"id": 1}}`,
			[]string{"callback PackageListChange"}},
		{"postSomethingNew", `{"build": {"id": 7}}`, []string{"build 7"}},
		{"postSomethingNew", `{"build": "bash-5.2-1", "repo_id": 5}`, []string{"repo 5"}},
		{"postTag", `not JSON`, []string{"callback Tag"}},
	} {
		c := message.Commit{Events: []message.Event{{Callback: test.callback,
			Kwargs: json.RawMessage(test.kwargs)}}}
		if got := Subjects(c); !slices.Equal(got, test.want) {
			t.Errorf("%s %s is about %q, want %q", test.callback, test.kwargs, got, test.want)
		}
	}
}

// Of the events of a real hub only those of package lists are about no build, task or repo, and those before
// there is one.
func TestSubjectsOfRealEvents(t *testing.T) {
	t.Parallel()
	f, err := os.Open("../testdata/golden/commits.extra0.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 10<<20)
	n := 0
	for lines.Scan() {
		c, err := DecodeCommit(lines.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Events {
			n++
			got := Subjects(message.Commit{Events: []message.Event{e}})
			switch e.Callback {
			case "prePackageListChange", "postPackageListChange", "preTaskStateChange", "preRepoInit", "preImport":
			default:
				if len(got) == 0 || got[0][:4] == "call" {
					t.Errorf("%s is about %q", e.Callback, got)
				}
			}
		}
	}
	if err := lines.Err(); err != nil || n < 20 {
		t.Fatalf("%d events read: %v", n, err)
	}
}
