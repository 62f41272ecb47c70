package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// busEvents is how many events the hub inserts while the relay of the second bus is frozen.
const busEvents = 5_000

// TestTwoBusesFromOneOutbox: a relay without a name and one with a name read the same outbox, each for a
// broker of its own. The second one is frozen under load, and each is killed. Nothing is lost on either bus,
// and what the first one gets does not depend on the second.
func TestTwoBusesFromOneOutbox(t *testing.T) {
	t.Parallel()
	var brokers [2]*server
	var kinds = [2]brokerKind{rabbitmq40, rabbitmq310}
	for i, k := range kinds {
		brokers[i] = newServer(t, k.service)
		t.Cleanup(func() { logOnFailure(t, brokers[i]); brokers[i].remove() })
	}
	postgres := startPostgres(t)
	part := newPart()
	database := newDatabase(t, postgres, part)
	// On a busy machine a broker may take its time: what is queued then is sent twice, under one message-id.
	patient := settings{"relay.handoff_timeout": "30", "plugin.timeout": "60"}
	named := settings{"queue.database": postgres.connString(part), "queue.interval": "1",
		"relay.name": "new-bus"}
	var sets [2]settings
	var boxes [2]*inbox
	var relays [2]*relay
	for i, b := range brokers {
		b.awaitBroker(t)
		boxes[i] = durable(t, kinds[i], b, part, ledgerTopics...)()
		sets[i] = forBroker(kinds[i], part, b).with(patient, []settings{database, named}[i])
		relays[i] = startRelay(t, sets[i], b)
	}
	hub := &outboxHub{ledger: newLedger(postgres.connString(part))}
	left := func() (n int) {
		if err := postgres.query(t, part, "SELECT count(*) FROM koji_relay.outbox", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	// Who is registered later is promised what comes later.
	eventually(t, 20*time.Second, "both are readers", func() error {
		var n int
		err := postgres.query(t, part, "SELECT count(*) FROM koji_relay.reader", &n)
		if err == nil && n != 2 {
			err = fmt.Errorf("%d readers", n)
		}
		return err
	})
	commits := func(events int) {
		for range events / 10 {
			hub.commit(t, 10)
		}
	}
	arrives := func(when string, bus int) verdict {
		t.Helper()
		v, err := hub.awaitArrival(boxes[bus], 60*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, bus %d: %s", when, bus+1, v.report(t, hub.ledger, false))
		return v
	}
	emptied := func() {
		t.Helper()
		eventually(t, 60*time.Second, "the outbox is empty", func() error {
			var marks int
			if err := postgres.query(t, part, "SELECT count(*) FROM koji_relay.outbox_taken", &marks); err != nil {
				return err
			}
			if n := left(); n+marks > 0 {
				return fmt.Errorf("%d events and %d marks are left", n, marks)
			}
			return nil
		})
	}
	commits(1000)
	for bus := range boxes {
		arrives("both run", bus)
	}
	emptied()

	relays[1].signal(t, syscall.SIGSTOP)
	before, err := boxes[1].all()
	if err != nil {
		t.Fatal(err)
	}
	commits(busEvents)
	if v := arrives("the second is frozen", 0); v.arrived != 1000+busEvents {
		t.Errorf("the first bus got %d events while the second relay was frozen", v.arrived)
	}
	if n := left(); n < busEvents {
		t.Errorf("%d events are held for the frozen relay, want %d", n, busEvents)
	}
	if now, err := boxes[1].all(); err != nil || len(now) != len(before) {
		t.Errorf("a frozen relay sent %d messages (%v): this proves nothing", len(now)-len(before), err)
	}
	relays[1].signal(t, syscall.SIGCONT)
	arrives("it goes on", 1)
	emptied()

	for round := range 3 {
		for bus, r := range relays {
			commits(300)
			r.kill(t)
			commits(300)
			r.start(t)
			arrives(fmt.Sprintf("killed, round %d", round+1), 1-bus)
		}
	}
	// A commit of the socket reaches both: the relay that takes it knows of the other one since its start.
	hub.handOver(relays[0], 3, 10)
	for bus := range boxes {
		arrives("at the end", bus)
	}
	emptied()
}
