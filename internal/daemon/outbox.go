package daemon

import (
	"context"
	"net"
	"strings"
	"time"

	"koji-relay/internal/ingest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// announceEvery is how often the hubs are told which callbacks make messages, in the database.
const announceEvery = time.Minute

// warnOfOldEvents says what the outbox holds from long ago, such as from a trial, before it is published.
func (d *Daemon) warnOfOldEvents(ctx context.Context) {
	if d.outbox == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stats, err := d.store.Stats(ctx)
	if err != nil || !outboxIsOld(stats.Outbox, stats.OutboxOldest) {
		return // why it cannot be read is the reader's to say
	}
	d.log.Warn("the outbox holds old events, which are published now", "events", stats.Outbox, "oldest",
		stats.OutboxOldest.UTC().Format(time.DateTime), "to_drop_them", dropOldEvents)
}

// dropOldEvents is how an administrator drops events of the outbox that nobody needs. Once a relay runs it is
// too late.
const dropOldEvents = "before the start, koji-relay outbox drop --older-than 1h"

// outboxIsOld reports whether the oldest of so many events is older than what a restart or a short outage
// leaves.
func outboxIsOld(events int64, oldest time.Time) bool {
	return events > 0 && time.Since(oldest) > time.Hour
}

// listenPokes takes over the sockets of systemd, or opens one beside the hub's where the outbox is read.
// Without one it is only read less promptly.
func (d *Daemon) listenPokes(hub net.Listener, inherited []net.PacketConn, parts *stops) {
	d.pokes = inherited
	if len(d.pokes) == 0 && !d.opts.Config.ReadsOutbox() {
		return
	}
	if len(d.pokes) == 0 {
		c, err := ingest.ListenPokes(hub.Addr().String())
		if err != nil {
			d.log.Warn("no socket for pokes: the outbox is looked at every interval", "error", err)
			return
		}
		d.pokes = append(d.pokes, c)
	}
	parts.add(part{"poke sockets", time.Second, func(context.Context) error {
		for _, c := range d.pokes {
			c.Close()
		}
		return nil
	}})
}

// serveOutbox listens to the hubs' pokes, and tells the hubs what is wanted of them.
func (d *Daemon) serveOutbox(parts *stops) {
	poke := func() {}
	if d.outbox != nil {
		poke = d.outbox.Poke
		parts.add(startPart("announce", time.Second, d.fatal, d.announce))
	}
	for _, c := range d.pokes {
		go func() {
			if err := ingest.ServePokes(c, poke); err != nil {
				d.log.Warn("pokes are not read any more: the outbox is looked at every interval", "error", err)
			}
		}()
	}
}

// announce registers the reader, and writes into the database which callbacks make messages: at once, after a
// reload and every minute, and soon again where it failed: nothing is held for a reader that is not
// registered. Events that another reader has missed for max_age are given up then.
func (d *Daemon) announce(ctx context.Context) error {
	return d.keepAnnounced(ctx, func() ([]string, error) {
		return d.postgres.Announce(ctx, d.opts.Config.Relay.Name, d.current.events())
	})
}

// keepAnnounced is announce; register gives the other readers.
func (d *Daemon) keepAnnounced(ctx context.Context, register func() (others []string, err error)) error {
	var trouble retry.Trouble
	for ctx.Err() == nil {
		changed, again := d.current.exchanged(), announceEvery
		others, err := register()
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if trouble.FailedBy(root(err)) {
				d.log.Warn("the hub is not told which callbacks make messages, and hands over all", "error",
					oneLine(err))
			}
			again = trouble.Delay()
		default:
			trouble.Recovered(d.log, "the hub is told again which callbacks make messages")
			d.others.Store(&others)
			d.giveUp(ctx, others)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(again):
		}
	}
	return nil
}

// giveUp deletes what another reader has missed for max_age.
func (d *Daemon) giveUp(ctx context.Context, others []string) {
	if len(others) == 0 {
		return
	}
	lost, err := d.postgres.ExpireOutbox(ctx, d.opts.Config.Relay.Name, d.effective.Load().config.Queue.MaxAge)
	for reader, n := range lost {
		d.watch.metrics.OutboxMissed(reader, int(n))
		d.log.Warn("events of the outbox given up: a reader did not take them within max_age", "reader",
			inspect.Reader{Name: reader}.Shown(), "events", n)
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("old events stay in the outbox; tried again in a minute", "error", oneLine(err))
	}
}

// wanted are the patterns of the callbacks that make messages: here, or at another reader of the outbox.
func (d *Daemon) wanted() string {
	mine := d.current.events()
	if others := d.others.Load(); others != nil && len(*others) > 0 {
		return mine + " " + strings.Join(*others, " ")
	}
	return mine
}

// share puts a commit of the socket into the outbox where that has other readers, which know nothing of the
// socket. It reports whether it did.
func (d *Daemon) share(ctx context.Context, c message.Commit) bool {
	if d.postgres == nil || !d.postgres.Shared() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, d.effective.Load().config.Queue.StoreTimeout)
	defer cancel()
	err := d.postgres.AppendOutbox(ctx, c)
	if err != nil {
		d.log.Warn("a commit of the socket does not reach the other readers of the outbox; "+
			"set delivery = outbox in the hub plugin", "commit", c.ID, "events", len(c.Events), "error", oneLine(err))
	}
	return err == nil
}
