package integration

import (
	"slices"
	"testing"
	"time"
)

const (
	// pluginTimeout is the plugin's `timeout`, as its default has it: it holds no hub call up for longer.
	pluginTimeout = 2 * time.Second
	// callAllowance is what a busy machine may add, beside the time in which the worker's process is known to
	// have stood still.
	callAllowance = 2 * time.Second
)

// hubCall is what the plugin cost one call of a hub.
type hubCall struct {
	delivery string
	from, to time.Time     // of the whole call
	plugin   time.Duration // in callbacks
	database time.Duration // of these: waiting for the hub's own database
	stopped  time.Duration // in which the worker's process stood still
}

// callTimes are the times of one delivery in a run, in milliseconds.
type callTimes struct {
	Calls int     `json:"calls"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
	// MaxHealthy is the longest while the hub's database was well, MaxRelay the longest without what the
	// database took, whatever happened to it. Both are without the time in which the worker stood still.
	MaxHealthy float64 `json:"max_database_well"`
	MaxRelay   float64 `json:"max_without_database"`
}

func (a *account) call(h *hub, line workerLine) {
	now := time.Now()
	a.calls = append(a.calls, hubCall{h.delivery, now.Add(-seconds(line.Took)), now, seconds(line.Spent),
		seconds(line.Database), seconds(line.Stopped)})
}

// outages are times in which the hub's own database was killed, frozen or full, or came back. A call of the
// hub waits for it then with and without the plugin.
type outages []struct{ from, to time.Time }

func (o *outages) add(from, to time.Time) { *o = append(*o, struct{ from, to time.Time }{from, to}) }

func (o outages) touch(call hubCall) bool {
	for _, out := range o {
		if call.from.Before(out.to) && out.from.Before(call.to) {
			return true
		}
	}
	return false
}

// callsKeepTheirBound fails the run for a call that the plugin held up for longer than it promises, and gives
// the times by delivery.
func (c *chaos) callsKeepTheirBound() map[string]callTimes {
	all := make(map[string][]time.Duration)
	times := make(map[string]callTimes)
	tooLong := 0
	for _, call := range c.account.calls {
		t := times[call.delivery]
		own := max(0, call.plugin-call.stopped)
		relay := max(0, own-call.database)
		well := !c.databaseOut.touch(call)
		if well {
			t.MaxHealthy = max(t.MaxHealthy, milliseconds(own))
		}
		t.MaxRelay = max(t.MaxRelay, milliseconds(relay))
		if relay > pluginTimeout+callAllowance || well && own > pluginTimeout+callAllowance {
			if tooLong++; tooLong <= 3 {
				c.Errorf("%s: the plugin held a hub call up for %v, %v of it in the hub's database, and the process "+
					"stood still for %v; it promises %v (until %s)", call.delivery, call.plugin, call.database, call.stopped,
					pluginTimeout, call.to.Format(time.TimeOnly))
			}
		}
		times[call.delivery] = t
		all[call.delivery] = append(all[call.delivery], call.plugin)
	}
	for delivery, took := range all {
		slices.Sort(took)
		t := times[delivery]
		t.Calls = len(took)
		t.P50, t.P99 = milliseconds(took[len(took)/2]), milliseconds(took[len(took)*99/100])
		t.Max = milliseconds(took[len(took)-1])
		times[delivery] = t
		c.Logf("%s: %d hub calls, the plugin took p50 %.1f, p99 %.1f, at most %.1f ms; %.1f with a database that "+
			"was well, %.1f without the database", delivery, t.Calls, t.P50, t.P99, t.Max, t.MaxHealthy, t.MaxRelay)
	}
	return times
}

// milliseconds are d with a tenth.
func milliseconds(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

func TestChaosFindsHubCallsThatAreHeldUp(t *testing.T) {
	t.Parallel()
	at := time.Now()
	long := pluginTimeout + callAllowance + time.Second
	for _, row := range []struct {
		name string
		call hubCall
		out  time.Duration // how long the database was out, from the call's begin
		late bool
	}{
		{"short", hubCall{plugin: time.Millisecond}, 0, false},
		{"held up by the relay", hubCall{plugin: long}, 0, true},
		{"held up by the relay while the database is out", hubCall{plugin: long}, time.Minute, true},
		{"held up by the database that is well", hubCall{plugin: long, database: long}, 0, true},
		{"the database is out", hubCall{plugin: long, database: long}, time.Minute, false},
		{"the worker stood still", hubCall{plugin: long, stopped: long}, 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			quiet := &recorder{TB: t}
			c := &chaos{TB: quiet}
			c.account = newAccount(c)
			row.call.delivery, row.call.from, row.call.to = "direct", at, at.Add(row.call.plugin)
			c.account.calls = append(c.account.calls, hubCall{delivery: "outbox", from: at, to: at}, row.call)
			if row.out > 0 {
				c.databaseOut.add(at.Add(time.Millisecond), at.Add(row.out))
			}
			times := c.callsKeepTheirBound()
			if quiet.failed != row.late {
				t.Errorf("the run failed: %v, want %v", quiet.failed, row.late)
			}
			if got := times["direct"]; got.Calls != 1 || got.Max != milliseconds(row.call.plugin) {
				t.Errorf("the times are %+v", got)
			}
		})
	}
}
