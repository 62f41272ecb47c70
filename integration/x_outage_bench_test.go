package integration

import (
	"encoding/json"
	"os"
	"sync"
	"testing"
	"time"
)

// outage is what .ci/outage-plot draws: what a hub worker waited, and what waited in the queue, while the
// broker went away and came back.
type outage struct {
	Machine  string       `json:"machine"`
	Load     string       `json:"load"`
	Phases   []phase      `json:"phases"`
	HandOver [][2]float64 `json:"hand_over"` // seconds, milliseconds
	Backlog  [][2]float64 `json:"backlog"`   // seconds, messages
	Refused  int          `json:"refused"`
}

type phase struct {
	Name string  `json:"name"`
	At   float64 `json:"at"` // seconds
}

// BenchmarkOutage goes through an outage once: up, killed, up again, silent, back. KOJI_RELAY_OUTAGE_JSON
// names the file for what was measured, KOJI_RELAY_OUTAGE_SECONDS is how long each phase lasts (10).
func BenchmarkOutage(b *testing.B) {
	for b.Loop() {
		o := goThroughOutage(b, time.Duration(number(b, "KOJI_RELAY_OUTAGE_SECONDS", 10))*time.Second)
		b.ReportMetric(float64(o.Refused), "refused")
		path := os.Getenv("KOJI_RELAY_OUTAGE_JSON")
		if path == "" {
			continue
		}
		text, err := json.Marshal(o)
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func goThroughOutage(t testing.TB, each time.Duration) outage {
	o := outage{Machine: thisMachine(), Load: machineLoad()}
	broker, database := startBroker(t, rabbitmq40), startPostgres(t)
	part := newPart()
	countArrivals(t, broker, rabbitmq40.sources(part, ledgerTopics)...)
	durable := settings{"message.durable": "on", "queue.interval": "1"}
	r := startRelay(t, forBroker(rabbitmq40, part, broker).with(newDatabase(t, database, part), durable), broker)
	began := time.Now()
	stop := o.sample(t, database, part, began)
	l := startLoad(t, r, 4)
	enter := func(name string) { o.Phases = append(o.Phases, phase{name, time.Since(began).Seconds()}) }

	enter("up")
	<-time.After(each)
	enter("killed")
	broker.kill(t)
	<-time.After(each)
	broker.start(t)
	countArrivals(t, broker, rabbitmq40.sources(part, ledgerTopics)...)
	enter("up")
	<-time.After(each)
	enter("silent")
	broker.freeze(t)
	<-time.After(each)
	broker.thaw(t)
	enter("back")
	<-time.After(each)

	l.stop()
	stop()
	o.Refused = l.refused
	for i, took := range l.took {
		at, ms := l.at[i].Sub(began).Seconds(), float64(took.Microseconds())/1000
		o.HandOver = append(o.HandOver, [2]float64{at, ms})
	}
	return o
}

// sample counts the queue ten times a second until stop.
func (o *outage) sample(t testing.TB, s *server, database string, began time.Time) (stop func()) {
	ended := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			var n float64
			if err := s.query(t, database, "SELECT count(*)::float8 FROM proton_queue", &n); err != nil {
				t.Errorf("count the queue: %v", err)
				return
			}
			o.Backlog = append(o.Backlog, [2]float64{time.Since(began).Seconds(), n})
		}
	})
	return func() {
		close(ended)
		sampling.Wait()
	}
}
