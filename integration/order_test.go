package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// The drain with preserve_order counts on RabbitMQ to deal with the messages of a session in order, whatever
// their links: messages to three topics go out without waiting for answers in between.
func TestDrainKeepsTheOrderOfTopicsOnRabbitMQ(t *testing.T) {
	t.Parallel()
	postgres := startPostgres(t)
	for _, b := range []brokerKind{rabbitmq310, rabbitmq40} {
		t.Run(b.service, func(t *testing.T) {
			t.Parallel()
			broker, part := startBroker(t, b), newPart()
			box := subscribe(t, broker, b, fmt.Sprintf("/topic/%s.#", part))
			d := &drain{server: postgres, database: part}
			d.relay = startRelay(t, forBroker(b, part, broker).with(newDatabase(t, postgres, part),
				settings{"queue.preserve_order": "on"}), broker)
			d.command(t, "pause")
			const rows = 3000
			d.fill(t, rows, "NULL", tagTopic, "build.untag", "task.closed")
			d.command(t, "resume")
			var before int
			eventually(t, time.Minute, "all have come", func() error {
				if all, err := box.all(); err != nil || len(all) < rows {
					return fmt.Errorf("%d messages came, %v", len(all), err)
				}
				return nil
			})
			all, _ := box.all()
			for i, m := range all {
				var row struct{ N int }
				if err := json.Unmarshal([]byte(*m.Body), &row); err != nil {
					t.Fatal(err)
				}
				if row.N <= before {
					t.Fatalf("message %d is row %d, after row %d", i, row.N, before)
				}
				before = row.N
			}
			d.relay.stop(t)
		})
	}
}
