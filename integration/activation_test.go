package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
)

// startBus starts a broker in this process, for tests that are not about brokers.
func startBus(t testing.TB, opts devbroker.Options) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(opts)
	if err == nil {
		err = b.Start()
	}
	if err != nil {
		t.Fatalf("start a broker: %v", err)
	}
	t.Cleanup(b.Close)
	return b
}

// arrivedAtLeastOnce fails t unless at least so many different messages came to b.
func arrivedAtLeastOnce(t testing.TB, b *devbroker.Broker, commits int) {
	t.Helper()
	eventually(t, 20*time.Second, "every commit's message on the bus", func() error {
		ids := make(map[string]bool)
		for _, m := range b.Received() {
			ids[m.ID] = true
		}
		if len(ids) < commits {
			return fmt.Errorf("%d of %d", len(ids), commits)
		}
		return nil
	})
}

// startActivated starts r with a listener that is ours and stays open, as those of systemd do.
func (r *relay) startActivated(t testing.TB, socket *os.File) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	// LISTEN_PID has to be the relay's own, which only the process that becomes it knows.
	cmd := exec.Command("/bin/sh", "-c", `export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"`, path, "serve",
		"--config", r.conf)
	cmd.ExtraFiles = []*os.File{socket}
	r.startCommand(t, cmd)
}

// TestRestartsOfASocketActivatedRelayAreUnnoticed: the hub's commits wait in the socket, which outlives the
// relay. It measures time, so nothing else runs beside it.
func TestRestartsOfASocketActivatedRelayAreUnnoticed(t *testing.T) {
	t.Parallel()
	bus := startBus(t, devbroker.Options{})
	r := newRelay(t, settings{"broker.urls": "amqp://" + bus.Addr(), "broker.topic_prefix": "topic://koji"})
	listener, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	program, err := workersBinary()
	if err != nil {
		t.Fatal(err)
	}

	r.startActivated(t, socket)
	hub := startWorkers(t, exec.Command(program,
		slices.Concat(unhurried, []string{"-socket", r.socket, "-commit", oneTag(t)})...))
	for range 10 {
		before := len(bus.Received())
		eventually(t, 20*time.Second, "twenty commits between two restarts", func() error {
			if came := len(bus.Received()) - before; came < 20 {
				return fmt.Errorf("%d came", came)
			}
			return nil
		})
		if code := r.stop(t); code != 0 {
			t.Fatalf("the relay ended with %d:\n%s", code, r.log.tail(20))
		}
		r.startActivated(t, socket)
	}
	report := hub.stop(t)
	report.unnoticed(t, "ten restarts, 8 workers")
	arrivedAtLeastOnce(t, bus, report.Taken)
}
