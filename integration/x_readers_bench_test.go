package integration

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// BenchmarkFrozenReader freezes one of two readers of an outbox under load, and compares what the other
// bus notices with a second site, whose readers both go on: same servers, same load, same time. Each hub
// commits 25 times a second two events, in turn first. KOJI_RELAY_FROZEN_SECONDS is how long the freeze
// lasts (6); each twelfth of it is a window, and one is before it. KOJI_RELAY_FROZEN_HELD events (0) are
// held for the frozen reader at once, as if it had been frozen for longer.
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
		pace := time.NewTicker(40 * time.Millisecond)
		defer pace.Stop()
		for round := 0; time.Since(began) < d; round++ {
			for i := range sites {
				sites[(round+i)%2].commit(b)
			}
			<-pace.C
		}
		load := machineLoad()
		noticed := [2]*notice{sites[0].since(b, began), sites[1].since(b, began)}
		b.Logf("%-20s load %5s, %d and %d held; one frozen %s; beside it %s; ratio %s", name, load,
			sites[0].left(b), sites[1].left(b), noticed[0], noticed[1], noticed[0].over(noticed[1]))
	}
	run("both read", frozen/12)
	sites[0].relays[1].signal(b, syscall.SIGSTOP)
	for range held / 100 {
		sites[0].hub.commit(b, 100)
	}
	if _, err := sites[0].hub.awaitArrival(sites[0].boxes[0], 5*time.Minute); err != nil {
		b.Fatal(err)
	}
	for window := range 12 {
		run(fmt.Sprintf("frozen, window %d", window+1), frozen/12)
	}
	sites[0].relays[1].signal(b, syscall.SIGCONT)
	thawed := time.Now()
	for i, s := range sites {
		for bus := range s.boxes {
			v, err := s.hub.awaitArrival(s.boxes[bus], 5*time.Minute)
			if err != nil {
				b.Fatal(err)
			}
			b.Logf("site %d, bus %d: %s; %v after the thaw", i+1, bus+1, v.report(b, s.hub.ledger, false),
				time.Since(thawed).Round(time.Second))
		}
	}
	run("after it", frozen/12)
	for _, s := range sites {
		eventually(b, 10*time.Minute, "the outbox is empty", func() error {
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
	eventually(b, 2*time.Minute, "the outbox can be counted", func() error {
		return s.database.query(b, s.part, "SELECT count(*) FROM koji_relay.outbox", &n)
	})
	return n
}

// notice is what the hub and the consumer of the first bus noticed, in milliseconds.
type notice struct{ handOver, lag []float64 }

var noticedQuantiles = []float64{0.5, 0.95, 0.99}

func (n *notice) String() string {
	text := fmt.Sprintf("%d events,", len(n.lag))
	for _, values := range [][]float64{n.handOver, n.lag} {
		text += " "
		for _, q := range noticedQuantiles {
			text += fmt.Sprintf("%.1f/", quantile(values, q))
		}
		text += fmt.Sprintf("%.0f", slices.Max(append(values, 0)))
	}
	return text
}

// over says how many times as long the hand-over and the lag are as those of other.
func (n *notice) over(other *notice) (text string) {
	for i, values := range [][]float64{n.handOver, n.lag} {
		for _, q := range noticedQuantiles {
			text += fmt.Sprintf(" %.2f", quantile(values, q)/quantile([][]float64{other.handOver, other.lag}[i], q))
		}
	}
	return text
}

// since says what the hub and the first bus noticed of the commits since began.
func (s *twoBuses) since(b *testing.B, began time.Time) *notice {
	if _, err := s.hub.awaitArrival(s.boxes[0], 5*time.Minute); err != nil {
		b.Fatal(err)
	}
	arrived := make(map[string]time.Time)
	deliveries, _ := s.boxes[0].all()
	for _, d := range slices.Backward(deliveries) { // of repeats the first one counts
		arrived[d.ID] = d.Arrived
	}
	n := &notice{}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, c := range s.commits {
		if c.began.Before(began) {
			continue
		}
		n.handOver = append(n.handOver, ms(c.took))
		for event := range 2 {
			if at, ok := arrived[messageID(c.id, event)]; ok {
				n.lag = append(n.lag, ms(at.Sub(c.began)))
			}
		}
	}
	return n
}
