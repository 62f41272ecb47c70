package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// These tests prove the promise of the relay: what was handed over is never lost, is never altered, and is
// repeated only under the same message-id. Relays are killed with SIGKILL between every two steps and at
// random times; PostgreSQL and the broker are killed and frozen as well. The consumer is a process that
// shares nothing with the relay.

// killRounds is how many times relays are killed in all.
const killRounds = 200

// Every step is between two of these places in the program, at which a build with the tag failpoints can be
// killed.
var (
	sendPoints  = []string{"before-send", "after-send", "before-answer"}
	putPoints   = []string{"before-put-commit", "after-put-before-answer"}
	lockPoints  = []string{"holding-the-lock", "mid-expiry"}
	drainPoints = []string{"before-drain-send", "after-accept-before-delete", "before-settle-commit",
		"after-settle"}
	outboxPoints = []string{"before-outbox-take", "after-outbox-take", "after-outbox-delete",
		"before-append-commit"}
)

// fragileBinary is the program built with failpoints.
var fragileBinary = sync.OnceValues(func() (string, error) {
	return build("koji-relay-failpoints", "koji-relay/cmd/koji-relay", "-tags", "failpoints")
})

// TestKilledAtAnyMomentNothingIsLost needs minutes. Each lane freezes and kills servers of its own.
func TestKilledAtAnyMomentNothingIsLost(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(*testing.T){
		"postgres":            killPostgresLane,
		"two relays":          killTwoRelays,
		"file":                killFileLane,
		"file on a full disk": killOnFullDisk,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t)
		})
	}
}

func killPostgresLane(t *testing.T) {
	l := newLane(t, startBroker(t, rabbitmq40), startPostgres(t), 1)
	r := l.relays[0]
	stop := l.ledger.work(t, 4, r)
	for round, point := range l.rounds(killRounds/2, sendPoints, putPoints, lockPoints, drainPoints,
		outboxPoints) {
		set := settings{}
		if round%2 == 0 || point == "before-append-commit" {
			set["queue.preserve_order"] = "on"
		}
		if round%10 == 7 {
			// The session that holds the drain lock waits inside a transaction.
			l.other["idle_in_transaction_session_timeout 100 ms"]++
			l.sql("ALTER DATABASE " + l.database + " SET idle_in_transaction_session_timeout = '100ms'")
		}
		l.kill(r, point, set)
		if round%10 == 7 {
			l.sql("ALTER DATABASE " + l.database + " RESET idle_in_transaction_session_timeout")
		}
	}
	l.killDatabase(r)
	l.killBroker(r)
	stop()
	l.close(false)
}

// rounds is where the relay dies in each of n rounds: at each point as often as at the others, and as often
// at random.
func (l *lane) rounds(n int, points ...[]string) []string {
	all := append(slices.Concat(points...), "", "")
	var rounds []string
	for len(rounds) < n {
		rounds = append(rounds, all...)
	}
	rand.Shuffle(len(rounds), func(i, k int) { rounds[i], rounds[k] = rounds[k], rounds[i] })
	return rounds
}

// killDatabase kills PostgreSQL while commits are put, and while they are drained and deleted.
func (l *lane) killDatabase(r *relay) {
	l.Helper()
	l.run(r, "", nil)
	r.await(l, "ready", nil)
	for range 2 {
		l.freeze()
		l.ledger.await(l, 100)
		l.restart(l.postgres, "PostgreSQL killed during put")
		l.ledger.await(l, 100)
		l.thaw()
		// Some hundred messages in batches of ten: now they are sent and deleted.
		<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond)
		l.restart(l.postgres, "PostgreSQL killed during drain and delete")
		l.ledger.await(l, 50)
	}
	r.kill(l)
	l.kills["at random"]++
}

// killBroker kills the broker under load, and freezes it, while the relay lives and while it dies.
func (l *lane) killBroker(r *relay) {
	l.Helper()
	l.run(r, "", nil)
	l.ledger.await(l, 50)
	l.restart(l.broker, "broker killed")
	l.ledger.await(l, 50)
	l.freeze()
	l.ledger.await(l, 50)
	r.kill(l)
	l.kills["at random"]++
	l.run(r, "", nil)
	l.ledger.await(l, 20)
	l.thaw()
	l.ledger.await(l, 50)
	r.kill(l)
	l.kills["at random"]++
}

// killTwoRelays kills one relay after the other, most of the time where it holds the drain lock or the
// outbox. Order is kept through all of it.
func killTwoRelays(t *testing.T) {
	l := newLane(t, startBroker(t, rabbitmq40), startPostgres(t), 2)
	// An address that gets no answer for half of that, while others do, is set aside and overtaken. On a busy
	// machine a broker that was frozen takes 0.1 s from one link to the next.
	ordered := settings{"queue.preserve_order": "on", "relay.handoff_timeout": "1"}
	running, dead := l.relays[0], l.relays[1]
	l.run(running, "", ordered)
	stop := l.ledger.work(t, 4, l.relays...)
	for _, point := range l.rounds(killRounds/4, lockPoints[:1], putPoints, drainPoints, outboxPoints) {
		running.kill(t)
		l.kill(running, point, ordered, dead)
		running, dead = dead, running
	}
	stop()
	running.kill(t)
	l.close(true)
}

func killFileLane(t *testing.T) {
	l := newLane(t, startBroker(t, rabbitmq40), nil, 1)
	r := l.relays[0]
	stop := l.ledger.work(t, 4, r)
	for round, point := range l.rounds(killRounds/4, sendPoints, putPoints, lockPoints, drainPoints) {
		set := settings{}
		if round%2 == 0 {
			set["queue.preserve_order"] = "on"
		}
		l.kill(r, point, set)
	}
	stop()
	l.close(false)
}

// killOnFullDisk kills the relay while its file cannot grow any more.
func killOnFullDisk(t *testing.T) {
	l := newLane(t, startBroker(t, rabbitmq40), nil, 1)
	r := l.relays[0]
	l.smallDisk(r)
	l.freeze()
	l.run(r, "", nil)
	r.await(t, "ready", nil)
	stop := l.ledger.work(t, 4, r)
	for range 4 {
		r.await(t, "events are refused, the hub keeps them: neither sent nor stored",
			map[string]string{"error": "queue.db"})
		before := l.ledger.namedSoFar()
		eventually(t, 40*time.Second, "the disk is full", func() error {
			if n := l.ledger.namedSoFar() - before; n < 30 {
				return fmt.Errorf("%d events were refused", n)
			}
			return nil
		})
		l.fillDisk(r)
		r.kill(t)
		l.kills["at random"]++
		l.run(r, "", nil)
	}
	l.thaw()
	l.ledger.await(t, 200)
	r.kill(t)
	l.kills["at random"]++
	stop()
	l.close(false)
}
