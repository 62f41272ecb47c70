package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkTable measures everything that docs/performance.md publishes, and prints it as a table: what
// koji-relay does, beside a ceiling that was measured in the same rounds, on the same servers. So a machine
// that is slow at the moment is slow for both. `make bench` runs it.
//
// KOJI_RELAY_BENCH_ROUNDS is how often each pair is measured (5), KOJI_RELAY_BENCH_SCALE multiplies all
// amounts (1), KOJI_RELAY_BENCH_HUGE=1 adds the backlog of ten million, KOJI_RELAY_BENCH_ROWS selects rows by
// a part of their name, and KOJI_RELAY_BENCH_JSON names a file for the figures.
func BenchmarkTable(b *testing.B) {
	for b.Loop() {
		table := newTable(b, number(b, "KOJI_RELAY_BENCH_ROUNDS", 5), number(b, "KOJI_RELAY_BENCH_SCALE", 1))
		table.measure()
		table.print()
		table.keep()
	}
}

// TestBenchmarksRunOnce keeps the benchmarks from rotting: all of them, very small. Their figures mean
// nothing.
func TestBenchmarksRunOnce(t *testing.T) {
	t.Parallel()
	table := newTable(t, 1, 0.001)
	table.measure()
	for _, r := range table.Rows {
		for _, value := range r.Mine {
			if value <= 0 {
				t.Errorf("%s: measured %v", r.Name, r.Mine)
			}
		}
		if len(r.Mine) == 0 || r.Ceiling != "" && len(r.Theirs) != len(r.Mine) {
			t.Errorf("%s: measured %d times beside %d times", r.Name, len(r.Mine), len(r.Theirs))
		}
	}
	if len(table.Rows) < 20 {
		t.Errorf("%d rows were measured", len(table.Rows))
	}
}

func number(b *testing.B, name string, otherwise float64) float64 {
	text, given := os.LookupEnv(name)
	if !given {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	return n
}

// table is one run of all benchmarks.
type table struct {
	testing.TB `json:"-"`
	rounds     int
	scale      float64
	only       string

	Machine string    `json:"machine"`
	Command string    `json:"command"`
	Began   time.Time `json:"began"`
	Load    [2]string `json:"load"` // at the beginning and the end, over the last minute
	Rounds  int       `json:"rounds"`
	Scale   float64   `json:"scale"`
	Rows    []*row    `json:"rows"`

	broker40, broker310, postgres *server
	up, refused, silent           *relay
}

// row is one figure beside its ceiling.
type row struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Ceiling string    `json:"ceiling"` // what is measured beside it; "" for a bound that is a number
	Must    string    `json:"must"`
	Mine    []float64 `json:"koji_relay"` // one for each round
	Theirs  []float64 `json:"other"`
	Reached bool      `json:"reached"`

	reached func(mine, theirs float64) bool
}

// limit is what a row must reach.
type limit struct {
	text    string
	reached func(mine, theirs float64) bool
}

// atMost is for times: no longer than factor times the ceiling, and plus more.
func atMost(factor, plus float64) limit {
	text := fmt.Sprintf("≤ %g x", factor)
	if plus > 0 {
		text += fmt.Sprintf(" + %g", plus)
	}
	return limit{text, func(mine, theirs float64) bool { return mine <= factor*theirs+plus }}
}

// atLeast is for rates.
func atLeast(factor float64) limit {
	return limit{fmt.Sprintf("≥ %g x", factor),
		func(mine, theirs float64) bool { return mine >= factor*theirs }}
}

// below is for bounds that are numbers.
func below(bound float64) limit {
	return limit{fmt.Sprintf("≤ %g", bound), func(mine, _ float64) bool { return mine <= bound }}
}

// reported is for figures that stand beside others.
func reported() limit { return limit{"-", func(float64, float64) bool { return true }} }

func newTable(tb testing.TB, rounds, scale float64) *table {
	return &table{
		TB: tb, rounds: max(1, int(rounds)), Rounds: max(1, int(rounds)), scale: scale, Scale: scale,
		only: os.Getenv("KOJI_RELAY_BENCH_ROWS"), Machine: thisMachine(), Load: [2]string{machineLoad()},
		Began:   time.Now().UTC().Truncate(time.Second),
		Command: cmp.Or(os.Getenv("KOJI_RELAY_BENCH_COMMAND"), "go test -bench Table ./integration"),
	}
}

func thisMachine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model, cores := "", 0
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name":
			model = strings.TrimSpace(value)
			cores++
		}
	}
	return fmt.Sprintf("%d cores, %s", cores, model)
}

// measure runs all parts. Each starts what it needs and adds its rows.
func (t *table) measure() {
	t.startSite()
	for _, part := range []struct {
		rows string // a part of their names
		run  func(*table)
	}{
		{"hand-over", handOvers},
		{"messages a second", throughputs},
		{"puts", puts},
		{"drain", drains},
		{"outbox", outboxes},
		{"history", histories},
		{"translation", translation},
		{"memory", memory},
		{"hub call", hubCalls},
		{"peer", peers},
		{"failover", failovers}, // the last, since it kills a broker
	} {
		if strings.Contains(part.rows, t.only) {
			began := time.Now()
			part.run(t)
			fmt.Printf("%s: measured in %v\n", part.rows, time.Since(began).Round(time.Millisecond))
		}
	}
	t.Load[1] = machineLoad()
	for _, r := range t.Rows {
		r.Reached = r.reached(median(r.Mine), median(r.Theirs))
	}
}

// n is an amount of the full table, as large as this run wants it.
func (t *table) n(full, least int) int { return max(least, int(float64(full)*t.scale)) }

func (t *table) row(name, unit, ceiling string, must limit) *row {
	r := &row{Name: name, Unit: unit, Ceiling: ceiling, Must: must.text, reached: must.reached}
	t.Rows = append(t.Rows, r)
	return r
}

func (r *row) add(mine, theirs float64) {
	r.Mine = append(r.Mine, mine)
	if r.Ceiling != "" {
		r.Theirs = append(r.Theirs, theirs)
	}
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile is 0 for no values.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*q))]
}

func (t *table) print() {
	fmt.Printf("\n%s; %d rounds, load %s at the beginning and %s at the end\n", t.Machine, t.Rounds, t.Load[0],
		t.Load[1])
	fmt.Printf("%-56s %28s %28s %7s  %-14s\n", "median (min to max)", "koji-relay", "ceiling", "ratio", "must")
	missed := 0
	for _, r := range t.Rows {
		verdict := "reached"
		if !r.Reached {
			verdict = "MISSED"
			missed++
		}
		ratio := ""
		if len(r.Theirs) > 0 {
			ratio = fmt.Sprintf("%.2f", median(r.Mine)/median(r.Theirs))
		}
		fmt.Printf("%-56s %28s %28s %7s  %-14s %s\n", r.Name+", "+r.Unit, spread(r.Mine), spread(r.Theirs), ratio,
			r.Must, verdict)
		if r.Ceiling != "" {
			fmt.Printf("    beside %s\n", r.Ceiling)
		}
	}
	fmt.Printf("%d of %d reached\n", len(t.Rows)-missed, len(t.Rows))
}

func spread(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf("%s (%s to %s)", short(median(values)), short(slices.Min(values)),
		short(slices.Max(values)))
}

func short(v float64) string {
	if v < 100 {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// keep writes the figures to the file that KOJI_RELAY_BENCH_JSON names.
func (t *table) keep() {
	path := os.Getenv("KOJI_RELAY_BENCH_JSON")
	if path == "" {
		return
	}
	text, err := json.MarshalIndent(t, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatalf("keep the figures: %v", err)
	}
}
