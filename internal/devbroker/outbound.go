package devbroker

import (
	"fmt"
	"slices"

	"koji-relay/internal/devbroker/wire"
)

// pump sends messages to the peer while it has credit and the session a window. It stops after a while, so
// that one busy queue does not keep the connection from reading.
func (l *link) pump() {
	if !l.receives || l.gone {
		return
	}
	for len(l.s.c.out) < flushAbove {
		if l.sending == nil {
			if l.credit == 0 {
				l.drained()
				return
			}
			m, ok := l.s.c.b.next(l.queue)
			if !ok {
				l.drained()
				return
			}
			l.sending = &outgoing{queued: m, id: l.s.nextDeliveryID}
			l.s.nextDeliveryID++
			l.credit--
			l.deliveryCount++
			if !l.presettled {
				l.unsettled = append(l.unsettled, *l.sending)
			}
		}
		if !l.sendSome() {
			return
		}
	}
	l.s.c.rouse() // there may be more
}

// sendSome sends one frame of the current message. It reports whether the window let it.
func (l *link) sendSome() bool {
	if l.s.outgoingWindow == 0 {
		return false
	}
	const overhead = 64 // more than the head of a frame and a transfer
	o := l.sending
	rest := o.payload[o.sent:]
	n := min(len(rest), int(min(l.s.c.peer.MaxFrameSize, 1<<20))-overhead)
	more := n < len(rest)
	list := []any{l.handle, o.id, fmt.Appendf(nil, "%d", o.id), uint32(0), l.presettled, more}
	l.s.c.send(l.s.channel, wire.CodeTransfer, list, rest[:n])
	l.s.nextOutgoingID++
	l.s.outgoingWindow--
	o.sent += n
	if !more {
		l.sending = nil
	}
	return true
}

// drained tells a peer that asked for all there is that there is no more.
func (l *link) drained() {
	if !l.drain {
		return
	}
	l.deliveryCount += l.credit
	l.credit = 0
	l.s.sendFlow(l)
	l.drain = false
}

// settled takes the receiver's outcomes.
func (l *link) settled(d wire.Disposition) {
	inRange := func(o outgoing) bool { return o.id-d.First <= d.Last-d.First }
	if d.State == 0 && !d.Settled || d.State == wire.CodeReceived {
		return
	}
	for _, o := range slices.Backward(l.unsettled) {
		if inRange(o) && (d.State == wire.CodeReleased || d.State == wire.CodeModified) {
			l.s.c.b.requeue(l.queue, o.queued)
		}
	}
	before := len(l.unsettled)
	l.unsettled = slices.DeleteFunc(l.unsettled, inRange)
	if !d.Settled && len(l.unsettled) < before {
		// The receiver waits for us to settle first (rcv-settle-mode second).
		l.s.c.send(l.s.channel, wire.CodeDisposition,
			[]any{false, d.First, d.Last, true, wire.Described{Descriptor: d.State, Value: []any{}}}, nil)
	}
}
