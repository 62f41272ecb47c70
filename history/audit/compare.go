package audit

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/inspect"
)

const (
	// clockSlack is how far the clocks of hub and relay may differ at most.
	clockSlack = time.Minute
	// clockDrift is how far they usually do.
	clockDrift = time.Second
)

// Account is the result for one kind.
type Account struct {
	Kind      string         `json:"kind"`
	Happened  int            `json:"happened"`
	Announced int            `json:"announced"` // accepted by a broker
	Waiting   int            `json:"waiting"`   // in the queue or the outbox
	Explained map[string]int `json:"explained,omitempty"`
	Holes     []Hole         `json:"holes,omitempty"`
}

// Hole is something that happened and was not announced, for which there is no reason.
type Hole struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
}

// Rules say what the configuration does not announce.
type Rules struct {
	Wanted   func(callback string) bool
	Excluded func(tag string) bool
}

// Comparison puts facts and history side by side.
type Comparison struct {
	rules  Rules
	gaps   []inspect.Gap
	outbox map[string][]time.Time // by callback: when its events that wait were written, oldest first
	told   map[string][]*telling  // by key, oldest first
	direct bool                   // some messages came over the socket
}

// telling is one message, or one event that made none.
type telling struct {
	time   time.Time
	fate   inspect.StepKind
	reason string
}

// NewComparison begins with what explains absences.
func NewComparison(r Rules, gaps []inspect.Gap, outbox map[string][]time.Time) *Comparison {
	return &Comparison{rules: r, gaps: gaps, outbox: outbox, told: map[string][]*telling{}}
}

// Add takes a message of the history, oldest first.
func (c *Comparison) Add(m *inspect.HistoryMessage) {
	c.direct = c.direct || m.Via == inspect.ViaSocket
	i := slices.IndexFunc(Kinds, func(k *Kind) bool {
		return k.Callback == m.Callback && slices.Contains(k.Addresses, m.Address)
	})
	if i < 0 {
		return
	}
	key := ""
	switch k := Kinds[i]; k {
	case Tagging, Untagging:
		key = keyOf(k, m.Build, m.Tag, 0)
	case Build:
		key = keyOf(k, m.Build, "", 0)
	case Task:
		key = keyOf(k, "", "", m.Task)
	default:
		key = keyOf(k, "", "", repoOf(m))
	}
	c.told[key] = append(c.told[key], &telling{time: m.Time, fate: m.Fate, reason: m.Reason})
}

func keyOf(k *Kind, build, tag string, number int64) string {
	return fmt.Sprintf("%s\x00%s\x00%s\x00%d", k.Callback, build, tag, number)
}

// repoOf reads the number of a repo, which only the properties have.
func repoOf(m *inspect.HistoryMessage) int64 {
	var props struct {
		RepoID int64 `json:"repo_id"`
	}
	_ = json.Unmarshal(m.Props, &props) // no number is no repo
	return props.RepoID
}

// Judge accounts for facts. Each message stands for one fact.
func (c *Comparison) Judge(facts []Fact) []Account {
	slices.SortStableFunc(facts, func(a, b Fact) int { return a.Time.Compare(b.Time) })
	accounts := make([]Account, len(Kinds))
	for i, k := range Kinds {
		accounts[i] = Account{Kind: k.Name, Explained: map[string]int{}}
	}
	told := c.pairTold(facts)
	waiting := c.pairOutbox(facts, told)
	for i := range facts {
		f := &facts[i]
		c.judge(f, told[f], waiting[f], &accounts[slices.Index(Kinds, f.Kind)])
	}
	return accounts
}

// pair gives for each telling the number of the fact that it is about, or -1. Both are about the same, and
// oldest first. A telling is about the last fact before it that is left: so of equal ones the right one stays
// alone. No other choice pairs more of them.
func pair(facts, told []time.Time) []int {
	chosen := make([]int, len(told))
	var before []int // facts before the telling that are left
	next := 0
	for i, t := range told {
		for next < len(facts) && !facts[next].After(t.Add(clockDrift)) {
			before = append(before, next)
			next++
		}
		switch {
		case len(before) > 0:
			chosen[i] = before[len(before)-1]
			before = before[:len(before)-1]
		case next < len(facts) && !facts[next].After(t.Add(clockSlack)):
			chosen[i] = next
			next++
		default:
			chosen[i] = -1
		}
	}
	return chosen
}

// pairTold finds what was told of each fact. What Koji announces comes first; the rest stands for facts that
// it should not have announced.
func (c *Comparison) pairTold(facts []Fact) map[*Fact]*telling {
	groups := map[string][]*Fact{} // by key
	for i := range facts {
		f := &facts[i]
		key := keyOf(f.Kind, f.Build, f.Tag, f.Number)
		groups[key] = append(groups[key], f)
		if draft := keyOf(f.Kind, f.Draft, f.Tag, f.Number); f.Draft != "" && c.told[draft] != nil {
			c.told[key] = append(c.told[key], c.told[draft]...)
			delete(c.told, draft)
			slices.SortStableFunc(c.told[key], func(a, b *telling) int { return a.time.Compare(b.time) })
		}
	}
	found := map[*Fact]*telling{}
	for key, group := range groups {
		left := c.told[key]
		for _, silent := range []bool{false, true} {
			some := slices.DeleteFunc(slices.Clone(group), func(f *Fact) bool { return (f.Silent != "") != silent })
			var rest []*telling
			for i, n := range pair(timesOf(some), tellingTimes(left)) {
				if n < 0 {
					rest = append(rest, left[i])
				} else {
					found[some[n]] = left[i]
				}
			}
			left = rest
		}
	}
	return found
}

// pairOutbox finds the facts that wait in the outbox, of those that no message stands for.
func (c *Comparison) pairOutbox(facts []Fact, told map[*Fact]*telling) map[*Fact]bool {
	groups := map[string][]*Fact{} // by callback
	for i := range facts {
		if f := &facts[i]; (told[f] == nil || told[f].fate == inspect.Refused) && c.quiet(f) == "" {
			groups[f.Kind.Callback] = append(groups[f.Kind.Callback], f)
		}
	}
	waiting := map[*Fact]bool{}
	for callback, group := range groups {
		for _, n := range pair(timesOf(group), c.outbox[callback]) {
			if n >= 0 {
				waiting[group[n]] = true
			}
		}
	}
	return waiting
}

func timesOf(facts []*Fact) []time.Time {
	times := make([]time.Time, len(facts))
	for i, f := range facts {
		times[i] = f.Time
	}
	return times
}

func tellingTimes(told []*telling) []time.Time {
	times := make([]time.Time, len(told))
	for i, t := range told {
		times[i] = t.time
	}
	return times
}

// quiet is why a fact is not announced; empty where it should be.
func (c *Comparison) quiet(f *Fact) string {
	switch {
	case f.Silent != "":
		return f.Silent + "; Koji announces nothing"
	case !c.rules.Wanted(f.Kind.Callback):
		return "[message] events does not ask for it"
	case (f.Kind == Tagging || f.Kind == Untagging) && c.rules.Excluded(f.Tag):
		return "[message] exclude_tags names its tag"
	}
	return ""
}

func (c *Comparison) judge(f *Fact, t *telling, waits bool, a *Account) {
	a.Happened++
	quiet := c.quiet(f)
	switch {
	case t != nil && t.fate == inspect.Accepted:
		a.Announced++
	case t != nil && t.fate == inspect.Queued:
		a.Waiting++
	case t != nil && t.fate == inspect.Skipped:
		a.Explained[t.reason]++
	case t != nil && t.fate != inspect.Refused:
		a.Explained[string(t.fate)+": see koji-relay history --fate "+string(t.fate)]++
	case quiet != "":
		a.Explained[quiet]++
	case waits:
		a.Waiting++
	case c.inGap(f.Time):
		a.Explained["in a gap of the history"]++
	default:
		a.Holes = append(a.Holes, Hole{f.Time, f.text()})
	}
}

// inGap reports whether a gap explains that there is no message about something of the time t. A relay that
// was killed explains nothing where all came through the outbox: an event is recorded before it leaves
// that.
func (c *Comparison) inGap(t time.Time) bool {
	const slack = 2 * time.Second
	return slices.ContainsFunc(c.gaps, func(g inspect.Gap) bool {
		killed := g.Reason == inspect.Killed
		return (c.direct || !killed) && !t.Before(g.Began.Add(-slack)) && !t.After(g.Ended.Add(slack))
	})
}

func (f *Fact) text() string {
	switch f.Kind {
	case Tagging:
		return f.Build + " was tagged into " + f.Tag
	case Untagging:
		return f.Build + " was untagged from " + f.Tag
	case Build:
		return "build " + f.Build + " finished"
	case Task:
		return fmt.Sprintf("task %d finished", f.Number)
	}
	return fmt.Sprintf("repo %d: %s", f.Number, f.Kind.Callback)
}
