package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// truthful compares what the relays say with what was so, when all is calm. quiet is what they were given
// then.
func (c *chaos) truthful(quiet *quietHour, arrivals [3][]delivery) {
	c.bothWaysTried()
	c.readyMeansTaken()
	c.nothingWaits()
	quiet.judge(c, arrivals)
	c.sentMeansArrived(arrivals)
	c.historyIsTrue(arrivals)
}

// bothWaysTried: nothing is given up before both ways were tried, whatever the plugin thinks of one of them.
func (c *chaos) bothWaysTried() {
	for _, r := range c.account.asked {
		for _, way := range []string{"exchange", "insert"} {
			if !slices.Contains(r.ways, way) {
				c.Errorf("%v: commit %s was given up although it was not tried by %s: %s", r.hub, r.commit, way, r.said)
				return // one says it all
			}
		}
	}
}

// nothingWaits: metrics and status say that queue and outbox are empty, as they are. Both are some seconds
// old.
func (c *chaos) nothingWaits() {
	for i, w := range c.witnesses {
		eventually(c, 30*time.Second, fmt.Sprintf("relay %d says that nothing waits", i), func() error {
			m, err := w.scrape()
			if err != nil {
				return err
			}
			for _, name := range []string{"koji_relay_queue_depth", "koji_relay_outbox_depth"} {
				if n := m.total(name); n != 0 {
					return fmt.Errorf("%s is %v", name, n)
				}
			}
			return c.statusOf(i).nothingWaits()
		})
	}
}

// statusSaid is what koji-relay status --json says, as far as it is compared.
type statusSaid struct {
	State string `json:"state"`
	Queue struct {
		Known       bool `json:"known"`
		Depth       int  `json:"depth"`
		DeadLetters int  `json:"dead_letters"`
	} `json:"queue"`
	Outbox struct {
		Known bool `json:"known"`
		Depth int  `json:"depth"`
	} `json:"outbox"`
	Brokers []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"brokers"`
	err error
}

func (c *chaos) statusOf(i int) (s statusSaid) {
	out, ok := c.clerk.run(i, "status", "--json")
	if !ok {
		return statusSaid{err: errors.New("koji-relay status did not answer")}
	}
	s.err = json.Unmarshal(out, &s)
	return s
}

func (s statusSaid) nothingWaits() error {
	switch {
	case s.err != nil:
		return s.err
	case s.State == "not_ready" || !s.Queue.Known || !s.Outbox.Known || len(s.Brokers) != 3:
		return fmt.Errorf("its status is %+v", s)
	case s.Queue.Depth+s.Queue.DeadLetters+s.Outbox.Depth != 0:
		return fmt.Errorf("its status has %d messages, %d dead letters and %d events", s.Queue.Depth,
			s.Queue.DeadLetters, s.Outbox.Depth)
	}
	return nil
}

// quietHour is what relays are given when all is calm: here each counter must grow by what was done. Before
// it, the same hub tried the relays while they were cut off.
type quietHour struct {
	hub    *ledger
	before [2]metrics
}

const (
	quietCommits = 20
	quietEvents  = 3 // in each
)

// handOver hands over a few commits to each relay.
func (q *quietHour) handOver(c *chaos) {
	already := q.hub.answered
	for i, r := range c.relays {
		var err error
		if q.before[i], err = c.witnesses[i].scrape(); err != nil {
			c.Fatal(err)
		}
		for range quietCommits {
			q.hub.handOver(r, 0, quietEvents)
		}
	}
	if want, got := len(c.relays)*quietCommits*quietEvents, q.hub.answered-already; got != want {
		c.Errorf("%d of %d events were answered 200 although all was well", got, want)
	}
	for i := range c.relays {
		eventually(c, 10*time.Second, "counters of relay "+strconv.Itoa(i)+" equal the counts", func() error {
			after, err := c.witnesses[i].scrape()
			if err != nil {
				return err
			}
			return countersGrew(q.before[i], after)
		})
	}
	c.awaitEmpty()
}

// countersGrew compares counters with the quiet hour.
func countersGrew(before, after metrics) error {
	const events = quietCommits * quietEvents
	grown := func(name string, labels map[string]string) float64 {
		return after.sum(name, labels) - before.sum(name, labels)
	}
	handled := func(result string) float64 {
		return grown("koji_relay_events_handled_total", map[string]string{"result": result})
	}
	for _, row := range []struct {
		what string
		got  float64
		want float64
	}{
		{"commits received", grown("koji_relay_commits_received_total", nil), quietCommits},
		{"of them by the socket", grown("koji_relay_commits_received_total", map[string]string{"via": "socket"}),
			quietCommits},
		{"events received", grown("koji_relay_events_received_total", nil), events},
		{"events sent or queued", handled("sent") + handled("queued"), events},
		{"events dead, skipped or not taken", handled("dead") + handled("skipped") + handled("not_taken"), 0},
		{"messages put", grown("koji_relay_queue_put_total", nil) - handled("queued"), 0},
		{"hand-overs timed", float64(timed(after) - timed(before)), quietCommits},
	} {
		if row.got != row.want {
			return fmt.Errorf("%s: the counter grew by %v, not %v", row.what, row.got, row.want)
		}
	}
	return nil
}

// timed is how many hand-overs the histogram has.
func timed(m metrics) (n uint64) {
	for _, series := range m["koji_relay_handoff_duration_seconds"].GetMetric() {
		n += series.GetHistogram().GetSampleCount()
	}
	return n
}

// judge finds what the quiet hour handed over among what arrived. On a busy machine an answer may be late
// even then, so that a message comes twice.
func (q *quietHour) judge(c *chaos, arrivals [3][]delivery) {
	var mine []delivery
	for _, d := range slices.Concat(arrivals[:]...) {
		if q.hub.events[numberOf(d)] != nil {
			mine = append(mine, d)
		}
	}
	v := q.hub.judge(mine)
	if len(v.lost) != 0 || len(v.wrong) != 0 {
		c.Errorf("of %d events that were handed over in quiet, %d were lost, %d altered", q.hub.answered,
			len(v.lost), len(v.wrong))
	}
}

// withoutQuiet leaves the quiet hour's messages out, whose numbers are below those of any build.
func withoutQuiet(arrivals [3][]delivery) (storm [3][]delivery) {
	for i, deliveries := range arrivals {
		storm[i] = slices.DeleteFunc(slices.Clone(deliveries), func(d delivery) bool {
			n := numberOf(d)
			return n >= 0 && n < numbersEach
		})
	}
	return storm
}

// counted is what the processes of one relay have counted as accepted, as far as it was asked before they
// died.
type counted struct {
	mu     sync.Mutex         // guards the fields below
	starts int                // processes begun
	now    map[string]float64 // of the process that runs, by broker
	before map[string]float64 // of those that ended
	went   string             // a counter that went back; "" without one
}

func newCounted() *counted {
	return &counted{now: make(map[string]float64), before: make(map[string]float64)}
}

// process is the number of the process that runs.
func (n *counted) process() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}

// see notes the counters of a process, unless another one runs now.
func (n *counted) see(process int, m metrics) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if process != n.starts {
		return
	}
	seen := make(map[string]float64)
	for _, series := range m["koji_relay_messages_sent_total"].GetMetric() {
		for _, l := range series.GetLabel() {
			if l.GetName() == "broker" {
				seen[l.GetValue()] += value(series)
			}
		}
	}
	for broker, was := range n.now {
		if seen[broker] < was && n.went == "" {
			n.went = fmt.Sprintf("messages sent to %s went from %v back to %v", broker, was, seen[broker])
		}
	}
	n.now = seen
}

// restarted begins anew, for another process.
func (n *counted) restarted() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for broker, sent := range n.now {
		n.before[broker] += sent
	}
	clear(n.now)
	n.starts++
}

// total is what was counted for a broker.
func (n *counted) total(broker string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return int(n.before[broker] + n.now[broker])
}

// sentMeansArrived: the relays have not counted more messages as accepted than a broker has got, and no
// counter goes back while its process lives. What a process counted in the last second of its life is not
// known.
func (c *chaos) sentMeansArrived(arrivals [3][]delivery) {
	for i, w := range c.ways[:len(c.brokers)] {
		sent := 0
		for _, witness := range c.witnesses {
			sent += witness.counted.total(w.Listen)
		}
		c.Logf("broker %d: at least %d messages were counted as accepted, %d arrived", i, sent, len(arrivals[i]))
		if sent > len(arrivals[i]) {
			c.Errorf("%d messages were counted as accepted by broker %d, but %d arrived", sent, i, len(arrivals[i]))
		}
	}
	for i, witness := range c.witnesses {
		if went := witness.counted.went; went != "" {
			c.Errorf("relay %d: %s", i, went)
		}
	}
}

// told is what the history says in the end.
type told struct {
	accepted map[string][]string // brokers that accepted a message, by its id
	known    map[string]bool     // messages that it knows of
	gaps     int                 // times in which it could not be written
}

// historyIsTrue: no message that the history calls accepted by a broker is missing there, and what it does
// not know of falls into a gap that it tells.
func (c *chaos) historyIsTrue(arrivals [3][]delivery) {
	h, err := c.readHistory()
	if err != nil {
		c.Errorf("read the history: %v", err)
		return
	}
	brokers := make(map[string]int)
	for i, w := range c.ways[:len(c.brokers)] {
		brokers[w.Listen] = i
	}
	c.account.compareHistory(h, brokers, arrivals)
	c.noFateButAccepted()
}

// noFateButAccepted: no message was dead, expired or dropped, by what the history says either.
func (c *chaos) noFateButAccepted() {
	var bad int
	var fate, id *string
	const from = ` FROM (SELECT message_id, fate, reason FROM koji_relay.history_message UNION ALL
		SELECT message_id, kind, reason FROM koji_relay.history_step) s
		WHERE fate IN ('dead', 'expired', 'dropped')`
	if err := c.database("SELECT count(*)"+from, &bad); err != nil {
		c.Errorf("read the fates in the history: %v", err)
	}
	if bad == 0 {
		return
	}
	if c.database("SELECT min(fate || ': ' || reason)"+from, &fate) == nil &&
		c.database("SELECT min(message_id::text)"+from, &id) == nil {
		c.Errorf("%d messages are dead, expired or dropped by the history, for example %s:\n%s", bad, deref(fate),
			c.history(deref(id)))
	}
}

// readHistory reads the history when it has the whole of the quiet hour, which came last.
func (c *chaos) readHistory() (h *told, err error) {
	quiet := len(c.relays) * quietCommits * quietEvents
	eventually(c, 30*time.Second, "the history is written", func() error {
		var n int
		err := c.database(`SELECT count(DISTINCT message_id) FROM koji_relay.history_message
			WHERE build LIKE 'pkg-0-%'`, &n)
		if err == nil && n < quiet {
			err = fmt.Errorf("it has %d of the %d messages of the quiet hour", n, quiet)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := pgx.Connect(ctx, c.primary.ConnString(chaosDatabase))
	if err != nil {
		return nil, err
	}
	defer db.Close(ctx)
	h = &told{accepted: make(map[string][]string), known: make(map[string]bool)}
	rows, _ := db.Query(ctx, `SELECT message_id::text, fate, broker FROM koji_relay.history_message UNION
		SELECT message_id::text, kind, broker FROM koji_relay.history_step`)
	var id, fate, broker string
	_, err = pgx.ForEachRow(rows, []any{&id, &fate, &broker}, func() error {
		h.known[id] = true
		if fate == "accepted" {
			h.accepted[id] = append(h.accepted[id], broker)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, db.QueryRow(ctx, "SELECT count(*) FROM koji_relay.history_gap").Scan(&h.gaps)
}

// compareHistory compares the history with what arrived at each broker, by its name there.
func (a *account) compareHistory(h *told, brokers map[string]int, arrivals [3][]delivery) {
	arrived := make(map[string][3]bool)
	for i, deliveries := range arrivals {
		for _, d := range deliveries {
			at := arrived[d.ID]
			at[i] = true
			arrived[d.ID] = at
		}
	}
	for id, by := range h.accepted {
		for _, name := range by {
			broker, known := brokers[name]
			if !known {
				a.c.Errorf("the history says that %q accepted message %s: no such broker", name, id)
			} else if !arrived[id][broker] {
				a.untrue++
				if a.untrue <= 3 {
					a.c.Errorf("the history says that broker %d accepted message %s, which did not arrive there:\n%s",
						broker, id, a.c.history(id))
				}
			}
		}
	}
	for id := range arrived {
		if !h.known[id] {
			a.untold++
		}
	}
	a.c.Logf("history: %d messages known, %d accepted, %d of them did not arrive; %d arrived that it does not "+
		"know, %d gaps", len(h.known), len(h.accepted), a.untrue, a.untold, h.gaps)
	if a.untold > 0 && h.gaps == 0 {
		a.c.Errorf("%d messages arrived that the history does not know, and it tells no gap", a.untold)
	}
}
