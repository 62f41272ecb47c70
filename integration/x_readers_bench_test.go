package integration

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// BenchmarkFrozenReader freezes one of two readers of an outbox under load, and compares what the other bus
// notices with a second site, whose readers both go on: same servers, same load, same time. Each hub commits
// 20 times a second two events. KOJI_RELAY_FROZEN_SECONDS is how long the freeze lasts (6); before it is a
// twelfth of that. KOJI_RELAY_FROZEN_HELD events (0) are held for the frozen reader at once, as if it had
// been frozen for longer.
func BenchmarkFrozenReader(b *testing.B) {
	for b.Loop() {
		freezeReader(b, time.Duration(number(b, "KOJI_RELAY_FROZEN_SECONDS", 6))*time.Second,
			int(number(b, "KOJI_RELAY_FROZEN_HELD", 0)))
	}
}

func freezeReader(b *testing.B, frozen time.Duration, held int) {
	kinds := [2]brokerKind{rabbitmq40, rabbitmq310}
	var brokers [2]*server
	for i, k := range kinds {
		brokers[i] = newServer(b, k.service)
		b.Cleanup(brokers[i].remove)
	}
	database := startPostgres(b)
	for _, s := range brokers {
		s.awaitBroker(b)
	}
	sites := [2]*twoBuses{newTwoBuses(b, database, kinds, brokers), newTwoBuses(b, database, kinds, brokers)}
	run := func(name string, d time.Duration) {
		began := time.Now()
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for time.Since(began) < d {
			for _, s := range sites {
				s.commit(b)
			}
			<-pace.C
		}
		for i, s := range sites {
			b.Logf("%-24s %s: %s; load %s", name, []string{"one frozen", "beside it "}[i], s.since(b, began),
				machineLoad())
		}
	}
	run("both read", frozen/12)
	sites[0].relays[1].signal(b, syscall.SIGSTOP)
	for range held / 100 {
		sites[0].hub.commit(b, 100)
	}
	if _, err := sites[0].hub.awaitArrival(sites[0].boxes[0], time.Minute); err != nil {
		b.Fatal(err)
	}
	for quarter := range 4 {
		run(fmt.Sprintf("frozen, quarter %d", quarter+1), frozen/4)
	}
	sites[0].relays[1].signal(b, syscall.SIGCONT)
	thawed := time.Now()
	for i, s := range sites {
		for bus := range s.boxes {
			v, err := s.hub.awaitArrival(s.boxes[bus], 2*time.Minute)
			if err != nil {
				b.Fatal(err)
			}
			b.Logf("site %d, bus %d: %s; %v after the thaw", i+1, bus+1, v.report(b, s.hub.ledger, false),
				time.Since(thawed).Round(time.Second))
		}
	}
	run("after it", frozen/12)
	for _, s := range sites {
		eventually(b, time.Minute, "the outbox is empty", func() error {
			if n := s.left(b); n > 0 {
				return fmt.Errorf("%d events are left", n)
			}
			return nil
		})
	}
}

// twoBuses is a hub with an outbox that a relay without a name and one with a name read.
type twoBuses struct {
	part     string
	database *server
	hub      *outboxHub
	relays   [2]*relay
	boxes    [2]*inbox
	commits  []timedCommit
}

type timedCommit struct {
	id    string
	began time.Time
	took  time.Duration
}

func newTwoBuses(b *testing.B, database *server, kinds [2]brokerKind, brokers [2]*server) *twoBuses {
	s := &twoBuses{part: newPart(), database: database}
	set := newDatabase(b, database, s.part)
	named := settings{"queue.database": set["queue.database"], "relay.name": "new-bus"}
	for i, k := range kinds {
		declareQueue(b, brokers[i], s.part, ledgerTopics)
		s.boxes[i] = runProton(b, protonJob{URL: "amqp://" + brokers[i].addr(), User: user, Password: password,
			Addresses: []string{fmt.Sprintf(k.queue, s.part)}, Plain: true})
		s.relays[i] = startRelay(b, forBroker(k, s.part, brokers[i]).with([]settings{set, named}[i],
			settings{"message.durable": "on"}), brokers[i])
	}
	eventually(b, 20*time.Second, "both are readers", func() error {
		var n int
		err := database.query(b, s.part, "SELECT count(*) FROM koji_relay.reader", &n)
		if err == nil && n != 2 {
			err = fmt.Errorf("%d readers", n)
		}
		return err
	})
	s.hub = &outboxHub{ledger: newLedger(database.connString(s.part)), poke: s.relays[0].pokeSocket()}
	s.hub.small = true
	return s
}

func (s *twoBuses) commit(b *testing.B) {
	began := time.Now()
	id := s.hub.commit(b, 2)
	s.commits = append(s.commits, timedCommit{id, began, time.Since(began)})
}

func (s *twoBuses) left(b *testing.B) (n int) {
	if err := s.database.query(b, s.part, "SELECT count(*) FROM koji_relay.outbox", &n); err != nil {
		b.Fatal(err)
	}
	return n
}

// since says what the hub and the first bus noticed of the commits since began.
func (s *twoBuses) since(b *testing.B, began time.Time) string {
	if _, err := s.hub.awaitArrival(s.boxes[0], time.Minute); err != nil {
		b.Fatal(err)
	}
	arrived := make(map[string]time.Time)
	deliveries, _ := s.boxes[0].all()
	for _, d := range slices.Backward(deliveries) { // of repeats the first one counts
		arrived[d.ID] = d.Arrived
	}
	var handOver, lag []float64
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, c := range s.commits {
		if c.began.Before(began) {
			continue
		}
		handOver = append(handOver, ms(c.took))
		for event := range 2 {
			if at, ok := arrived[messageID(c.id, event)]; ok {
				lag = append(lag, ms(at.Sub(c.began)))
			}
		}
	}
	return fmt.Sprintf("%d commits, %d events of them on the first bus; ms p50/p99/max: "+
		"hand-over %.1f/%.1f/%.0f, until the consumer has it %.1f/%.1f/%.0f; %d events in the outbox",
		len(handOver), len(lag),
		median(handOver), quantile(handOver, 0.99), slices.Max(handOver),
		median(lag), quantile(lag, 0.99), slices.Max(lag), s.left(b))
}
