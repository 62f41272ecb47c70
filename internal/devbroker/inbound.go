package devbroker

import (
	"fmt"
	"time"

	"koji-relay/internal/devbroker/wire"
)

// grant brings a sender's credit to what it should be: tops it up when half of it is used, takes it back when
// a script says so.
func (l *link) grant() {
	if l.receives || l.gone {
		return
	}
	behaviour := l.s.c.b.behaviour(l.address)
	want := l.s.c.b.opts.Credit
	if behaviour.Credit > 0 {
		want = behaviour.Credit
	}
	want = beyond(want, uint32(len(l.held))) // what is held costs memory
	if behaviour.NoCredit || l.withdrawn {
		want = 0
	}
	if !l.overrun && (want != 0 && l.credit > want/2 && l.credit <= want || l.credit == want) {
		return
	}
	l.overrun = false
	l.credit = want
	l.s.sendFlow(l)
}

// transfer takes one frame of a message from the peer.
func (l *link) transfer(t wire.Transfer) error {
	if l.gone {
		return nil
	}
	d := l.partial
	if d == nil {
		if t.DeliveryID == nil {
			return wire.Malformed("first transfer of a message without delivery-id")
		}
		d = &delivery{id: *t.DeliveryID}
		l.partial = d
	}
	if t.Aborted {
		l.partial = nil
		return nil
	}
	d.frames++
	d.settled = d.settled || t.Settled
	if uint64(len(d.payload)+len(t.Payload)) > l.maxSize {
		l.detach(Cause{"amqp:link:message-size-exceeded", fmt.Sprintf("message of more than %d bytes", l.maxSize)})
		return nil
	}
	if d.payload == nil && !t.More {
		d.payload = t.Payload // the frame's own memory: no copy for messages of one frame
	} else {
		d.payload = append(d.payload, t.Payload...)
	}
	if t.More {
		behaviour := l.s.c.b.behaviour(l.address)
		if behaviour.AtFrame > 0 && d.frames == behaviour.AtFrame {
			l.fail(behaviour.Fault, behaviour.Cause)
		}
		return nil
	}
	l.partial = nil
	l.deliveryCount++
	if l.credit > 0 {
		l.credit--
	} else {
		// On its way when credit was withdrawn. The sender is told again: go-amqp 1.7 computes its credit without
		// looking below zero, and believes it has four billion.
		l.overrun = true
	}
	l.complete(d)
	return nil
}

// complete decides about a whole message.
func (l *link) complete(d *delivery) {
	id, to := wire.BareProperties(d.payload)
	r := Received{
		Conn: l.s.c.id, Link: l.name, Target: l.target, ID: id,
		Settled: d.settled, Payload: d.payload,
	}
	d.to = l.address
	if l.anonymous {
		r.Target = to
		d.to = parseAddress(to)
	}
	r.Key = d.to.key
	d.verdict = l.s.c.b.judge(d.to, r)
	v := &d.verdict
	if v.Taken || !v.Lost && v.Outcome == Accept && v.When == AtOnce &&
		(v.Fault == NoFault || v.Fault == WithdrawCredit) {
		l.take(d)
	}
	r.Verdict = *v
	l.s.c.b.record(r)
	if v.Say != nil {
		for _, p := range v.Say(d.id) {
			l.s.c.send(l.s.channel, p.Code, p.List, nil)
		}
	}
	l.fail(v.Fault, v.Cause)
	switch {
	case v.Fault != NoFault && v.Fault != WithdrawCredit:
		return
	case v.When == Held:
		l.held = append(l.held, *d)
	case v.When == AtOnce && v.Delay > 0:
		l.settleLater(*d)
	case v.When == AtOnce:
		l.settle(*d)
	}
	l.grant()
}

// take routes the message; what the queues say may change the verdict.
func (l *link) take(d *delivery) {
	payload := d.payload
	if l.s.c.b.opts.FillTo && l.target != "" {
		payload = wire.FillTo(payload, l.target)
	}
	switch l.s.c.b.route(d.to, payload) {
	case unrouted:
		if l.s.c.b.opts.ReleaseUnrouted {
			d.verdict.Outcome = Release
		}
	case overflow:
		d.verdict.Outcome = Reject
		d.verdict.Cause = Cause{"amqp:resource-limit-exceeded", "queue is full"}
	}
}

// settle tells the sender the outcome.
func (l *link) settle(d delivery) {
	if d.settled || l.gone {
		return
	}
	v := d.verdict
	state := wire.Described{Descriptor: uint64(wire.CodeAccepted), Value: []any{}}
	switch v.Outcome {
	case Reject:
		state = wire.Described{Descriptor: uint64(wire.CodeRejected), Value: []any{v.Cause.encode()}}
	case Release:
		state = wire.Described{Descriptor: uint64(wire.CodeReleased), Value: []any{}}
	case Modify:
		state = wire.Described{Descriptor: uint64(wire.CodeModified),
			Value: []any{v.DeliveryFailed, v.UndeliverableHere}}
	}
	l.s.c.send(l.s.channel, wire.CodeDisposition, []any{true, d.id, nil, true, state}, nil)
}

func (l *link) settleHeld() {
	held := l.held
	l.held = nil
	for _, d := range held {
		if d.verdict.Outcome == Accept && !d.verdict.Taken && !d.verdict.Lost {
			l.take(&d)
		}
		l.settle(d)
	}
	l.grant()
}

// settleLater settles after the verdict's delay. The timer's goroutine only posts, and a connection that is
// gone by then drops what is posted.
func (l *link) settleLater(d delivery) {
	time.AfterFunc(d.verdict.Delay, func() {
		l.s.c.post(func() { l.settle(d) })
	})
}
