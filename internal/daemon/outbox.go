package daemon

import (
	"context"
	"net"
	"time"

	"koji-relay/internal/ingest"
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
const dropOldEvents = "before the start, DELETE FROM koji_relay.outbox WHERE created < now() - interval '1 hour'"

// outboxIsOld reports whether the oldest of so many events is older than what a restart or a short outage
// leaves.
func outboxIsOld(events int64, oldest time.Time) bool {
	return events > 0 && time.Since(oldest) > time.Hour
}

// listenPokes takes over the sockets of systemd, or opens one beside the hub's. Without one the outbox is
// only read less promptly.
func (d *Daemon) listenPokes(hub net.Listener, inherited []net.PacketConn, parts *stops) {
	d.pokes = inherited
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

// announce writes into the database which callbacks make messages: at once, after a reload and every minute.
func (d *Daemon) announce(ctx context.Context) error {
	var trouble retry.Trouble
	for ctx.Err() == nil {
		changed := d.current.exchanged()
		err := d.postgres.Announce(ctx, "", d.current.events())
		switch {
		case ctx.Err() != nil:
		case err != nil && trouble.Failed(root(err)):
			d.log.Warn("the hub is not told which callbacks make messages, and hands over all", "error", oneLine(err))
		case err == nil && trouble.Over():
			d.log.Info("the hub is told again which callbacks make messages")
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(announceEvery):
		}
	}
	return nil
}
