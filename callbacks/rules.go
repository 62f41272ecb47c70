package callbacks

import (
	"fmt"
	"strings"

	"koji-relay/internal/message"
)

// A rule says what the pre and the post event of one hub action become. The table below is all there is to
// know about protonmsg's messages; the code around it only follows it.
type rule struct {
	event  string // Koji's callback name without pre or post
	topic  string // the address, or its beginning
	suffix string // path of the kwargs' value that completes the address
	lower  bool   // the suffix is written in lower case
	// props lists the application-properties after "type", as key=path, or key alone where both are equal.
	props string
	// skipOn is the path of a value, and skip says which values make no message.
	skipOn string
	skip   func(raw []byte) bool
	build  string // the dict of the kwargs whose `extra` is trimmed
	states bool   // old and new are numbers of build states, announced by name
	taskID bool   // the body always has a task_id
	moves  bool   // a build moves into or out of a tag: subject to Options.ExcludeTags
}

// rules are protonmsg's ten. The golden data and Koji's own plugin are where they come from.
var rules = []rule{
	{
		event: "PackageListChange", topic: "package.", suffix: "action",
		props: "tag=tag.name package=package.name action user=user.name",
	},
	{
		event: "TaskStateChange", topic: "task.", suffix: "new", lower: true,
		props:  "id=info.id parent=info.parent method=info.method attribute old new",
		skipOn: "attribute", skip: isNotState,
	},
	{
		event: "BuildStateChange", topic: "build.", suffix: "new", lower: true, states: true, build: "info",
		props:  "name=info.name version=info.version release=info.release attribute old new",
		skipOn: "attribute", skip: isNotState,
	},
	{
		event: "Import", topic: "import.", suffix: "type", build: "build",
		props: "importType=type name=build.name version=build.version release=build.release",
	},
	{
		event: "RPMSign", topic: "sign.rpm", build: "build",
		props: "sigkey name=build.name version=build.version release=build.release " +
			"rpm_name=rpm.name rpm_version=rpm.version rpm_release=rpm.release rpm_arch=rpm.arch",
		skipOn: "sigkey", skip: isFalsy,
	},
	{
		event: "Tag", topic: "build.tag", build: "build", moves: true,
		props: "tag=tag.name name=build.name version=build.version release=build.release user=user.name",
	},
	{
		event: "Untag", topic: "build.untag", build: "build", moves: true,
		props: "tag=tag.name name=build.name version=build.version release=build.release user=user.name",
	},
	{
		event: "RepoInit", topic: "repo.init", taskID: true,
		props: "tag=tag.name repo_id task_id",
	},
	{
		event: "RepoDone", topic: "repo.done", taskID: true,
		props: "tag=repo.tag_name repo_id=repo.id task_id=repo.task_id expire",
	},
	{
		event: "BuildPromote", topic: "build.promote", build: "build",
		props: "build_id=build.id name=build.name version=build.version release=build.release " +
			"draft_release target_release user=user.name",
	},
}

// buildStates are the names of Koji's build states by number (koji.BUILD_STATES).
var buildStates = [...]string{"BUILDING", "COMPLETE", "DELETED", "FAILED", "CANCELED"}

// isNotState: only changes of the attribute `state` are news; others (volume_id, owner_id, weight) are not.
func isNotState(raw []byte) bool {
	s, ok := stringValue(raw)
	return !ok || s != "state"
}

// place is where a value stands in the kwargs: under top or, where sub is not empty, under sub in the dict
// top.
type place struct{ top, sub string }

// A boundRule is a rule for one callback, with its paths resolved to positions in places and found.values.
type boundRule struct {
	rule
	callback string
	pre      bool
	address  string // or its beginning
	kind     string // the value of the prop "type"
	places   []place
	suffixAt int // position, or none
	skipAt   int // position, or none
	sources  []source
}

const none = -1

// source is where one application-property comes from.
type source struct {
	key   string
	at    int  // position
	state bool // the number of a build state, announced by name
}

// maxPlaces bounds what one rule reads, so that found needs no allocation.
const maxPlaces = 12

// table has the rule of each callback that is known by name.
var table = func() map[string]*boundRule {
	t := make(map[string]*boundRule, 2*len(rules))
	for _, r := range rules {
		post, pre := r.bind(), r.bind()
		post.callback, post.address, post.kind = "post"+r.event, r.topic, r.event
		// The same rule one level down the topic tree, so that subscribers of build.* see no difference.
		pre.callback, pre.address, pre.kind, pre.pre = "pre"+r.event, "pre."+r.topic, "pre"+r.event, true
		t[post.callback], t[pre.callback] = post, pre
	}
	return t
}()

// bind resolves the paths of r.
func (r rule) bind() *boundRule {
	b := &boundRule{rule: r, suffixAt: none, skipAt: none}
	if r.suffix != "" {
		b.suffixAt = b.position(r.suffix)
	}
	if r.skipOn != "" {
		b.skipAt = b.position(r.skipOn)
	}
	for field := range strings.FieldsSeq(r.props) {
		key, from, renamed := strings.Cut(field, "=")
		if !renamed {
			from = key
		}
		state := r.states && (key == "old" || key == "new")
		b.sources = append(b.sources, source{key: key, at: b.position(from), state: state})
	}
	if len(b.places) > maxPlaces {
		panic(fmt.Sprintf("callbacks: rule %s reads %d values, maxPlaces is %d", r.event, len(b.places), maxPlaces))
	}
	return b
}

// position is where the value at path goes, the same for every mention of it.
func (b *boundRule) position(path string) int {
	top, sub, _ := strings.Cut(path, ".")
	for i, known := range b.places {
		if known == (place{top, sub}) {
			return i
		}
	}
	b.places = append(b.places, place{top, sub})
	return len(b.places) - 1
}

// unknown is the rule for a callback that is not in the table: a new Koji needs no new relay.
func unknown(callback string) *boundRule {
	kind := callback
	if rest, post := strings.CutPrefix(callback, "post"); post && rest != "" {
		kind = rest
	}
	return &boundRule{callback: callback, address: "other." + callback, kind: kind, suffixAt: none, skipAt: none}
}

func (b *boundRule) skips(f *found) bool {
	return b.skipAt != none && b.skip(f.values[b.skipAt])
}

// formAddress gives the topic, or the reason why there is none.
func (b *boundRule) formAddress(f *found) (address, reason string) {
	if b.suffixAt == none {
		return checkAddress(b.address)
	}
	name, raw := b.suffix, f.values[b.suffixAt]
	switch {
	case raw == nil:
		return "", fmt.Sprintf("%q is missing", name)
	case b.states && isInteger(raw):
		state, ok := stateName(raw)
		if !ok {
			return "", fmt.Sprintf("%q is %s, not a build state; they are 0 to %d", name, shorten(raw),
				len(buildStates)-1)
		}
		return b.address + strings.ToLower(state), ""
	case b.states:
		return "", fmt.Sprintf("%q is %s, not the number of a build state", name, kindOf(raw))
	case raw[0] != '"':
		return "", fmt.Sprintf("%q is %s, not a string", name, kindOf(raw))
	}
	s, ok := stringValue(raw)
	if !ok {
		return "", fmt.Sprintf("%q holds half a surrogate pair, which is not text", name)
	}
	if b.lower {
		s = strings.ToLower(s)
	}
	return checkAddress(b.address + s)
}

// checkAddress refuses what neither a broker's address nor a database's text can hold.
func checkAddress(address string) (string, string) {
	if strings.IndexByte(address, 0) >= 0 {
		return "", "it would hold the character U+0000"
	}
	return address, ""
}

// formProps gives the application-properties; one whose source is missing is null.
func (b *boundRule) formProps(f *found) []message.Prop {
	props := make([]message.Prop, 1, 1+len(b.sources))
	props[0] = message.Prop{Key: "type", Value: b.kind}
	for _, s := range b.sources {
		raw := f.values[s.at]
		var value any
		switch {
		case raw == nil:
		case s.state:
			if state, ok := stateName(raw); ok {
				value = state
			}
		default:
			value = propValue(raw)
		}
		props = append(props, message.Prop{Key: s.key, Value: value})
	}
	return props
}
