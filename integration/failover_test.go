package integration

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pair is two brokers of different kinds behind one relay, the first preferred, and a PostgreSQL.
type pair struct {
	kinds    [2]brokerKind
	brokers  [2]*server
	postgres *server
}

// TestTwoBrokers runs the cases with two brokers one after the other, since each takes servers down.
func TestTwoBrokers(t *testing.T) {
	t.Parallel()
	p := pair{kinds: [2]brokerKind{rabbitmq40, rabbitmq310}}
	for i, b := range p.kinds {
		p.brokers[i] = newServer(t, b.service)
	}
	p.postgres = startPostgres(t)
	for _, s := range p.brokers {
		s.awaitBroker(t)
		defer s.remove()
		defer logOnFailure(t, s)
	}
	for _, store := range []string{"file", "postgres"} {
		t.Run("both down with the queue in "+store, func(t *testing.T) { bothDown(t, p, store) })
	}
	t.Run("preferred broker killed under load is used again when it is back",
		func(t *testing.T) { preferredBack(t, p) })
	t.Run("three silent URLs cost one hand-off timeout", func(t *testing.T) { silentURLs(t, p) })
	t.Run("SIGTERM under load loses nothing", func(t *testing.T) { relayEnds(t, p, syscall.SIGTERM) })
	t.Run("SIGKILL under load loses nothing", func(t *testing.T) { relayEnds(t, p, syscall.SIGKILL) })
	t.Run("database killed while the brokers are down is told to the hub by event",
		func(t *testing.T) { databaseDown(t, p) })
}

// settings is the configuration for both brokers; RabbitMQ 3 and 4 both serve this prefix.
func (p pair) settings(part string) settings {
	return forBroker(brokerKind{prefix: "/topic/%s"}, part, p.brokers[:]...).with(settings{
		"message.durable": "on", "queue.interval": "1",
	})
}

// durable gives each broker a durable queue for the part, and the functions that open them.
func (p pair) durable(t *testing.T, part string, topics ...string) (open [2]func() *inbox) {
	t.Helper()
	for i, s := range p.brokers {
		open[i] = durable(t, p.kinds[i], s, part, topics...)
	}
	return open
}

// arrived checks that every id is at one broker or the other.
func arrived(t *testing.T, limit time.Duration, ids []string, boxes ...*inbox) {
	t.Helper()
	eventually(t, limit, "every message that was answered 200 arrives", func() error {
		missing, first := 0, ""
		for _, id := range ids {
			found := false
			for _, box := range boxes {
				found = found || box.has(id)
			}
			if !found {
				missing++
				first = id
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d are missing, one is %s", missing, len(ids), first)
		}
		return nil
	})
	for _, box := range boxes {
		logRepeats(t, box)
	}
}

// storeSettings is the configuration of one kind of queue.
func (p pair) storeSettings(t *testing.T, store, database string) settings {
	if store == "postgres" {
		return newDatabase(t, p.postgres, database)
	}
	return settings{"queue.store": "file"}
}

// bothDown: the golden commits of a real hub while no broker is up.
func bothDown(t *testing.T, p pair, store string) {
	g := loadGolden(t, "extra500")
	part := newPart()
	open := p.durable(t, part, g.topics()...)
	set := p.settings(part).with(p.storeSettings(t, store, part), settings{"message.extra_limit": "500"})
	r := startRelay(t, set, p.brokers[:]...)
	for _, s := range p.brokers {
		s.kill(t)
		r.await(t, "broker down", map[string]string{"broker": s.addr()})
	}
	var slowest time.Duration
	queued := 0
	for _, c := range g.commits {
		a := r.mustPost(t, c.Line)
		queued += a.Queued
		slowest = max(slowest, a.Took)
		if a.Sent != 0 {
			t.Errorf("commit %s: sent %d while no broker was up", c.ID, a.Sent)
		}
	}
	if queued != len(g.messages) {
		t.Errorf("queued %d of %d messages", queued, len(g.messages))
	}
	if slowest > promptly(500*time.Millisecond) {
		t.Errorf("the slowest of %d answers took %v", len(g.commits), slowest)
	}
	t.Logf("slowest answer with the queue in %s: %v", store, slowest)

	// Only the second comes back at first: all of the queue goes there.
	p.brokers[1].start(t)
	box := open[1]()
	box.waitFor(t, 60*time.Second, g.ids()...)
	compareQueued(t, g, box)
	p.brokers[0].start(t)
}

// compareQueued is golden.compare for messages that came through one queue, in which topics are not told
// apart.
func compareQueued(t *testing.T, g golden, box *inbox) {
	t.Helper()
	got := box.byID()
	for _, want := range g.messages {
		d := got[want.id()]
		if len(d) == 0 || d[0].Body == nil || *d[0].Body != want.Body ||
			strings.Join(sortedProps(d[0].Props), "\n") != strings.Join(sortedProps(want.Props), "\n") {
			t.Errorf("%s event %d of commit %s differs after the queue", want.Callback, want.Event, want.Commit)
		}
	}
}

func preferredBack(t *testing.T, p pair) {
	part := newPart()
	open := p.durable(t, part, tagTopic)
	r := startRelay(t, p.settings(part).with(patientDisk), p.brokers[:]...)
	l := startLoad(t, r, 4)
	l.await(t, 50)
	p.brokers[0].kill(t)
	l.await(t, 50)
	p.brokers[0].start(t)
	first := open[0]()
	seen := len(first.byID())
	eventually(t, 60*time.Second, "the preferred broker gets messages again", func() error {
		if n := len(first.byID()); n < seen+50 {
			return fmt.Errorf("it has %d, and had %d when it came back", n, seen)
		}
		return nil
	})
	l.stop()
	if l.refused > 0 {
		t.Errorf("%d commits were not answered %d", l.refused, http.StatusOK)
	}
	if l.slowest > promptly(1500*time.Millisecond) {
		t.Errorf("the slowest answer took %v", l.slowest)
	}
	second := open[1]()
	arrived(t, 60*time.Second, l.ids(), first, second)
	if len(second.byID()) == 0 {
		t.Error("the second broker got nothing while the first was down")
	}
}

// silentURLs: all brokers are there and take nothing; one of them is listed twice.
func silentURLs(t *testing.T, p pair) {
	part := newPart()
	open := p.durable(t, part, tagTopic)
	set := p.settings(part).with(patientDisk)
	set["broker.urls"] += " " + strings.Replace(brokerURL(p.brokers[0]), "127.0.0.1", "localhost", 1)
	r := startRelay(t, set, p.brokers[:]...)
	warm, all := tagCommit(1)
	r.mustPost(t, warm)
	for _, s := range p.brokers {
		s.freeze(t)
	}
	l := startLoad(t, r, 8)
	l.await(t, 400)
	l.stop()
	for _, s := range p.brokers {
		s.thaw(t)
	}
	if l.refused > 0 {
		t.Errorf("%d commits were not answered %d", l.refused, http.StatusOK)
	}
	// Each of the 8 workers can have one commit under way when the silence begins.
	if slow := l.slowerThan(promptly(waited)); slow > 8 || l.slowest > promptly(1500*time.Millisecond) {
		t.Errorf("%d commits waited for the brokers, the slowest %v", slow, l.slowest)
	}
	arrived(t, 90*time.Second, append(all, l.ids()...), open[0](), open[1]())
}

// relayEnds: the relay is stopped or killed under load with one broker dying, and started again.
func relayEnds(t *testing.T, p pair, how syscall.Signal) {
	part := newPart()
	open := p.durable(t, part, tagTopic)
	r := startRelay(t, p.settings(part), p.brokers[:]...)
	l := startLoad(t, r, 4)
	for range 3 {
		l.await(t, 40)
		r.signal(t, how)
		code := r.awaitEnd(t, 45*time.Second)
		if how == syscall.SIGTERM && code != 0 {
			t.Errorf("the relay ended with %d after %v", code, how)
		}
		r.start(t)
	}
	l.await(t, 40)
	l.stop()
	if how == syscall.SIGTERM {
		if r.stop(t) != 0 {
			t.Error("the relay did not end with 0")
		}
		if _, err := os.Stat(r.socket); err == nil {
			t.Error("the socket is still there after the relay has ended")
		}
		r.start(t)
	}
	arrived(t, 60*time.Second, l.ids(), open[0](), open[1]())
}

func databaseDown(t *testing.T, p pair) {
	part := newPart()
	open := p.durable(t, part, tagTopic)
	r := startRelay(t, p.settings(part).with(newDatabase(t, p.postgres, part)), p.brokers[:]...)
	for _, s := range p.brokers {
		s.kill(t)
		r.await(t, "broker down", map[string]string{"broker": s.addr()})
	}
	queued, ids := tagCommit(2)
	r.mustPost(t, queued)

	p.postgres.kill(t)
	refused, refusedIDs := tagCommit(3)
	a, err := r.post(within(t, 10*time.Second), refused)
	if err != nil {
		t.Fatal(err)
	}
	if a.Code != http.StatusServiceUnavailable || fmt.Sprint(a.NotTaken) != "[0 1 2]" {
		t.Errorf("answer %d, not_taken %v; want 503 and all three events", a.Code, a.NotTaken)
	}
	if a.Took > promptly(2*time.Second) {
		t.Errorf("the answer took %v", a.Took)
	}

	p.postgres.do(t, "start", p.postgres.machine.start)
	p.postgres.awaitPostgres(t)
	// As the hub does with what was not taken: once more, later, with the same numbers.
	eventually(t, 20*time.Second, "the database is used again", func() error {
		a, err := r.post(within(t, 10*time.Second), refused)
		if err == nil && a.Code != http.StatusOK {
			err = fmt.Errorf("answer %d %s", a.Code, a.Error)
		}
		return err
	})
	for _, s := range p.brokers {
		s.start(t)
	}
	arrived(t, 60*time.Second, append(ids, refusedIDs...), open[0](), open[1]())
}
