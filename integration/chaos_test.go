package integration

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestChaos runs a whole site for a while, in which everything fails that can, by a schedule that belongs to
// a seed: three brokers, a database with a standby, two relays, eight hub workers with the real plugin. Then
// it calms down, and the account must be right: nothing lost, nothing altered, and nothing said by the relays
// that was not so.
//
// KOJI_RELAY_CHAOS_SEED and KOJI_RELAY_CHAOS_SECONDS choose the run; `make chaos SEED=…` sets them.
// docs/reliability.md says what was found.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("KOJI_RELAY_CHAOS_SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatalf("KOJI_RELAY_CHAOS_SEED: %v", err)
	}
	length, err := strconv.Atoi(cmp.Or(os.Getenv("KOJI_RELAY_CHAOS_SECONDS"), "10"))
	if err != nil {
		t.Fatalf("KOJI_RELAY_CHAOS_SECONDS: %v", err)
	}
	c := newChaos(t, seed, time.Duration(length)*time.Second)
	c.startHubs()
	stop := c.watch()
	c.suffer()
	quiet := &quietHour{hub: newLedger("")}
	c.cutOff(quiet.hub)
	c.calm()
	stop()
	c.judge(quiet)
}

// watch notes what the relays say of themselves, until stop.
func (c *chaos) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	for _, w := range c.witnesses {
		watching.Go(func() { w.watch(ctx) })
	}
	stop = sync.OnceFunc(func() { cancel(); watching.Wait() })
	c.Cleanup(stop)
	return stop
}

// suffer goes through the schedule.
func (c *chaos) suffer() {
	began := time.Now()
	var databaseOut time.Time // since when
	for _, m := range moments(schedule(c.seed, c.length, faults)) {
		<-time.After(time.Until(began.Add(m.at)))
		late := time.Since(began) - m.at
		if m.ends {
			c.Logf("%6.1f s  %s %d: no longer %s (%.1f s late)", m.at.Seconds(), m.part, m.number, m.name,
				late.Seconds())
			m.fault.end(c, m.step)
			if m.part == databasePart {
				c.databaseOut.add(databaseOut, time.Now().Add(m.rest))
			}
			continue
		}
		c.Logf("%v (%.1f s late)", m.step, late.Seconds())
		c.happened[string(m.part)+" "+m.name]++
		if m.part == databasePart {
			databaseOut = time.Now()
		}
		m.fault.begin(c, m.step)
	}
	<-time.After(time.Until(began.Add(c.length)))
}

// calm lets everything come back and the relays finish what is waiting.
func (c *chaos) calm() {
	for i, r := range c.relays {
		c.configure(i, nil)
		c.clerk.command(i, "resume")
		select {
		case <-r.ended:
			c.Errorf("relay %d has ended by itself:\n%s", i, r.log.tail(30))
			c.launch(i)
		default:
		}
	}
	for _, s := range c.brokers {
		s.awaitBroker(c)
	}
	for i, w := range c.witnesses {
		eventually(c, time.Minute, fmt.Sprintf("relay %d is ready", i), func() error {
			if ready, why := w.ask(); !ready {
				return fmt.Errorf("it is not: %s", why)
			}
			return nil
		})
	}
	c.account.awaitHandOvers(50)
	for _, h := range c.hubs {
		h.stop(c)
	}
	c.awaitReplays()
	c.awaitEmpty()
}

// awaitEmpty waits until nothing is left in the outbox and in the queue, for as long as it gets less. What
// was put aside for a while is made due.
func (c *chaos) awaitEmpty() {
	const stands = 90 * time.Second
	retried, since, least := time.Now(), time.Now(), -1
	eventually(c, c.length+5*time.Minute, "the outbox and the queue are empty", func() error {
		var outbox, queue int
		err := c.database("SELECT count(*) FROM koji_relay.outbox", &outbox)
		if err == nil {
			err = c.database("SELECT count(*) FROM proton_queue", &queue)
		}
		if err != nil || outbox+queue == 0 {
			return err
		}
		if least < 0 || outbox+queue < least {
			least, since = outbox+queue, time.Now()
		}
		if time.Since(since) > stands {
			c.Fatalf("outbox and queue get no emptier, for %v: %d events are in the outbox, %d messages in the "+
				"queue", stands, outbox, queue)
		}
		if time.Since(retried) > 5*time.Second {
			retried = time.Now()
			c.clerk.command(0, "queue", "retry", "--all")
		}
		return fmt.Errorf("%d events are in the outbox, %d messages in the queue", outbox, queue)
	})
}

// judge draws up the account.
func (c *chaos) judge(quiet *quietHour) {
	committed := c.committed()
	quiet.handOver(c)
	for _, w := range c.witnesses {
		w.count() // the last time
	}
	var arrivals [3][]delivery
	boxes := [3]*inbox{}
	for i, open := range c.open {
		boxes[i] = open()
	}
	for i, box := range boxes {
		arrivals[i] = c.readAll(c.brokers[i].service, box)
	}
	storm := withoutQuiet(arrivals)
	r := c.account.close(storm, committed)
	for _, ids := range c.account.overtaken[:min(3, len(c.account.overtaken))] {
		c.Logf("overtaken:\n%s\nby:\n%s", c.history(ids[0]), c.history(ids[1]))
	}
	c.truthful(quiet, arrivals)
	c.noDeadLetters()
	r.Calls = c.callsKeepTheirBound()
	r.Replays, r.Replayed, r.Untold = c.replays, c.replayed, c.account.untold
	c.Logf("happened: %s", strings.Join(names(c.happened), ", "))
	r.keep(c)
}

// readAll reads a broker until nothing came for a while.
func (c *chaos) readAll(service string, box *inbox) []delivery {
	var all []delivery
	since, limit := time.Now(), time.After(time.Minute)
	for time.Since(since) < 4*time.Second {
		got, err := box.all()
		if err != nil {
			c.Fatalf("read %s: %v", service, err)
		}
		if len(got) > len(all) {
			all, since = got, time.Now()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-limit:
			c.Errorf("%s gives more and more, now %d messages", service, len(all))
			return all
		}
	}
	c.Logf("%s had %d messages", service, len(all))
	return all
}

// noDeadLetters: nothing that went wrong was a message's fault.
func (c *chaos) noDeadLetters() {
	var n int
	var why *string
	if err := c.database("SELECT count(*) FROM koji_relay.dead_letter", &n); err != nil {
		c.Fatal(err)
	}
	if err := c.database("SELECT max(reason) FROM koji_relay.dead_letter", &why); err != nil {
		c.Fatal(err)
	}
	if n > 0 {
		c.Errorf("%d messages became dead letters, for example because of %q", n, deref(why))
	}
}

// awaitHandOvers waits until n more events were handed over.
func (a *account) awaitHandOvers(n int) {
	count := func() (handed int) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, e := range a.events {
			if e.handed {
				handed++
			}
		}
		return handed
	}
	want := count() + n
	eventually(a.c, time.Minute, "hubs hand over again", func() error {
		if got := count(); got < want {
			return fmt.Errorf("%d events, not %d", got, want)
		}
		return nil
	})
}
