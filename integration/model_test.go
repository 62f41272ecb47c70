package integration

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"koji-relay/internal/devbroker"
)

// TestRelayAgreesWithItsModel drives a relay and two scripted brokers through random steps, and compares what
// became of each message with what a small model allows: what was taken is accepted by a broker at least
// once, whole; nothing else arrives; nothing becomes a dead letter without a reason; and with preserve_order
// first attempts are made in order. rapid finds the shortest steps to what it finds. `-rapid.checks=200`
// tries more of them.
func TestRelayAgreesWithItsModel(t *testing.T) {
	t.Parallel()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := flag.Set("rapid.checks", "20"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t, rapid.Bool().Draw(rt, "preserve_order"))
		defer m.close()
		steps := m.visible()
		if !m.ordered {
			steps = append(steps, m.invisible()...)
		}
		names := rapid.SliceOfN(rapid.IntRange(0, len(steps)-1), 3, 25).Draw(rt, "steps")
		for _, i := range names {
			rt.Logf("%s", steps[i].name)
			steps[i].run(rapid.IntRange(0, len(m.brokers)-1).Draw(rt, "broker"), rapid.IntRange(1, 4).Draw(rt, "size"))
		}
		m.heal()
		m.compare(rt)
	})
}

// relayModel is a relay with its brokers, and what must become of what it was given.
type relayModel struct {
	t       *testing.T
	ordered bool
	relay   *relay
	brokers [2]*devbroker.Broker
	ledger  *ledger

	mu       sync.Mutex // guards the fields below
	attempts []string   // ids, in the order in which brokers read them
}

type modelStep struct {
	name string
	run  func(broker, size int)
}

func newModel(t *testing.T, ordered bool) *relayModel {
	m := &relayModel{t: t, ordered: ordered, ledger: newLedger("")}
	var urls []string
	for i := range m.brokers {
		m.brokers[i] = startBus(t, devbroker.Options{})
		urls = append(urls, m.brokers[i].URL())
		m.verdict(i, devbroker.Verdict{})
	}
	m.relay = startRelay(t, settings{
		"broker.urls": strings.Join(urls, " "), "broker.topic_prefix": "/topic/koji", "queue.interval": "1",
		"queue.preserve_order": map[bool]string{true: "on", false: "off"}[ordered], "relay.handoff_timeout": "0.2",
		"broker.send_timeout": "3", "broker.idle_timeout": "3",
	})
	return m
}

func (m *relayModel) close() {
	m.relay.kill(m.t)
	for _, b := range m.brokers {
		b.Close()
	}
}

// verdict makes a broker do this with each message, and notes each that it reads.
func (m *relayModel) verdict(broker int, v devbroker.Verdict) {
	m.brokers[broker].Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.attempts = append(m.attempts, r.ID)
		return v
	}})
}

// visible are the steps after which every attempt to send was seen by a broker.
func (m *relayModel) visible() []modelStep {
	set := func(v devbroker.Verdict) func(int, int) {
		return func(broker, _ int) { m.verdict(broker, v) }
	}
	busy := devbroker.Cause{Condition: "amqp:resource-limit-exceeded", Description: "busy"}
	return []modelStep{
		{"hand over", func(_, size int) { m.ledger.handOver(m.relay, 1, size) }},
		{"hand over", func(_, size int) { m.ledger.handOver(m.relay, 1, size) }},
		{"accept", set(devbroker.Verdict{})},
		{"reject", set(devbroker.Verdict{Outcome: devbroker.Reject, Cause: busy})},
		{"release", set(devbroker.Verdict{Outcome: devbroker.Release})},
		{"modify", set(devbroker.Verdict{Outcome: devbroker.Modify, DeliveryFailed: true})},
		{"hold", set(devbroker.Verdict{When: devbroker.Held})},
		{"settle what was held", func(broker, _ int) { m.brokers[broker].SettleHeld() }},
	}
}

// invisible are those that may lose an attempt on its way.
func (m *relayModel) invisible() []modelStep {
	return []modelStep{
		{"drop the connection", func(broker, _ int) {
			m.brokers[broker].Inflict("", devbroker.DropConnection, devbroker.Cause{})
		}},
		{"take and drop", func(broker, _ int) {
			m.verdict(broker, devbroker.Verdict{Fault: devbroker.DropConnection, Taken: true})
		}},
		{"freeze", func(broker, _ int) { m.brokers[broker].Freeze() }},
		{"thaw", func(broker, _ int) { m.brokers[broker].Thaw() }},
		{"stop", func(broker, _ int) { m.brokers[broker].Stop() }},
		{"start", func(broker, _ int) { m.start(broker) }},
		{"kill the relay", func(int, int) { m.relay.kill(m.t); m.relay.start(m.t) }},
		{"end the relay", func(int, int) {
			m.relay.signal(m.t, syscall.SIGTERM)
			m.relay.awaitEnd(m.t, 40*time.Second)
			m.relay.start(m.t)
		}},
	}
}

func (m *relayModel) start(broker int) {
	if err := m.brokers[broker].Start(); err != nil {
		m.t.Errorf("start broker %d: %v", broker, err)
	}
}

// heal makes all well, and waits until the relay has nothing left to do.
func (m *relayModel) heal() {
	for i, b := range m.brokers {
		m.verdict(i, devbroker.Verdict{})
		b.Thaw()
		b.SettleHeld()
		m.start(i)
	}
	eventually(m.t, 40*time.Second, "the queue is empty", func() error {
		m.relay.command(m.t, "", "queue", "retry", "--all")
		if left := m.relay.command(m.t, "", "queue", "list", "--json"); strings.Contains(left, "message_id") {
			return fmt.Errorf("it has %s", left)
		}
		return nil
	})
}

// compare is the judgement.
func (m *relayModel) compare(rt *rapid.T) {
	accepted, known := make(map[string]bool), make(map[string]*numbered)
	for _, e := range m.ledger.events {
		known[e.id] = e
	}
	for i, b := range m.brokers {
		for _, r := range b.Received() {
			e := known[r.ID]
			if e == nil || !strings.Contains(string(r.Payload), e.body) {
				rt.Fatalf("broker %d got %s, which nobody handed over like that", i, r.ID)
			}
			v := r.Verdict
			taken := v.Fault == devbroker.NoFault && v.When != devbroker.Never || v.Taken
			taken = taken && v.Outcome == devbroker.Accept
			accepted[r.ID] = accepted[r.ID] || taken
		}
	}
	for number, e := range m.ledger.events {
		if e.handed && !accepted[e.id] {
			rt.Fatalf("event %d was taken (%s), and no broker has it", number, e.how)
		}
	}
	if dead := m.relay.command(m.t, "", "dead", "list", "--json"); strings.Contains(dead, "message_id") {
		rt.Fatalf("dead letters without a reason: %s", dead)
	}
	if m.ordered {
		m.compareOrder(rt)
	}
}

func (m *relayModel) compareOrder(rt *rapid.T) {
	m.mu.Lock()
	defer m.mu.Unlock()
	number := make(map[string]int)
	for n, e := range m.ledger.events {
		number[e.id] = n
	}
	var first []int
	seen := make(map[string]bool)
	for _, id := range m.attempts {
		if !seen[id] {
			seen[id] = true
			first = append(first, number[id])
		}
	}
	if !slices.IsSorted(first) {
		rt.Fatalf("first attempts were made in the order %v", first)
	}
}
