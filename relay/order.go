package relay

import (
	"context"
	"slices"
	"time"
)

const behindDoubt = "waits for a message before it, of which it is not known what became (preserve_order)"

// visitInOrder is visit for all open messages with PreserveOrder: messages that follow each other to the same address go
// together, and the next address has its turn when they are settled, since one link may overtake another. What the
// broker has refused was attempted, and those behind it go on. Where it is not known what became of a message, they
// do not, neither here nor to another broker.
func (s *shipment) visitInOrder(ctx context.Context, o offer, wait time.Duration) {
	until := time.Now().Add(wait)
	most := patientWindow
	if o.trial {
		most = 1 // and no more, unless the broker settles it
	}
	for open := slices.Clone(s.open); len(open) > 0 && ctx.Err() == nil; most = patientWindow {
		n := 1
		for n < min(len(open), most) && s.msgs[open[n]].Address == s.msgs[open[0]].Address {
			n++
		}
		if !s.patient {
			if wait = time.Until(until); wait <= 0 {
				return
			}
		}
		s.visit(ctx, o, wait, open[:n])
		for _, i := range open[:n] {
			switch s.last[i].verdict {
			case unsent:
				return
			case silent, lost:
				s.halt()
				return
			}
		}
		if open = open[n:]; !o.b.upWith(o.c) {
			return
		}
		o.trial = false
	}
}

// halt ends the tour: what is open stands behind a message that may have been sent or not.
func (s *shipment) halt() {
	for _, i := range s.open {
		if s.last[i].verdict == unsent {
			s.last[i].reason = behindDoubt
		}
	}
	s.halted = true
}
