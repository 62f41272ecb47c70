package devbroker

import (
	"fmt"
	"slices"
	"time"
)

// link is one link of a session. The fields of one direction are unused in the other. It belongs to the
// connection's serve goroutine.
type link struct {
	s        *session
	handle   uint32 // the peer's; ours is the same number
	name     string
	target   string // the address as spelled: of the target when the peer sends, else of the source
	address  address
	receives bool // the peer receives
	gone     bool // we detached it, and the peer has not answered yet

	credit        uint32
	deliveryCount uint32
	drain         bool

	// The peer sends.
	anonymous bool // no target address: each message has its own
	withdrawn bool // a fault took the credit back
	maxSize   uint64
	partial   *delivery // the message whose frames are arriving
	held      []delivery

	// The peer receives.
	queue      *queue
	presettled bool
	sending    *outgoing
	unsettled  []outgoing // in order of delivery
}

// delivery is one message from the peer.
type delivery struct {
	id      uint32
	settled bool
	frames  int
	payload []byte
	to      address
	verdict Verdict
}

// outgoing is one message to the peer.
type outgoing struct {
	queued
	id   uint32
	sent int // bytes of the payload
}

func (s *session) attach(a attach) error {
	if s.links[a.handle] != nil {
		s.end(Cause{"amqp:session:handle-in-use", fmt.Sprintf("attach with handle %d", a.handle)})
		return nil
	}
	l := &link{s: s, handle: a.handle, name: a.name, receives: a.receiver}
	own := a.target
	if a.receiver {
		own = a.source
	}
	s.c.stall(s.c.b.connBehaviour().StallAt == StageAttach)
	if own == nil {
		return l.refuse(a, RefuseLink, Cause{"amqp:invalid-field", "attach without the terminus that the broker provides"})
	}
	switch {
	case own.dynamic:
		l.target = fmt.Sprintf("queue://dynamic-%d-%d-%d", s.c.id, s.channel, a.handle)
	case own.address != nil:
		l.target = *own.address
	case a.receiver:
		return l.refuse(a, RefuseLink, Cause{"amqp:invalid-field", "source without an address"})
	default:
		l.anonymous = true
	}
	l.address = parseAddress(l.target)
	behaviour := s.c.b.behaviour(l.address)
	if behaviour.Refuse != NoRefusal {
		return l.refuse(a, behaviour.Refuse, behaviour.RefuseCause)
	}
	s.links[a.handle] = l
	s.c.b.count(func(st *Stats) { st.Links++ })
	s.c.describeLink(l, own.capabilities)
	l.accept(a, own, behaviour)
	return nil
}

// accept answers the attach and gives credit, or sends what waits.
func (l *link) accept(a attach, own *terminus, behaviour Behaviour) {
	l.maxSize = l.s.c.b.opts.MaxMessageSize
	if behaviour.MaxMessageSize > 0 {
		l.maxSize = behaviour.MaxMessageSize
	}
	var announced any
	if l.maxSize > 0 {
		announced = l.maxSize
	} else {
		l.maxSize = defaultMaxMessage
	}
	var source, target any
	if l.receives {
		l.presettled = a.sndSettleMode == 1
		source, target = l.terminus(codeSource, own), a.target.encode(codeTarget)
		l.queue = l.s.c.b.subscribe(l.s.c, a, l.address)
		announced = nil
	} else {
		l.deliveryCount = a.initialDeliveryCount
		source, target = a.source.encode(codeSource), l.terminus(codeTarget, own)
	}
	list := []any{l.name, l.handle, !l.receives, a.sndSettleMode, uint8(0), source, target, nil, nil, nil, announced}
	if l.receives {
		list[9] = uint32(0)
		list[4] = a.rcvSettleMode
	}
	l.s.c.send(l.s.channel, codeAttach, list, nil)
	if l.receives {
		l.pump()
		return
	}
	l.grant()
}

// terminus is the broker's own source or target in the answer to attach: what the peer asked for, with the
// address that it got.
func (l *link) terminus(code uint64, asked *terminus) any {
	granted := *asked
	if !l.anonymous {
		granted.address = &l.target
	}
	return granted.encode(code)
}

// encode gives the terminus as the broker understood it; filters and the like, which it does not support, are
// left out, which tells the peer so.
func (t *terminus) encode(code uint64) any {
	if t == nil {
		return nil
	}
	var addr, expiry, capabilities any
	if t.address != nil {
		addr = *t.address
	}
	if t.expiry != "" {
		expiry = t.expiry
	}
	if len(t.capabilities) > 0 {
		capabilities = t.capabilities
	}
	list := []any{addr, t.durable, expiry, nil, t.dynamic}
	if code == codeSource {
		return described{code, append(list, nil, nil, nil, nil, nil, capabilities)}
	}
	return described{code, append(list, nil, capabilities)}
}

// refuse refuses the link in one of the two ways that brokers have.
func (l *link) refuse(a attach, how Refusal, cause Cause) error {
	l.s.c.b.count(func(st *Stats) { st.Refused++ })
	if how == RefuseSession {
		l.s.end(cause)
		return nil
	}
	l.gone = true
	l.s.links[l.handle] = l
	list := []any{a.name, a.handle, !a.receiver, a.sndSettleMode, uint8(0), a.source.encode(codeSource), a.target.encode(codeTarget)}
	if a.receiver {
		list[5] = nil
		list = append(list, nil, nil, uint32(0))
	} else {
		list[6] = nil
	}
	l.s.c.send(l.s.channel, codeAttach, list, nil)
	l.s.c.send(l.s.channel, codeDetach, []any{l.handle, true, cause.encode()}, nil)
	return nil
}

// detach closes the link from our side; its handle stays taken until the peer answers.
func (l *link) detach(cause Cause) {
	if l.gone {
		return
	}
	l.release(false)
	l.s.c.send(l.s.channel, codeDetach, []any{l.handle, true, cause.encode()}, nil)
}

// release lets go of what the link holds. forget: the peer closed it for good.
func (l *link) release(forget bool) {
	if l.gone {
		return
	}
	l.gone = true
	l.partial, l.held = nil, nil
	l.s.c.undescribeLink(l)
	if l.queue == nil {
		return
	}
	var back []queued
	for _, o := range l.unsettled {
		back = append(back, o.queued)
	}
	if l.sending != nil && (len(l.unsettled) == 0 || l.unsettled[len(l.unsettled)-1].id != l.sending.id) {
		back = append(back, l.sending.queued)
	}
	l.unsettled, l.sending = nil, nil
	l.s.c.b.unsubscribe(l.s.c, l.queue, back, forget)
}

// fail makes a fault happen to the link.
func (l *link) fail(fault Fault, cause Cause) {
	switch fault {
	case NoFault:
	case DetachLink:
		l.detach(cause)
	case EndSession:
		l.s.end(cause)
	case WithdrawCredit:
		l.withdrawn = true
		l.grant()
	default:
		l.s.c.fail(fault, cause)
	}
}

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
	if behaviour.NoCredit || l.withdrawn {
		want = 0
	}
	if want != 0 && l.credit > want/2 && l.credit <= want || l.credit == want {
		return
	}
	l.credit = want
	l.s.sendFlow(l)
}

// transfer takes one frame of a message from the peer.
func (l *link) transfer(t transfer) error {
	if l.gone {
		return nil
	}
	d := l.partial
	if d == nil {
		if t.deliveryID == nil {
			return malformed("first transfer of a message without delivery-id")
		}
		d = &delivery{id: *t.deliveryID}
		l.partial = d
	}
	if t.aborted {
		l.partial = nil
		return nil
	}
	d.frames++
	d.settled = d.settled || t.settled
	if uint64(len(d.payload)+len(t.payload)) > l.maxSize {
		l.detach(Cause{"amqp:link:message-size-exceeded", fmt.Sprintf("message of more than %d bytes", l.maxSize)})
		return nil
	}
	if d.payload == nil && !t.more {
		d.payload = t.payload // the frame's own memory: no copy for messages of one frame
	} else {
		d.payload = append(d.payload, t.payload...)
	}
	if t.more {
		behaviour := l.s.c.b.behaviour(l.address)
		if behaviour.AtFrame > 0 && d.frames == behaviour.AtFrame {
			l.fail(behaviour.Fault, behaviour.Cause)
		}
		return nil
	}
	l.partial = nil
	l.deliveryCount++
	if l.credit > 0 {
		l.credit-- // a message may be on its way when credit is withdrawn
	}
	l.complete(d)
	return nil
}

// complete decides about a whole message.
func (l *link) complete(d *delivery) {
	id, to := bareProperties(d.payload)
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
	if v.Taken || v.Outcome == Accept && v.When == AtOnce && (v.Fault == NoFault || v.Fault == WithdrawCredit) {
		l.take(d)
	}
	r.Verdict = *v
	l.s.c.b.record(r)
	switch {
	case v.Fault != NoFault && v.Fault != WithdrawCredit:
		l.fail(v.Fault, v.Cause)
		return
	case v.When == Held:
		l.held = append(l.held, *d)
	case v.When == AtOnce && v.Delay > 0:
		l.settleLater(*d)
	case v.When == AtOnce:
		l.settle(*d)
	}
	l.fail(v.Fault, v.Cause) // no fault, or the credit
	l.grant()
}

// take routes the message; what the queues say may change the verdict.
func (l *link) take(d *delivery) {
	switch l.s.c.b.route(d.to, d.payload) {
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
	state := described{uint64(codeAccepted), []any{}}
	switch v.Outcome {
	case Reject:
		state = described{uint64(codeRejected), []any{v.Cause.encode()}}
	case Release:
		state = described{uint64(codeReleased), []any{}}
	case Modify:
		state = described{uint64(codeModified), []any{v.DeliveryFailed, v.UndeliverableHere}}
	}
	l.s.c.send(l.s.channel, codeDisposition, []any{true, d.id, nil, true, state}, nil)
}

func (l *link) settleHeld() {
	held := l.held
	l.held = nil
	for _, d := range held {
		if d.verdict.Outcome == Accept && !d.verdict.Taken {
			l.take(&d)
		}
		l.settle(d)
	}
}

// settleLater settles after the verdict's delay. The timer's goroutine only posts, and a connection that is
// gone by then drops what is posted.
func (l *link) settleLater(d delivery) {
	time.AfterFunc(d.verdict.Delay, func() {
		l.s.c.post(func() { l.settle(d) })
	})
}

// flow takes a receiver's credit, or answers a sender's question.
func (l *link) flow(f flow) {
	if l.gone {
		return
	}
	if !l.receives {
		if f.echo {
			l.s.sendFlow(l)
		}
		return
	}
	if f.linkCredit != nil {
		seen := uint32(0)
		if f.deliveryCount != nil {
			seen = *f.deliveryCount
		}
		l.credit = seen + *f.linkCredit - l.deliveryCount
		if int32(l.credit) < 0 {
			l.credit = 0 // credit was taken back while messages were on their way
		}
		l.drain = f.drain
	}
	l.pump()
	if f.echo {
		l.s.sendFlow(l)
	}
}

// pump sends messages to the peer while it has credit and the session a window. It stops after a while, so that
// one busy queue does not keep the connection from reading.
func (l *link) pump() {
	if !l.receives || l.gone {
		return
	}
	for len(l.s.c.out) < flushAbove {
		if l.sending == nil {
			if l.credit == 0 {
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
	if l.s.outgoingWindow == 0 || int32(l.s.outgoingWindow) < 0 {
		return false
	}
	const overhead = 64 // more than the head of a frame and a transfer
	o := l.sending
	rest := o.payload[o.sent:]
	n := min(len(rest), int(min(l.s.c.peer.maxFrameSize, 1<<20))-overhead)
	more := n < len(rest)
	list := []any{l.handle, o.id, fmt.Appendf(nil, "%d", o.id), uint32(0), l.presettled, more}
	l.s.c.send(l.s.channel, codeTransfer, list, rest[:n])
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
func (l *link) settled(d disposition) {
	inRange := func(o outgoing) bool { return o.id-d.first <= d.last-d.first }
	if d.state == 0 && !d.settled || d.state == codeReceived {
		return
	}
	for _, o := range slices.Backward(l.unsettled) {
		if inRange(o) && (d.state == codeReleased || d.state == codeModified) {
			l.s.c.b.requeue(l.queue, o.queued)
		}
	}
	before := len(l.unsettled)
	l.unsettled = slices.DeleteFunc(l.unsettled, inRange)
	if !d.settled && len(l.unsettled) < before {
		// The receiver waits for us to settle first (rcv-settle-mode second).
		l.s.c.send(l.s.channel, codeDisposition, []any{false, d.first, d.last, true, described{d.state, []any{}}}, nil)
	}
}

// describe functions keep what Broker.Connections shows.

func (c *conn) describe() (ConnInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := c.info
	info.Links = slices.Clone(info.Links)
	return info, info.ID != 0
}

func (c *conn) describeLogin(mechanism, user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Mechanism, c.info.User = mechanism, user
}

func (c *conn) describeOpen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.ID, c.info.Container, c.info.Hostname = c.id, c.peer.containerID, c.peer.hostname
}

func (c *conn) describeLink(l *link, capabilities symbols) {
	info := LinkInfo{Name: l.name, Address: l.target, Sender: !l.receives}
	for _, s := range capabilities {
		info.Capabilities = append(info.Capabilities, string(s))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Links = append(c.info.Links, info)
}

func (c *conn) undescribeLink(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info.Links = slices.DeleteFunc(c.info.Links, func(i LinkInfo) bool {
		return i.Name == l.name && i.Sender == !l.receives
	})
}
