package integration

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// TestReloadUnderLoad: SIGHUP changes brokers, limits and levels while hub workers hand over, and drops no
// commit; a file with a mistake changes nothing.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	var brokers [2]*server
	for i := range brokers {
		brokers[i] = newServer(t, rabbitmq40.service)
		t.Cleanup(func() { logOnFailure(t, brokers[i]); brokers[i].remove() })
	}
	part := newPart()
	var open [2]func() *inbox
	for i, s := range brokers {
		s.awaitBroker(t)
		open[i] = durable(t, rabbitmq40, s, part, tagTopic)
	}
	set := func(s *server, more settings) settings {
		return forBroker(rabbitmq40, part, s).with(settings{"message.durable": "on", "queue.interval": "1"}, more)
	}
	r := startRelay(t, set(brokers[0], nil), brokers[0])
	l := startLoad(t, r, 4)
	l.await(t, 50)
	for i, change := range []settings{
		{"queue.batch_size": "10", "relay.log_level": "debug", "message.extra_limit": "1000"},
		{"queue.batch_size": "500", "relay.log_level": "info", "relay.handoff_timeout": "0.5"},
		{"queue.max_age": "48", "message.ttl": "600"},
	} {
		to := brokers[(i+1)%2]
		r.configure(t, set(to, change))
		r.signal(t, syscall.SIGHUP)
		eventually(t, 30*time.Second, "the new configuration is in effect", func() error {
			if n := r.log.count("reloaded", nil); n != i+1 {
				return fmt.Errorf("%d reloads", n)
			}
			return nil
		})
		l.await(t, 50)
	}
	r.configure(t, set(brokers[0], settings{"queue.batch_size": "many"}))
	r.signal(t, syscall.SIGHUP)
	r.await(t, "reload refused: the old configuration stays", map[string]string{"error": "batch_size"})
	l.await(t, 50)
	l.stop()
	if l.refused > 0 {
		t.Errorf("%d commits were not answered %d", l.refused, http.StatusOK)
	}
	if l.slowest > promptly(1500*time.Millisecond) {
		t.Errorf("the slowest answer took %v", l.slowest)
	}
	boxes := []*inbox{open[0](), open[1]()}
	arrived(t, 30*time.Second, l.ids(), boxes...)
	for i, box := range boxes {
		if len(box.byID()) < 50 {
			t.Errorf("broker %d got %d messages", i, len(box.byID()))
		}
	}
}
