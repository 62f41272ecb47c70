package devbroker

import "fmt"

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
	overrun   bool // the peer sent without credit
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
		l.credit = beyond(*f.linkCredit, l.deliveryCount-seen)
		l.drain = f.drain
	}
	l.pump()
	if f.echo {
		l.s.sendFlow(l)
	}
}

// beyond is what is left of a credit or window when so much was sent since the peer counted: nothing, where it
// was taken back meanwhile.
func beyond(granted, sent uint32) uint32 {
	if sent > granted {
		return 0
	}
	return granted - sent
}
