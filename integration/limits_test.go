package integration

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// RabbitMQ announces what an administrator allows as handle-max and channel-max, and ends the session or the
// connection of a client that goes beyond.
func TestRelayLivesWithinRabbitMQsLimits(t *testing.T) {
	t.Parallel()
	standard, err := os.ReadFile("images/conf/rabbitmq.conf")
	if err != nil {
		t.Fatal(err)
	}
	const conf = "/opt/koji-relay-test/conf/rabbitmq.conf" // beside runScript
	s := newServer(t, rabbitmq40.service)
	t.Cleanup(func() {
		logOnFailure(t, s)
		s.remove()
	})
	s.awaitBroker(t)
	for _, row := range []struct{ links, sessions int }{{3, 1}, {3, 64}} {
		t.Run(fmt.Sprintf("%d links, %d sessions", row.links, row.sessions), func(t *testing.T) {
			s.kill(t)
			text := fmt.Sprintf("%s\nlink_max_per_session = %d\nsession_max_per_connection = %d\n", standard,
				row.links, row.sessions)
			if err := s.machine.write(within(t, time.Minute), conf, []byte(text)); err != nil {
				t.Fatal(err)
			}
			s.start(t)
			g := loadGolden(t, "extra0")
			part := newPart()
			open := durable(t, rabbitmq40, s, part, g.topics()...)
			r := startRelay(t, forBroker(rabbitmq40, part, s).with(settings{
				"message.durable": "on", "queue.interval": "1", "message.events": "*",
			}), s)
			began := time.Now()
			total := r.postGolden(t, g)
			t.Logf("%d topics: %+v in %v", len(g.topics()), total, time.Since(began).Round(time.Millisecond))
			if total.Dead > 0 {
				t.Errorf("%d dead letters", total.Dead)
			}
			box := open()
			box.waitFor(t, 60*time.Second, g.ids()...)
			for id, deliveries := range box.byID() {
				if len(deliveries) != 1 {
					t.Errorf("%s came %d times", id, len(deliveries))
				}
			}
			if r.stop(t) != 0 {
				t.Error("the relay did not end well")
			}
		})
	}
}
