package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"koji-relay/internal/pgtest"
)

// sec keeps a fault on one line.
const sec = time.Second

// faults is everything that can happen in a run, with how often, how long, and how long the part is left
// alone after it. Begin and end are done by one goroutine, one after the other, so that a run follows its
// schedule.
var faults = []fault{
	{"killed", brokerPart, 6, sec, 8 * sec, 20 * sec, killBroker, startBrokerAgain},
	{"frozen", brokerPart, 6, sec, 15 * sec, 5 * sec, freezeBroker, thawBroker},
	{"out of memory", brokerPart, 3, 4 * sec, 12 * sec, 10 * sec, alarmBroker, endAlarm},

	{"cut", wayPart, 8, 0, 3 * sec, sec, cutWay, joinWay},
	{"slow", wayPart, 4, 2 * sec, 15 * sec, 2 * sec, delayWay, clearWay},
	{"byte-wise", wayPart, 4, 2 * sec, 10 * sec, 2 * sec, sliceWay, clearWay},
	{"half open", wayPart, 6, 2 * sec, 20 * sec, 2 * sec, silenceWay, clearWay},
	{"cut inside a frame", wayPart, 6, sec, 5 * sec, sec, limitWay, clearWay},

	{"killed", relayPart, 8, 0, 4 * sec, 3 * sec, killRelay, launchRelay},
	{"ended", relayPart, 4, 0, 4 * sec, 12 * sec, endRelay, launchRelay},
	{"frozen", relayPart, 6, sec, 12 * sec, 3 * sec, freezeRelay, thawRelay},
	{"reloaded with a good file", relayPart, 5, 0, 0, 2 * sec, reloadGood, nil},
	{"reloaded with a bad file", relayPart, 3, 0, 0, 2 * sec, reloadBad, nil},
	{"without descriptors", relayPart, 3, 2 * sec, 8 * sec, 2 * sec, takeFiles, giveFiles},

	{"killed", databasePart, 4, 0, 4 * sec, 8 * sec, killPrimary, startPrimary},
	{"frozen", databasePart, 4, sec, 8 * sec, 5 * sec, freezePrimary, thawPrimary},
	{"standby killed", databasePart, 2, 0, 4 * sec, 5 * sec, killStandby, startStandby},
	{"failed over", databasePart, 4, 10 * sec, 15 * sec, 10 * sec, failOver, rebuildStandby},
	{"on a full disk", databasePart, 3, 2 * sec, 6 * sec, 8 * sec, fillDisk, freeDisk},

	{"killed", hubPart, 5, 0, 2 * sec, 2 * sec, killHub, startHubAgain},
	{"frozen", hubPart, 3, sec, 8 * sec, 2 * sec, freezeHub, thawHub},

	{"set wrong", clockPart, 5, 3 * sec, 20 * sec, sec, stepClock, rightClock},

	{"paused and resumed", adminPart, 2, sec, 4 * sec, 0, pause, resume},
	{"looking", adminPart, 6, 0, 0, sec, look, nil},
	{"replaying", adminPart, 5, 0, 0, 2 * sec, replay, nil},
}

// --- brokers ----------------------------------------------------------------------------------------------

func killBroker(c *chaos, s step)       { c.brokers[s.number].kill(c) }
func startBrokerAgain(c *chaos, s step) { b := c.brokers[s.number]; b.do(c, "start", b.machine.start) }
func freezeBroker(c *chaos, s step)     { c.brokers[s.number].freeze(c) }
func thawBroker(c *chaos, s step)       { c.brokers[s.number].thaw(c) }

// The command starts an Erlang of its own, which takes longer than others should wait.
func alarmBroker(c *chaos, s step) { c.watermark(s.number, "0.000001") }
func endAlarm(c *chaos, s step)    { c.watermark(s.number, "0.6") }

func (c *chaos) watermark(i int, value string) {
	if !c.kinds[i].rabbit() {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		// A broker that was restarted meanwhile has its old value anyhow; one that is down has no alarm.
		_, _ = c.brokers[i].machine.exec(ctx, runScript, "ctl", "set_vm_memory_high_watermark", value)
	}()
}

// --- the network ------------------------------------------------------------------------------------------

func cutWay(c *chaos, s step) { c.ways[s.number].Stop() }

func joinWay(c *chaos, s step) {
	if err := c.ways[s.number].Start(); err != nil {
		c.Errorf("join the way to %s: %v", c.ways[s.number].Name, err)
	}
}

func clearWay(c *chaos, s step) { c.ways[s.number].clear() }

func delayWay(c *chaos, s step) {
	delay := 20 + s.draw(1500)
	for _, direction := range []string{"upstream", "downstream"} {
		attributes := fmt.Sprintf(`{"latency": %d, "jitter": %d}`, delay, delay/2)
		c.ways[s.number].disturb(c, "latency", direction, attributes)
	}
}

func sliceWay(c *chaos, s step) {
	direction := []string{"upstream", "downstream"}[s.draw(2)]
	attributes := fmt.Sprintf(`{"average_size": 1, "delay": %d}`, 10+s.draw(2000))
	c.ways[s.number].disturb(c, "slicer", direction, attributes)
}

func silenceWay(c *chaos, s step) {
	which := s.draw(3)
	for i, direction := range []string{"upstream", "downstream"} {
		if which == i || which == 2 {
			c.ways[s.number].disturb(c, "timeout", direction, `{"timeout": 0}`)
		}
	}
}

func limitWay(c *chaos, s step) {
	direction := []string{"upstream", "downstream"}[s.draw(2)]
	c.ways[s.number].disturb(c, "limit_data", direction, fmt.Sprintf(`{"bytes": %d}`, 1+s.draw(20_000)))
}

// --- relays -----------------------------------------------------------------------------------------------

func killRelay(c *chaos, s step)   { c.relays[s.number].kill(c) }
func endRelay(c *chaos, s step)    { c.signal(s.number, syscall.SIGTERM) }
func freezeRelay(c *chaos, s step) { c.signal(s.number, syscall.SIGSTOP) }
func thawRelay(c *chaos, s step)   { c.signal(s.number, syscall.SIGCONT) }

// launchRelay starts a relay as systemd does, which kills one that does not end.
func launchRelay(c *chaos, s step) {
	r := c.relays[s.number]
	select {
	case <-r.ended:
	case <-time.After(10 * sec):
		r.kill(c)
	}
	c.launch(s.number)
}

// signal sends sig to a relay that runs. One that ended by itself is a failure that ends the run.
func (c *chaos) signal(i int, sig syscall.Signal) {
	select {
	case <-c.relays[i].ended:
		c.Fatalf("relay %d has ended by itself:\n%s", i, c.relays[i].log.tail(30))
	default:
		c.relays[i].signal(c, sig)
	}
}

// started reports whether relay i has started, as far as systemd knows: before that it does not reload it. On
// a busy machine a relay can take longer for that than the schedule leaves it alone.
func (c *chaos) started(i int) bool { return c.relays[i].log.count("ready", nil) > 0 }

func reloadGood(c *chaos, s step) {
	if !c.started(s.number) {
		return
	}
	c.configure(s.number, settings{
		"queue.batch_size":      strconv.Itoa(1 + s.draw(500)),
		"relay.handoff_timeout": []string{"0.2", "0.5", "1"}[s.draw(3)],
		"broker.url_order":      []string{"listed", "random"}[s.draw(2)],
	})
	c.signal(s.number, syscall.SIGHUP)
}

func reloadBad(c *chaos, s step) {
	if !c.started(s.number) {
		return
	}
	bad := []settings{{"queue.batch_size": "many"}, {"broker.urls": "http://nowhere"}, {"queue.store": "memory"}}
	c.configure(s.number, bad[s.draw(len(bad))])
	c.signal(s.number, syscall.SIGHUP)
	go func() { // a relay that is started again must find a good one
		<-time.After(time.Second)
		c.configure(s.number, nil)
	}()
}

// takeFiles leaves a relay with hardly more files than it has open.
func takeFiles(c *chaos, s step) {
	pid := c.relays[s.number].process.Process.Pid
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return // it is not running
	}
	c.limitDescriptors(s.number, len(open)+s.draw(4))
}

func giveFiles(c *chaos, s step) { c.limitDescriptors(s.number, 1024) }

func (c *chaos) limitDescriptors(i, n int) {
	pid := strconv.Itoa(c.relays[i].process.Process.Pid)
	_ = exec.Command("prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d:", n)).Run() // it may not be running
}

// --- databases --------------------------------------------------------------------------------------------

func killPrimary(c *chaos, _ step)   { c.primary.Kill() }
func startPrimary(c *chaos, _ step)  { c.primary.Start(c) }
func freezePrimary(c *chaos, _ step) { c.primary.Signal(syscall.SIGSTOP) }
func thawPrimary(c *chaos, _ step)   { c.primary.Signal(syscall.SIGCONT) }
func killStandby(c *chaos, _ step)   { c.standby.Kill() }
func startStandby(c *chaos, _ step)  { c.standby.Start(c) }

// failOver kills the primary and makes the standby the new one, which has all that was acknowledged.
func failOver(c *chaos, _ step) {
	c.primary.Kill()
	c.primary, c.standby = c.standby, c.primary
	c.primary.Promote(c)
	c.synchronous(c.primary, false) // nothing would be acknowledged
}

// rebuildStandby gives the new primary a standby in the place of the old one, at its address: hubs that are
// not restarted know no other.
func rebuildStandby(c *chaos, _ step) {
	c.standby = c.primary.StandbyInPlaceOf(c, c.standby)
	c.synchronous(c.primary, true)
}

// fillDisk takes what is left on the disk of both databases. A PostgreSQL that cannot write its log ends.
func fillDisk(c *chaos, _ step) { c.fillDatabaseDisk() }

func freeDisk(c *chaos, _ step) {
	_ = os.Remove(filepath.Join(c.disk, "others"))
	for _, db := range []*pgtest.Cluster{c.primary, c.standby} {
		if db.Ended() {
			db.Kill()
			db.Start(c)
		}
	}
}

// --- hubs, clocks -----------------------------------------------------------------------------------------

func killHub(c *chaos, s step)       { c.hubs[s.number].kill() }
func startHubAgain(c *chaos, s step) { c.hubs[s.number].start(c) }
func freezeHub(c *chaos, s step)     { c.hubs[s.number].signal(syscall.SIGSTOP) }
func thawHub(c *chaos, s step)       { c.hubs[s.number].signal(syscall.SIGCONT) }

// stepClock sets a clock wrong by up to ten hours, less than the time that messages may wait.
func stepClock(c *chaos, s step) {
	c.setClock(s.number, time.Duration(s.draw(20*3600)-10*3600)*time.Second)
}

func rightClock(c *chaos, s step) { c.setClock(s.number, 0) }

func (c *chaos) setClock(i int, offset time.Duration) {
	if err := c.clocks[i].set(offset); err != nil {
		c.Errorf("set a clock: %v", err)
	}
}
