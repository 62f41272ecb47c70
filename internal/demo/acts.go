package demo

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/inspect"
)

func (d *demo) introduce() {
	s := d.screen
	s.line(s.paint(bold, "koji-relay demo") +
		": one hub, one relay, two brokers, one subscriber. It takes 20 seconds or so.")
	s.line("")
	s.say("   hub         stands in for Koji: %s of a real hub, over %s",
		inspect.Count(len(d.hub.commits), "commit"), d.site.path(socketFile))
	s.say("   relay       as koji-relay serve; its log is %s", d.site.path(relayLog))
	s.say("   broker 1    amqp://%s, the preferred one", d.site.brokers[0].Addr())
	s.say("   broker 2    amqp://%s", d.site.brokers[1].Addr())
	s.say("   subscriber  koji-relay tail --json, process %d", d.viewer.pid())
}

// play runs the acts. Its error is the first thing that did not go as told, a loss not included.
func (d *demo) play(ctx context.Context) error {
	if err := d.ready(ctx); err != nil {
		return err
	}
	d.table = &table{
		screen: d.screen, account: d.account, brokers: d.site.brokers, up: [2]bool{true, true},
		start: time.Now(), last: time.Now(),
	}
	acts := []struct {
		title, text string
		play        func(context.Context) error
	}{
		{"All is well", "The hub hands over commit after commit; broker 1 takes their messages.", d.allIsWell},
		{"Broker 1 is killed", "Commits go on coming; the relay turns to broker 2 at once.", d.firstDies},
		{"Broker 2 is killed as well", "No broker is left. The hub still gets its answers, and the queue fills.",
			d.bothAreDead},
		{"Broker 2 is back", "The queue drains while new commits go straight through.", d.secondReturns},
		{"Broker 1 is back", "The relay returns to the broker that it prefers.", d.firstReturns},
	}
	for i, act := range acts {
		d.screen.act(i+1, act.title, act.text)
		if i == 0 {
			d.table.head()
		}
		if err := act.play(ctx); err != nil {
			return err
		}
		d.table.row()
	}
	return nil
}

// ready polls until the relay and the subscriber are connected.
func (d *demo) ready(ctx context.Context) error {
	for deadline := time.Now().Add(patience); !d.connected(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("the relay and the subscriber are not connected after %s", patience)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (d *demo) connected() bool {
	for _, b := range d.site.brokers {
		subscribed := slices.ContainsFunc(b.Connections(), func(c devbroker.ConnInfo) bool {
			return c.User == viewerName && len(c.Links) > 0
		})
		if !subscribed {
			return false
		}
	}
	return slices.ContainsFunc(d.site.brokers[0].Connections(), func(c devbroker.ConnInfo) bool {
		return c.User != viewerName
	})
}

func (d *demo) allIsWell(ctx context.Context) error { return d.handOver(ctx, 30) }

func (d *demo) firstDies(ctx context.Context) error {
	if err := d.handOver(ctx, 15); err != nil {
		return err
	}
	d.kill(0)
	return d.handOver(ctx, 30)
}

func (d *demo) bothAreDead(ctx context.Context) error {
	d.kill(1)
	return d.handOver(ctx, 40)
}

func (d *demo) secondReturns(ctx context.Context) error {
	if err := d.revive(1); err != nil {
		return err
	}
	if err := d.handOver(ctx, 15); err != nil {
		return err
	}
	// What broker 1 took and had not delivered when it was killed is on its disk, not in the relay's queue.
	return d.account.waitFor(ctx, d.site.brokers[0].Pending, d.opts.quiet, d.table.tick)
}

// firstReturns goes on until broker 1 takes everything again. That the relay takes its time is no failure: it
// looks after a dead broker every ten seconds.
func (d *demo) firstReturns(ctx context.Context) error {
	if err := d.revive(0); err != nil {
		return err
	}
	first, second := d.site.brokers[0], d.site.brokers[1]
	for start := time.Now(); time.Since(start) < patience; {
		one, two := first.Stats().Messages, second.Stats().Messages
		if err := d.handOver(ctx, 10); err != nil {
			return err
		}
		if first.Stats().Messages > one && second.Stats().Messages == two {
			return nil
		}
	}
	d.screen.event(yellow, fmt.Sprintf("the relay has not returned in %s; its log may say why", patience))
	return nil
}

func (d *demo) kill(i int) {
	d.site.brokers[i].Stop()
	d.table.up[i] = false
	d.screen.event(red, fmt.Sprintf("broker %d is killed", i+1))
}

func (d *demo) revive(i int) error {
	if err := d.site.brokers[i].Start(); err != nil {
		return fmt.Errorf("start broker %d again: %w", i+1, err)
	}
	d.table.up[i] = true
	d.screen.event(green, fmt.Sprintf("broker %d is started", i+1))
	return nil
}

// handOver hands over so many commits, with a busy hub's pauses: some come at once, some after a while.
func (d *demo) handOver(ctx context.Context, commits int) error {
	for i := range commits {
		if err := d.hub.handOver(ctx); err != nil {
			return err
		}
		d.table.tick()
		pause := d.opts.Pause * time.Duration([]int{0, 2, 1, 1}[i%4])
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// conclude waits for what is on its way and prints the account. Anything lost is ErrReported.
func (d *demo) conclude(ctx context.Context) error {
	if err := d.account.waitFor(ctx, none, d.opts.quiet, d.table.tick); err != nil {
		return err
	}
	b := d.account.balance()
	s := d.screen
	verdict := s.paint(green, "Nothing was lost.")
	colour := ""
	if len(b.lost) > 0 {
		verdict, colour = s.paint(red, "Messages were lost."), red
	}
	s.line("")
	s.line(s.paint(bold, "The account") + ", by message-id")
	s.say("   handed over  %7d messages in %s", b.handedOver, inspect.Count(b.commits, "commit"))
	if b.again > 0 {
		s.say("   not taken    %7d times, and handed over again", b.again)
	}
	s.say("   received     %7d", b.received)
	s.say("   duplicates   %7d", b.duplicates)
	s.line(s.paint(colour, fmt.Sprintf("   lost         %7d", len(b.lost))))
	for _, id := range b.lost[:min(len(b.lost), 5)] {
		s.say("                        %s", id)
	}
	if b.strangers > 0 {
		s.say("   unexpected   %7d, handed over by nobody", b.strangers)
	}
	s.say("   hand-over    %7s ms p50, %s ms p99", millis(percentile(b.took, 50)),
		millis(percentile(b.took, 99)))
	s.line("")
	s.line(verdict)
	if len(b.lost) > 0 || b.strangers > 0 {
		return ErrReported
	}
	return nil
}

// keep leaves everything running, the hub included, and says what to try, until ctx ends.
func (d *demo) keep(ctx context.Context) {
	s := d.screen
	s.line("")
	s.line(s.paint(bold, "Still running") +
		"; the hub goes on with a commit every other second. In a second terminal:")
	s.line("")
	s.say("   status page: http://%s/", d.site.page)
	s.say("   %s queue status --config %s", d.opts.Program, d.site.path(relayConfig))
	s.say("   %s tail --config %s", d.opts.Program, d.site.path(relayConfig))
	if err := os.WriteFile(d.site.path(commitFile), []byte(tagCommit), 0o600); err == nil {
		s.say("   curl --unix-socket %s http://hub/v1/commits --data @%s", d.site.path(socketFile),
			d.site.path(commitFile))
	}
	s.say("   less +F %s", d.site.path(relayLog))
	s.line("")
	s.line("   Ctrl-C ends it.")
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
		if err := d.hub.handOver(ctx); err != nil && ctx.Err() == nil {
			s.event(red, err.Error())
		}
	}
}

// commitFile is a file with a commit to post by hand, and tagCommit what is in it.
const (
	commitFile = "commit.json"
	tagCommit  = `{"commit": "7f3c0000-0000-4000-8000-000000000001", "events": [{
 "callback": "postTag", "kwargs": {"tag": {"name": "f42"},
 "build": {"name": "bash", "version": "5.2", "release": "1"}, "user": {"name": "you"}}}]}
`
)
