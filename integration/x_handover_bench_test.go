package integration

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// handOvers: what a commit of one message costs a hub worker, from the plugin's own code to the answer.
func handOvers(t *table) {
	n := t.n(300, 5)
	up310 := startRelay(t, forBroker(rabbitmq310, "bench", t.broker310).with(t.database()), t.broker310)
	raw40 := rawSender(t, t.broker40, fmt.Sprintf(rabbitmq40.prefix, "bench")+"."+tagTopic)
	raw310 := rawSender(t, t.broker310, fmt.Sprintf(rabbitmq310.prefix, "bench")+"."+tagTopic)
	insert := newInserter(t, t.postgres)
	sends := func(s plainSender) func() []float64 { return func() []float64 { return s.times(t, n) } }
	inserts := func() []float64 { return insert.times(t, n) }
	const send, store = "one go-amqp send with its settlement", "one pgx INSERT with its COMMIT"
	for _, state := range []struct {
		name    string
		relay   *relay
		ceiling string
		raw     func() []float64
		p50     limit
		p99     limit
	}{
		{"RabbitMQ 4.0 up", t.up, send, sends(raw40), atMost(1.5, 300), reported()},
		{"RabbitMQ 3.10 up", up310, send, sends(raw310), atMost(1.5, 300), reported()},
		{"brokers refusing", t.refused, store, inserts, atMost(1.5, 400), atMost(3, 2000)},
		{"brokers silent", t.silent, store, inserts, atMost(1.5, 400), atMost(3, 2000)},
	} {
		p50 := t.row("hand-over, "+state.name+", p50", "µs", state.ceiling, state.p50)
		p99 := t.row("hand-over, "+state.name+", p99", "µs", state.ceiling, state.p99)
		for range t.rounds {
			mine50, mine99 := pluginHandOver(t, state.relay.socket, n)
			theirs := state.raw()
			p50.add(mine50, median(theirs))
			p99.add(mine99, quantile(theirs, 0.99))
		}
	}
	up310.stop(t)
}

// pluginHandOver gives the median and the 99th percentile of n hand-overs by the hub plugin's code, in
// microseconds.
func pluginHandOver(t testing.TB, socket string, n int) (p50, p99 float64) {
	cmd := exec.Command(pluginPython(), "../hubplugin/tests/handover.py", socket, strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("hand over with the plugin: %v", err)
	}
	if _, err := fmt.Sscan(string(out), &p50, &p99); err != nil {
		t.Fatalf("hand over with the plugin: it said %q: %v", out, err)
	}
	return p50, p99
}

// pluginPython is a Python with the koji library and psycopg2.
func pluginPython() string {
	return cmp.Or(os.Getenv("KOJI_RELAY_PYTHON"), "../.cache/venv/bin/python")
}

// hubCalls: what the plugin adds to a whole tag call of a stand-in hub, which writes to a PostgreSQL that
// waits for its disk.
func hubCalls(t *table) {
	rows := map[string]*row{}
	for _, delivery := range []string{"direct", "outbox"} {
		name := "delivery = " + delivery
		rows[name] = t.row("hub call, "+name, "ms", "the same call without a plugin", atMost(1.1, 0))
	}
	for range t.rounds {
		cmd := exec.Command(pluginPython(), "../hubplugin/tests/bench_hub.py", "--socket", t.up.socket,
			"--rounds", strconv.Itoa(t.n(300, 5)))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("bench_hub.py: %v\n%s", err, out)
		}
		var without float64
		for line := range bytes.Lines(out) {
			text := string(line)
			if len(text) < 47 {
				continue
			}
			name := strings.TrimSpace(text[:34])
			value, _ := strconv.ParseFloat(strings.Fields(text[34:])[0], 64)
			if name == "without" {
				without = value
			} else if r := rows[name]; r != nil {
				r.add(without+value, without)
			}
		}
	}
}

// throughputs: many hub workers at once, against one sender that waits for nothing.
func throughputs(t *table) {
	const ceiling = "pipelined go-amqp sender"
	raw := rawSender(t, t.broker40, fmt.Sprintf(rabbitmq40.prefix, "bench")+"."+tagTopic)
	single := t.row("messages a second, 16 clients x 1", "1/s", ceiling, atLeast(0.4))
	hundred := t.row("messages a second, 4 clients x 100", "1/s", ceiling, atLeast(0.9))
	cpu := t.row("processor time for each message, 4 clients x 100", "µs",
		"a process with the pipelined sender",
		atMost(3, 0))
	full := t.row("memory at full load, RssAnon", "MiB", "", below(64))
	messages := t.n(40_000, 1600)
	for range t.rounds {
		single.add(t.throughput(t.up, 16, 1, messages/4), raw.mustThroughput(t, messages/4))
		stop := watchMemory(t, t.up)
		before := processorSeconds(t, t.up.process.Process.Pid)
		rate := t.throughput(t.up, 4, 100, messages)
		mine := 1e6 * (processorSeconds(t, t.up.process.Process.Pid) - before) / float64(messages)
		full.add(stop(), 0)
		hundred.add(rate, raw.mustThroughput(t, messages))
		cpu.add(max(mine, 1), max(t.senderProcessorTime(messages), 1))
	}
}

// throughput hands over commits from clients that keep their connections, and gives messages a second.
func (t *table) throughput(r *relay, clients, size, messages int) float64 {
	var all []*leanClient
	for range clients {
		all = append(all, newLeanClient(t, r, size))
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			for range messages / clients / size {
				if err := c.post(); err != nil {
					t.Errorf("hand over a commit of %d: %v", size, err)
					return
				}
			}
		})
	}
	wg.Wait()
	rate := float64(messages/clients/size*clients*size) / time.Since(began).Seconds()
	for _, c := range all {
		c.conn.Close()
	}
	return rate
}

// puts: storing while no broker takes anything.
func puts(t *table) {
	const ceiling = "16 pgx connections, each INSERT and COMMIT"
	r := t.row("puts a second, 16 clients, brokers refusing", "1/s", ceiling, atLeast(0.6))
	const clients = 16
	var inserters []inserter
	for range clients {
		inserters = append(inserters, newInserter(t, t.postgres))
	}
	each := t.n(300, 5)
	for range t.rounds {
		mine := t.throughput(t.refused, clients, 1, clients*each)
		began := time.Now()
		var wg sync.WaitGroup
		for _, i := range inserters {
			wg.Go(func() { i.times(t, each) })
		}
		wg.Wait()
		r.add(mine, float64(clients*each)/time.Since(began).Seconds())
	}
}

// failovers: the broker in use is killed under load, and there is another.
func failovers(t *table) {
	longest := t.row("failover: longest hub call, broker killed", "ms", "", below(1000)) // handoff_timeout
	gap := t.row("failover: time without an answer, median of rounds", "ms", "", below(50))
	set := settings{"broker.topic_prefix": "/topic/bench"}
	for round := range t.rounds {
		if round > 0 {
			t.broker40.do(t, "start", t.broker40.machine.start)
			t.broker40.reachDirectly(t)
			t.broker40.awaitBroker(t)
		}
		set["broker.urls"] = brokerURL(t.broker40) + " " + brokerURL(t.broker310)
		r := startRelay(t, set.with(t.database()), t.broker40, t.broker310)
		l := startLoad(t, r, 8)
		l.await(t, 50)
		killed := time.Now()
		t.broker40.kill(t)
		l.await(t, 100)
		l.stop()
		longest.add(float64(l.slowest.Microseconds())/1000, 0)
		gap.add(float64(l.longestGap(killed).Microseconds())/1000, 0)
		r.stop(t)
	}
}
