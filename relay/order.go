package relay

import (
	"context"
	"slices"
	"time"
)

const behindUnknown = "waits for a message before it that a broker may or may not have (preserve_order)"

// orderPatience is how long the drain waits for an address that stands still with PreserveOrder: as long as a
// cluster may need to elect the leader of a queue.
const orderPatience = 5 * time.Second

// patience is how long an address may settle nothing, while others do, before its messages are set aside.
// Half of HandoffTimeout is what the hub can wait. With PreserveOrder what is set aside is overtaken, so that
// a patient caller waits longer.
func (o *Options) patience(patient bool) time.Duration {
	enough := o.HandoffTimeout / 2
	if patient && o.PreserveOrder {
		return max(enough, min(orderPatience, o.SendTimeout/2))
	}
	return enough
}

// tryInOrder is try for all open messages with PreserveOrder. What the broker has refused was attempted, and
// those behind it go on. Where it is not known what became of a message, they do not, neither here nor to
// another broker.
func (b *batch) tryInOrder(ctx context.Context, o candidate, wait time.Duration) {
	until := time.Now().Add(wait)
	open := slices.Clone(b.open)
	if o.probe {
		b.try(ctx, o, wait, open[:1]) // and no more, unless the broker settles it
		if open = open[1:]; b.halted || !o.b.upWith(o.c) {
			b.halt()
			return
		}
		o.probe = false
		if !b.patient {
			wait = time.Until(until)
		}
	}
	if wait > 0 {
		b.try(ctx, o, wait, open)
	}
	b.halt()
}

// halt gives what is open behind a message that may have been sent or not its reason.
func (b *batch) halt() {
	if !b.halted {
		return
	}
	for _, i := range b.open {
		if b.last[i].verdict == unsent {
			b.last[i].reason = behindUnknown
		}
	}
}
