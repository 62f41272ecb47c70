package relay

import (
	"context"
	"slices"
	"time"
)

const behindUnknown = "waits for a message before it that a broker may or may not have (preserve_order)"

// tryInOrder is try for all open messages with PreserveOrder: messages that follow each other to the same
// address go together, and the next address has its turn when they are settled, since one link may overtake
// another. What the broker has refused was attempted, and those behind it go on. Where it is not known what
// became of a message, they do not, neither here nor to another broker.
func (b *batch) tryInOrder(ctx context.Context, o candidate, wait time.Duration) {
	until := time.Now().Add(wait)
	most := patientWindow
	if o.probe {
		most = 1 // and no more, unless the broker settles it
	}
	for open := slices.Clone(b.open); len(open) > 0 && ctx.Err() == nil; most = patientWindow {
		n := 1
		for n < min(len(open), most) && b.msgs[open[n]].Address == b.msgs[open[0]].Address {
			n++
		}
		if !b.patient {
			if wait = time.Until(until); wait <= 0 {
				return
			}
		}
		b.try(ctx, o, wait, open[:n])
		for _, i := range open[:n] {
			switch b.last[i].verdict {
			case unsent:
				return
			case unanswered, lost:
				b.halt()
				return
			}
		}
		if open = open[n:]; !o.b.upWith(o.c) {
			return
		}
		o.probe = false
	}
}

// halt ends the run: what is open stands behind a message that may have been sent or not.
func (b *batch) halt() {
	for _, i := range b.open {
		if b.last[i].verdict == unsent {
			b.last[i].reason = behindUnknown
		}
	}
	b.halted = true
}
