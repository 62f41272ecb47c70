package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// account is what was handed over, by what the hubs said, what the hub's own table has, and what arrived. It
// shares nothing with the relay.
type account struct {
	*ledger
	c       *chaos
	facts   map[int]*fact    // by number; guarded by ledger.mu
	commits map[string][]int // numbers, by commit and position
	last    map[int]int      // number begun last, by build
	calls   []hubCall        // what the plugin took of them
	by      map[string]int   // events handed over, by the ways that were tried
	asked   []refusal
	took    map[int][]time.Time // when a relay was known to have answered 200, by relay
	back    map[int][]time.Time // when it was known to have handed a commit back, by relay
	untrue  int                 // messages that did not arrive where the history says that they were accepted
	untold  int                 // messages that arrived and that the history does not know
	// overtaken are the message-ids of events out of order, each with that of the one before it.
	overtaken [][2]string
}

// fact is what is known of one event beside what it must look like.
type fact struct {
	commit string
	hub    *hub
	counts bool   // the hub did not roll its call back
	stored bool   // part of the hub's own commit, with delivery = outbox
	state  string // "": the hub's worker died before it knew
	way    string // by which it was handed over; order is promised for each way alone
	said   string
}

// refusal is a commit that nobody took, which the plugin logged.
type refusal struct {
	commit string
	hub    *hub
	said   string
	ways   []string // that were tried
}

func newAccount(c *chaos) *account {
	return &account{ledger: newLedger(""), c: c, facts: make(map[int]*fact), commits: make(map[string][]int),
		last: make(map[int]int), by: make(map[string]int), took: make(map[int][]time.Time),
		back: make(map[int][]time.Time)}
}

// next is the number behind which the next worker of a build goes on.
func (a *account) next(build int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(a.last[build], build*numbersEach)
}

// hear takes one line of a hub.
func (a *account) hear(h *hub, line workerLine) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if line.Commit != "" {
		a.begin(h, line)
		return
	}
	if line.Failed != "" {
		for _, number := range a.commits[line.Failed] {
			a.facts[number].stored = a.facts[number].stored && line.Way != "insert"
		}
		return
	}
	if line.Back != "" {
		a.back[h.relay] = append(a.back[h.relay], time.Now())
		return
	}
	a.call(h, line)
	said := strings.Join(line.Said, "; ")
	for position, number := range a.commits[line.End] {
		f := a.facts[number]
		f.state, f.way, f.said = line.State, strings.Join(line.Ways, "+"), said
		if line.State == "refused" && !slices.Contains(line.Lost, position) {
			f.state = "handed" // the others of the same commit were taken
		}
		a.events[number].handed = f.state == "handed" && f.counts
	}
	if line.State == "handed" && slices.Equal(line.Ways, []string{"exchange"}) {
		a.took[h.relay] = append(a.took[h.relay], time.Now())
	}
	if line.State == "refused" {
		a.asked = append(a.asked, refusal{line.End, h, said, line.Ways})
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// begin notes a commit whose COMMIT comes next. a.mu is held.
func (a *account) begin(h *hub, line workerLine) {
	for position, event := range line.Events {
		var number int
		var callback, body string
		var counts bool
		for i, to := range []any{&number, &callback, &body, &counts} {
			if err := json.Unmarshal(event[i], to); err != nil {
				a.c.Errorf("%v said %s: %v", h, event[i], err)
				return
			}
		}
		kind := kinds[slices.IndexFunc(kinds[:], func(k ledgerKind) bool { return k.callback == callback })]
		a.facts[number] = &fact{commit: line.Commit, hub: h, counts: counts, stored: h.delivery == "outbox"}
		a.events[number] = &numbered{id: messageID(line.Commit, position), build: line.Build, topic: kind.topic,
			body: body, props: ledgerProps(line.Build, number, kind.kind),
			how: fmt.Sprintf("%v, commit %s", h, line.Commit)}
		a.commits[line.Commit] = append(a.commits[line.Commit], number)
		a.last[line.Build] = max(a.last[line.Build], number)
	}
}

// result is the account of one run, as it is kept for docs/reliability.md.
type result struct {
	Seed       uint64               `json:"seed"`
	Version    string               `json:"version"` // the commit that was tried
	Seconds    float64              `json:"seconds"`
	Ordered    bool                 `json:"preserve_order"`
	Load       string               `json:"load"`
	Faults     int                  `json:"faults"`
	HandedOver int                  `json:"handed_over"`
	Refused    int                  `json:"refused_and_logged"`
	Undone     int                  `json:"undone_by_the_hub"`
	Unknown    int                  `json:"hub_died"`
	Received   int                  `json:"received"`
	Duplicates int                  `json:"duplicates"`
	Altered    int                  `json:"altered"`
	Disorder   int                  `json:"out_of_order"`
	Phantoms   int                  `json:"undone_but_received"`
	Lost       int                  `json:"lost"`
	Replays    int                  `json:"replays"`
	Replayed   int                  `json:"replayed"`       // messages
	Untold     int                  `json:"not_in_history"` // they arrived
	Calls      map[string]callTimes `json:"hub_calls"`      // by delivery
	By         map[string]int       `json:"by"`
	Happened   map[string]int       `json:"happened"`
}

// close compares what arrived with what was handed over, and fails the run for what must not be.
func (a *account) close(arrivals [3][]delivery, committed map[int]bool) result {
	a.settle(committed)
	v := a.judge(slices.Concat(arrivals[:]...))
	v.disorder = a.disorder(arrivals)
	if !a.c.ordered {
		v.disorder = nil
	}
	a.c.Logf("account: %s", v.report(a.c, a.ledger, a.c.ordered))
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, number := range v.lost[:min(10, len(v.lost))] {
		f := a.facts[number]
		a.c.Logf("lost: event %d of %s, state %q, way %s, plugin: %s", number, a.events[number].how, f.state, f.way,
			f.said)
	}
	version, _ := exec.Command("git", "rev-parse", "--short", "HEAD").Output() // "" outside of a clone
	r := result{
		Seed: a.c.seed, Version: strings.TrimSpace(string(version)), Seconds: a.c.length.Seconds(),
		Ordered: a.c.ordered, Load: machineLoad(), Happened: a.c.happened, By: a.by,
		Received: v.arrived + v.duplicates, Duplicates: v.duplicates, Altered: len(v.wrong),
		Disorder: len(v.disorder), Lost: len(v.lost),
	}
	for _, n := range a.c.happened {
		r.Faults += n
	}
	seen := numbersOf(slices.Concat(arrivals[:]...))
	for number, f := range a.facts {
		switch {
		case a.events[number].handed:
			r.HandedOver++
		case f.state == "refused":
			r.Refused++
		case committed[number]:
			r.Unknown++
		default:
			r.Undone++
			if seen[number] {
				r.Phantoms++
				a.c.Errorf("event %d arrived, but the hub never committed it: %s, state %q", number, a.events[number].how,
					f.state)
			}
		}
	}
	return r
}

// settle turns to the hub's own table for what the hubs did not know.
func (a *account) settle(committed map[int]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for number, f := range a.facts {
		if a.events[number].handed && !committed[number] {
			a.c.Errorf("event %d of %s was handed over, but its change is gone: the databases of this run lost it",
				number, a.events[number].how)
			a.events[number].handed = false
		}
		// With delivery = outbox the event is part of the commit, whoever died meanwhile.
		died := f.state != "handed" && f.state != "refused"
		if f.stored && died && committed[number] {
			a.events[number].handed = true
		}
		switch {
		case !a.events[number].handed:
			a.refused++
			continue
		case f.way == "exchange":
			a.answered++
		default:
			a.stored++
		}
		a.by[f.hub.delivery+": "+f.way]++
	}
}

// disorder are the first arrivals of a build that were overtaken at one broker by a later one that went the
// same way. Messages that came more than once, or to more than one broker, are left out: which was first is
// not known.
func (a *account) disorder(arrivals [3][]delivery) (found []string) {
	times := make(map[int]int)
	for _, d := range slices.Concat(arrivals[:]...) {
		times[numberOf(d)]++
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for broker, deliveries := range arrivals {
		last := make(map[string]int)
		for _, d := range deliveries {
			number := numberOf(d)
			f := a.facts[number]
			if f == nil || times[number] > 1 || strings.Contains(f.way, "+") || f.way == "" {
				continue
			}
			key := fmt.Sprint(a.events[number].build, f.way)
			if !a.c.kinds[broker].rabbit() { // it has a queue for each topic, and no order between them
				key += a.events[number].topic
			}
			if before := last[key]; before > number {
				a.overtaken = append(a.overtaken, [2]string{a.events[number].id, a.events[before].id})
				found = append(found, fmt.Sprintf("event %d of build %d came to broker %d after %d, both by %s (%s)",
					number, a.events[number].build, broker, before, f.way, a.events[number].how))
			}
			last[key] = max(last[key], number)
		}
	}
	return found
}

func numberOf(d delivery) int {
	if d.Body == nil {
		return -1
	}
	return bodyNumber(*d.Body)
}

func numbersOf(deliveries []delivery) map[int]bool {
	all := make(map[int]bool)
	for _, d := range deliveries {
		all[numberOf(d)] = true
	}
	return all
}

func machineLoad() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Fields(string(text))[0]
}

// keep adds the result to the file that KOJI_RELAY_CHAOS_RESULTS names.
func (r result) keep(c *chaos) {
	text, err := json.Marshal(r)
	if err != nil {
		c.Fatal(err)
	}
	c.Logf("result: %s", text)
	path := os.Getenv("KOJI_RELAY_CHAOS_RESULTS")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		c.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(append(text, '\n')); err != nil {
		c.Error(err)
	}
}

// names are what happened, most often first.
func names(counts map[string]int) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return counts[b] - counts[a] })
}
