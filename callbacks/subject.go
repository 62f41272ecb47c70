package callbacks

import (
	"encoding/json"
	"slices"
	"strings"

	"koji-relay/internal/message"
)

// subject is the part of the kwargs that says what an event is about. Before a build exists it has a name, a
// version and a release, but no id; a promotion changes its release, but not its id.
type subject struct {
	Build   *named          `json:"build"`
	Info    *named          `json:"info"` // of a change of state: a build or a task
	Repo    *named          `json:"repo"`
	BuildID json.RawMessage `json:"build_id"`
	RepoID  json.RawMessage `json:"repo_id"`
}

type named struct {
	ID      json.RawMessage `json:"id"`
	Name    json.RawMessage `json:"name"`
	Version json.RawMessage `json:"version"`
	Release json.RawMessage `json:"release"`
}

// Subjects says what the events of c are about: each build by its id and by its name, version and release,
// each task, each repo, and for any other event its callback without pre or post. Commits that share a
// subject reach the brokers in the order of the hub. What is no kwargs counts as other.
func Subjects(c message.Commit) []string {
	var all []string
	for _, e := range c.Events {
		all = append(all, subjectsOf(e)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func subjectsOf(e message.Event) []string {
	action := strings.TrimPrefix(strings.TrimPrefix(e.Callback, "post"), "pre")
	var s subject
	_ = json.Unmarshal(e.Kwargs, &s) // what has another type is left out, the rest is read
	var about []string
	add := func(kind string, parts ...json.RawMessage) {
		key := kind
		for _, p := range parts {
			if len(p) == 0 || string(p) == "null" {
				return
			}
			key += " " + string(p)
		}
		about = append(about, key)
	}
	build := s.Build
	if action == "BuildStateChange" {
		build = s.Info
	}
	if build != nil {
		add("build", build.ID)
		add("nvr", build.Name, build.Version, build.Release)
	}
	add("build", s.BuildID)
	if action == "TaskStateChange" && s.Info != nil {
		add("task", s.Info.ID)
	}
	if s.Repo != nil {
		add("repo", s.Repo.ID)
	}
	add("repo", s.RepoID)
	if len(about) == 0 {
		return []string{"callback " + action}
	}
	return about
}
