package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestNamedReadersOnOtherBrokers: two relays with names, for ActiveMQ and Artemis, empty the outbox without
// one that has no name. Then that one comes, for RabbitMQ, and each bus gets everything.
func TestNamedReadersOnOtherBrokers(t *testing.T) {
	t.Parallel()
	kinds := []brokerKind{activemqClassic, artemis, rabbitmq40}
	names := []string{"old-bus", "new-bus", ""}
	var brokers []*server
	for _, k := range kinds {
		s := newServer(t, k.service)
		t.Cleanup(func() { logOnFailure(t, s); s.remove() })
		brokers = append(brokers, s)
	}
	postgres := startPostgres(t)
	database := newPart()
	unnamed := newDatabase(t, postgres, database)
	var boxes []*inbox
	var relays []*relay
	start := func() {
		i := len(relays)
		part := newPart() // each bus has topics of its own
		brokers[i].awaitBroker(t)
		boxes = append(boxes, durable(t, kinds[i], brokers[i], part, ledgerTopics...)())
		set := forBroker(kinds[i], part, brokers[i]).with(settings{"relay.handoff_timeout": "30",
			"plugin.timeout": "60", "message.events": []string{"postTag postUntag", "postRepo* post*ag", "*"}[i]})
		if names[i] == "" {
			set = set.with(unnamed)
		} else {
			set = set.with(settings{"relay.name": names[i], "queue.database": postgres.connString(database)})
		}
		relays = append(relays, startRelay(t, set, brokers[i]))
		eventually(t, 20*time.Second, "it is a reader", func() error {
			var known bool
			err := postgres.query(t, database,
				"SELECT EXISTS (SELECT FROM koji_relay.reader WHERE name = '"+names[i]+"')", &known)
			if err == nil && !known {
				err = fmt.Errorf("%q is not registered", names[i])
			}
			return err
		})
	}
	commits := func(last int) { // all buses get them; those from last on have got nothing else
		hub := &outboxHub{ledger: newLedger(postgres.connString(database))}
		for range 30 {
			hub.commit(t, 10)
		}
		var ids []string
		for _, e := range hub.events {
			ids = append(ids, e.id)
		}
		for i, box := range boxes {
			box.waitFor(t, time.Minute, ids...)
			if i >= last {
				v, err := hub.awaitArrival(box, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("bus %d: %s", i+1, v.report(t, hub.ledger, false))
			}
		}
		eventually(t, time.Minute, "the outbox is empty", func() error {
			var left int
			err := postgres.query(t, database, `SELECT (SELECT count(*) FROM koji_relay.outbox)
				+ (SELECT count(*) FROM koji_relay.outbox_taken)`, &left)
			if err == nil && left > 0 {
				err = fmt.Errorf("%d events and marks are left", left)
			}
			return err
		})
	}
	start()
	start()
	commits(0)
	// What the hub's plugin learns is what any reader wants.
	var wanted string
	if err := postgres.query(t, database, "SELECT string_agg(events, ' ') FROM koji_relay.reader",
		&wanted); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"postTag", "postUntag", "postRepo*", "post*ag"} {
		if !slices.Contains(strings.Fields(wanted), want) {
			t.Errorf("the plugin learns %q, without %s", wanted, want)
		}
	}
	readers := relays[0].command(t, "", "outbox", "readers")
	if !strings.Contains(readers, names[0]) || !strings.Contains(readers, names[1]) ||
		strings.Contains(readers, "(no name)") || strings.Contains(readers, "away") {
		t.Errorf("the readers are\n%s", readers)
	}
	for i, r := range relays {
		if status := r.command(t, "", "status"); !strings.Contains(status, "All is well") {
			t.Errorf("status of %s:\n%s", names[i], status)
		}
		if found := r.command(t, "", "check", "--connect"); !strings.Contains(found, "reader old-bus") ||
			!strings.Contains(found, "reader new-bus") || strings.Contains(found, "not registered") {
			t.Errorf("check of %s:\n%s", names[i], found)
		}
	}
	start()
	commits(2)
}
