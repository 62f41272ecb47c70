package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// lane is a hub, one or two relays with one queue, a broker and a consumer, through many kills.
type lane struct {
	testing.TB
	broker   *server
	postgres *server // nil: the queue is a file
	database string
	open     func() *inbox // the consumer
	settings settings
	relays   []*relay
	ledger   *ledger
	frozen   bool

	kills map[string]int // by failpoint, or "at random"
	other map[string]int // what else happened
	old   []string       // message-ids of messages that were older than max_age when they came into the queue
}

func newLane(t *testing.T, broker, postgres *server, relays int) *lane {
	t.Helper()
	part := newPart()
	l := &lane{TB: t, broker: broker, postgres: postgres, kills: make(map[string]int),
		other: make(map[string]int)}
	declareQueue(t, broker, part, ledgerTopics)
	l.open = func() *inbox {
		return runProton(t, protonJob{URL: "amqp://" + broker.addr(), User: user, Password: password,
			Addresses: []string{fmt.Sprintf(rabbitmq40.queue, part)}, Plain: true})
	}
	l.settings = forBroker(rabbitmq40, part, broker).with(settings{
		"message.durable": "on", "queue.interval": "1", "queue.batch_size": "10", "queue.expired": "dead_letter",
		"relay.handoff_timeout": "0.2",
	})
	outbox := ""
	if postgres != nil {
		l.database = part
		l.settings = l.settings.with(newDatabase(t, postgres, part))
		outbox = postgres.connString(part)
	}
	l.ledger = newLedger(outbox)
	t.Cleanup(l.ledger.close)
	for range relays {
		l.relays = append(l.relays, newRelay(t, l.settings))
	}
	return l
}

// run starts a relay that is to die at point, or lives until it is killed where point is empty. It does not
// wait until the relay is ready, for that may never be.
func (l *lane) run(r *relay, point string, set settings) {
	l.Helper()
	r.configure(l, l.settings.with(set))
	path, err := fragileBinary()
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command(path, "serve", "--config", r.conf)
	if point != "" {
		cmd.Env = append(os.Environ(), "KOJI_RELAY_FAILPOINT="+point)
	}
	r.launch(l, cmd)
}

// kill runs a relay until it dies: at the failpoint, or at a random time where that is empty. Others are
// started a little later, so that they have to wait for what it holds, or take it over.
func (l *lane) kill(r *relay, point string, set settings, others ...*relay) {
	l.Helper()
	if point == "" {
		l.run(r, "", set)
	} else {
		l.prepare(r, point)
		nth := 1
		// these are not reached often
		if !slices.Contains(lockPoints, point) && !slices.Contains(outboxPoints, point) {
			nth += rand.IntN(3)
		}
		l.run(r, fmt.Sprintf("%s:%d", point, nth), set)
	}
	draining := slices.Contains(drainPoints, point)
	// another would drain in its place, or read the outbox
	alone := draining || slices.Contains(outboxPoints, point)
	if !alone {
		l.leave(r, time.Duration(50+rand.IntN(250))*time.Millisecond)
		l.runAll(others, set)
	}
	if point == "" {
		l.leave(r, time.Duration(rand.IntN(500))*time.Millisecond)
		r.kill(l)
		l.kills["at random"]++
		return
	}
	if !alone && len(others) > 0 && !l.leave(r, 15*time.Second) {
		// On a busy machine one of the others may have been first. It drains then; or it reads the outbox,
		// behind which all else stands with preserve_order, and r has nothing to put.
		for _, other := range others {
			other.kill(l)
			l.kills["at random"]++
		}
		alone = true
	}
	for tries := 0; draining && l.frozen && tries < 10; tries++ {
		l.ledger.awaitMore(30, 2*time.Second, r.ended)
		l.thaw()
		if !l.leave(r, time.Second) { // the batches were too few
			l.freeze()
		}
	}
	if !l.leave(r, 2*time.Minute) { // on a busy machine what is read, sent and stored before it takes long
		l.Errorf("the relay was not killed at %s within 2 minutes: is that place still reached?", point)
		r.kill(l)
	}
	l.thaw()
	if alone {
		l.runAll(others, set)
	}
	if strings.Contains(r.log.text(), "failpoint "+point) {
		l.kills[point]++
	} else {
		l.Errorf("the relay ended elsewhere than at %s:\n%s", point, r.log.tail(20))
	}
}

func (l *lane) runAll(relays []*relay, set settings) {
	l.Helper()
	for _, r := range relays {
		l.run(r, "", set)
	}
}

// prepare makes what a relay needs to come to the failpoint: for a put and for a drain, a broker that takes
// nothing.
func (l *lane) prepare(r *relay, point string) {
	l.Helper()
	switch {
	case point == "mid-expiry":
		l.importOld(r, 5)
	case slices.Contains(outboxPoints, point):
		for range 10 {
			l.ledger.insert(l, 100, 10)
		}
	case slices.Contains(putPoints, point), slices.Contains(drainPoints, point):
		l.freeze()
	}
}

// leave waits until r has died, for at most limit, and reports whether it has.
func (l *lane) leave(r *relay, limit time.Duration) bool {
	select {
	case <-r.ended:
		return true
	case <-time.After(limit):
		return false
	}
}

func (l *lane) freeze() {
	l.Helper()
	l.other["broker frozen"]++
	l.broker.freeze(l)
	l.frozen = true
}

func (l *lane) thaw() {
	l.Helper()
	if l.frozen {
		l.broker.thaw(l)
		l.frozen = false
	}
}

// importOld adds messages to the queue of a relay that does not run, as old as the expiry wants them.
func (l *lane) importOld(r *relay, n int) {
	l.Helper()
	var text strings.Builder
	for range n {
		_, numbers, _ := l.ledger.announce(-1, 1)
		e := l.ledger.event(numbers[0])
		line, err := json.Marshal(map[string]any{
			"kind": "message", "message_id": e.id, "address": e.topic, "props": "{}", "body": e.body,
			"created": time.Now().Add(-25 * time.Hour), "queued": time.Now().Add(-25 * time.Hour),
		})
		if err != nil {
			l.Fatal(err)
		}
		text.Write(append(line, '\n'))
		l.old = append(l.old, e.id)
	}
	path, err := fragileBinary()
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command(path, "queue", "import", "--config", r.conf, "-")
	cmd.Stdin = strings.NewReader(text.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		l.Fatalf("koji-relay queue import: %v\n%s", err, out)
	}
}

// close lets one relay finish the work of those that were killed, and draws up the account.
func (l *lane) close(ordered bool) {
	l.Helper()
	r := l.relays[0]
	l.run(r, "", settings{"queue.preserve_order": map[bool]string{true: "on", false: "off"}[ordered]})
	v, err := l.ledger.awaitArrival(l.open(), 15*time.Second)
	if err != nil {
		l.Errorf("the consumer: %v", err)
	}
	account := v.report(l, l.ledger, ordered)
	l.expired(r)
	kills := 0
	for _, n := range l.kills {
		kills += n
	}
	l.Logf("account: %s", account)
	l.Logf("account: %d kills: %s", kills, sum(l.kills))
	l.Logf("account: beside them: %s", sum(l.other))
}

// expired checks that the messages that were too old are dead letters, all of them.
func (l *lane) expired(r *relay) {
	l.Helper()
	path, err := fragileBinary()
	if err != nil {
		l.Fatal(err)
	}
	out, err := exec.Command(path, "dead", "list", "--json", "--limit", "0", "--config", r.conf).Output()
	if err != nil {
		l.Fatalf("koji-relay dead list: %v", err)
	}
	for _, id := range l.old {
		if !strings.Contains(string(out), id) {
			l.Errorf("message %s, which was older than max_age, is no dead letter", id)
			return
		}
	}
	l.other["messages expired"] = len(l.old)
}

func (l *lane) sql(text string) {
	l.Helper()
	ctx := within(l, 30*time.Second)
	db, err := pgx.Connect(ctx, l.postgres.connString("postgres"))
	if err != nil {
		l.Fatal(err)
	}
	defer db.Close(ctx)
	if _, err := db.Exec(ctx, text); err != nil {
		l.Fatalf("%s: %v", text, err)
	}
}

func (l *lane) restart(s *server, what string) {
	l.Helper()
	l.other[what]++
	s.kill(l)
	s.do(l, "start", s.machine.start)
	if s == l.postgres {
		s.awaitPostgres(l)
	} else {
		s.awaitBroker(l)
	}
}

// smallDisk gives a relay a disk of 14 MB for its queue.
func (l *lane) smallDisk(r *relay) {
	l.Helper()
	dir := filepath.Join(r.dir, "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=14m"); err != nil {
		skipOrFail(l, "mount a small disk: %v; run as root", err)
	}
	l.settings["queue.path"] = filepath.Join(dir, "queue.db")
	l.Cleanup(func() {
		r.kill(l)
		if err := syscall.Unmount(dir, 0); err != nil {
			l.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fillDisk takes what smallDisk has left.
func (l *lane) fillDisk(r *relay) {
	l.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, "disk", "others"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		l.Fatalf("fill the disk: %v", err)
	}
}
