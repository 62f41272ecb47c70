package integration

import (
	"context"
	"testing"
	"time"
)

// histories: what the history costs, beside a relay that keeps none. Both run all the time, and each is
// measured in turn.
func histories(t *table) {
	const without = "the same without a history"
	p50 := t.row("history: hand-over, p50", "µs", without, atMost(1.05, 0))
	single := t.row("history: messages a second, 16 clients x 1", "1/s", without, atLeast(0.9))
	hundred := t.row("history: messages a second, 4 clients x 100", "1/s", without, atLeast(0.9))
	drained := t.row("history: drain of 20,000 rows", "1/s", without, atLeast(0.9))
	memory := t.row("history: memory at full load beyond that without it, RssAnon", "MiB", "", below(16))
	disk := t.row("history: PostgreSQL's disk for each message, with indexes", "bytes", "", reported())
	kept := newDrain(t, nil)
	none := newDrain(t, settings{"history.keep": "0"})
	commits, messages, rows := t.n(300, 5), t.n(20_000, 1600), t.n(20_000, 200)
	for _, d := range []*drain{kept, none} {
		t.throughput(d.relay, 4, 100, messages) // plans and caches
	}
	for round := range t.rounds {
		var took, single1, hundred1, drain1, peak [2][]float64
		for turn := range 4 { // with, without, without, with; the next round begins with the other
			which := (turn + turn/2 + round) % 2
			d := []*drain{kept, none}[which]
			one, _ := pluginHandOver(t, d.relay.socket, commits)
			took[which] = append(took[which], one)
			stop := watchMemory(t, d.relay)
			single1[which] = append(single1[which], t.throughput(d.relay, 16, 1, messages/4))
			hundred1[which] = append(hundred1[which], t.throughput(d.relay, 4, 100, messages))
			peak[which] = append(peak[which], stop())
			drain1[which] = append(drain1[which], d.drain(t, rows, tagTopic))
		}
		mean := func(pair [2][]float64, which int) float64 {
			return (pair[which][0] + pair[which][1]) / 2
		}
		p50.add(mean(took, 0), mean(took, 1))
		single.add(mean(single1, 0), mean(single1, 1))
		hundred.add(mean(hundred1, 0), mean(hundred1, 1))
		drained.add(mean(drain1, 0), mean(drain1, 1))
		memory.add(max(mean(peak, 0)-mean(peak, 1), 0.01), 0)
	}
	disk.add(historyBytes(t, kept), 0)
	kept.relay.stop(t)
	none.relay.stop(t)
}

// historyBytes is what PostgreSQL keeps for each message of the history. A drained one has its step as well.
func historyBytes(t testing.TB, d *drain) (bytes float64) {
	db := d.connect(t)
	defer db.Close(context.Background())
	err := db.QueryRow(within(t, time.Minute), `SELECT sum(bytes)::float8
		/ (SELECT count(*) FROM koji_relay.history_message) FROM koji_relay.history_day`).Scan(&bytes)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
