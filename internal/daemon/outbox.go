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
