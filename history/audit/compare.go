package audit

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/inspect"
)

// clockSlack is how far the clocks of hub and relay may differ, and how long before its COMMIT a
// transaction may have taken its time.
const clockSlack = time.Minute

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
	outbox map[string]int
	told   map[string][]*telling // by key, oldest first
	direct bool                  // some messages came over the socket
}

// telling is one message, or one event that made none.
type telling struct {
	time   time.Time
	fate   inspect.StepKind
	reason string
	used   bool
}

// NewComparison begins with what explains absences.
func NewComparison(r Rules, gaps []inspect.Gap, outbox map[string]int) *Comparison {
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
	for i := range facts {
		f := &facts[i]
		c.judge(f, &accounts[slices.Index(Kinds, f.Kind)])
	}
	return accounts
}

func (c *Comparison) judge(f *Fact, a *Account) {
	a.Happened++
	t := c.find(f)
	switch {
	case t != nil && t.fate == inspect.Accepted:
		a.Announced++
	case t != nil && t.fate == inspect.Queued:
		a.Waiting++
	case t != nil && t.fate == inspect.Skipped:
		a.Explained[t.reason]++
	case t != nil && t.fate != inspect.Refused:
		a.Explained[string(t.fate)+": see koji-relay history --fate "+string(t.fate)]++
	case f.Silent != "":
		a.Explained[f.Silent+"; Koji announces nothing"]++
	case !c.rules.Wanted(f.Kind.Callback):
		a.Explained["[message] events does not ask for it"]++
	case (f.Kind == Tagging || f.Kind == Untagging) && c.rules.Excluded(f.Tag):
		a.Explained["[message] exclude_tags names its tag"]++
	case c.outbox[f.Kind.Callback] > 0:
		c.outbox[f.Kind.Callback]--
		a.Waiting++
	case c.inGap(f.Time):
		a.Explained["in a gap of the history"]++
	default:
		a.Holes = append(a.Holes, Hole{f.Time, f.text()})
	}
}

// find takes the first message about a fact that is not taken.
func (c *Comparison) find(f *Fact) *telling {
	for _, build := range []string{f.Build, f.Draft} {
		if build == "" && f.Build != "" {
			continue
		}
		for _, t := range c.told[keyOf(f.Kind, build, f.Tag, f.Number)] {
			if !t.used && !t.time.Before(f.Time.Add(-clockSlack)) {
				t.used = true
				return t
			}
		}
	}
	return nil
}

// inGap reports whether a gap explains that there is no message about something of the time t. A relay that
// was killed explains nothing where all came through the outbox: an event is recorded before it leaves
// that.
func (c *Comparison) inGap(t time.Time) bool {
	const slack = 2 * time.Second
	return slices.ContainsFunc(c.gaps, func(g inspect.Gap) bool {
		killed := g.Messages == 0
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
