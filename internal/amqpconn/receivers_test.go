package amqpconn

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/devbroker"
)

// RabbitMQ 4 with a memory alarm takes no requests over its management node, and the driver's send does not
// look at its context then (upstream 17).
func TestListenEndsInTimeWhileTheSessionWindowIsShut(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.3.6", ShutWindow: true})
	o := testOptions()
	o.ConnectTimeout = time.Second
	e, err := endpoint.Parse(b.URL())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := Listen(t.Context(), &o, e, slog.New(slog.DiscardHandler), []string{"#"}, 10)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "connect_timeout") {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}
