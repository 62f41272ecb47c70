package relay

import (
	"context"
	"fmt"
	"time"

	"koji-relay/internal/message"
)

// wait returns when the round is complete, which it makes it when the time is over.
func (s *shipment) wait(ctx context.Context, o offer, wait time.Duration, round *round, deliveries []*delivery) {
	end := time.NewTimer(wait)
	defer end.Stop()
	// Patient callers look for silence as early as others: that spares the hub from finding out.
	look := time.NewTicker(max(min(wait, s.r.opts.HandoffTimeout), 1))
	defer look.Stop()
	for {
		select {
		case <-round.done:
			return
		case <-look.C:
			s.r.judgeSilence(o, deliveries, s.patient)
			if s.patient && !(o.c.stalled.Load() && s.r.hasOther(o.b)) {
				continue
			}
			s.giveUp(deliveries, noAnswer)
		case <-end.C:
			s.r.judgeSilence(o, deliveries, s.patient)
			s.giveUp(deliveries, noAnswer)
		case <-ctx.Done():
			s.giveUp(deliveries, "given up by the caller")
		}
		<-round.done
		return
	}
}

const noAnswer = "no answer from the broker"

func (s *shipment) giveUp(deliveries []*delivery, reason string) {
	for _, d := range deliveries {
		d.link.giveUp(d, attempt{verdict: silent, reason: reason})
	}
}

// judgeSilence finds out, when a round has waited long enough, whether it is the broker that does not answer or
// only some of its links. Half of HandoffTimeout is enough: a call may have spent the other half on another broker.
//
// Where nothing but an address waits that others have overtaken, it may be either. On the hub's time it counts as the
// broker's silence, which is soon tried again; to a patient caller, who would wait for send_timeout, as the address's.
func (r *Relay) judgeSilence(o offer, deliveries []*delivery, patient bool) {
	enough := r.opts.HandoffTimeout / 2
	if quiet := o.c.silentFor(!patient); quiet >= enough {
		r.stall(o, quiet)
		return
	}
	// A patient caller does not wait for such a link either: it would hold up the rest.
	seen := map[*link]bool{}
	for _, d := range deliveries {
		l := d.link
		if d.patient && l.overtaken(d, r.opts.HandoffTimeout) {
			l.giveUp(d, attempt{verdict: stuck, reason: "not settled while later messages were"})
			continue
		}
		if standing, known := seen[l]; known && !standing {
			continue
		} else if !known {
			if seen[l] = l.silentFor() >= enough; !seen[l] {
				continue
			}
			o.b.notice(l.address, "standing", "nothing settled while other addresses work")
			l.stall(standsStill)
		}
		l.giveUp(d, standsStill)
	}
}

// stall takes the broker out of use and lets those go that wait for it.
func (r *Relay) stall(o offer, quiet time.Duration) {
	if !o.b.upWith(o.c) {
		return
	}
	// The others first, then the broker, then those who wait for it: in any other order a call that begins
	// meanwhile would wait for another silent broker.
	for _, other := range r.brokers {
		if other != o.b {
			other.doubt(time.Now().Add(-quiet))
		}
	}
	o.b.stall(o.c, fmt.Sprintf("nothing settled for %v: it hangs, or an alarm (memory, disk) makes it block publishers",
		quiet.Round(time.Millisecond)))
	for _, l := range o.c.allLinks() {
		l.stall(attempt{verdict: silent, reason: noAnswer})
	}
}

var standsStill = attempt{verdict: stuck, state: message.Unknown, reason: "the address stands still"}

// hasOther reports whether a broker other than b could be used instead.
func (r *Relay) hasOther(b *broker) bool {
	for _, other := range r.brokers {
		if other != b && other.usable() {
			return true
		}
	}
	return false
}
