package devbroker

import (
	"fmt"

	"koji-relay/internal/devbroker/wire"
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

func (s *session) attach(a wire.Attach) error {
	if s.links[a.Handle] != nil {
		s.end(Cause{"amqp:session:handle-in-use", fmt.Sprintf("attach with handle %d", a.Handle)})
		return nil
	}
	l := &link{s: s, handle: a.Handle, name: a.Name, receives: a.Receiver}
	own := a.Target
	if a.Receiver {
		own = a.Source
	}
	s.c.stall(s.c.b.connBehaviour().StallAt == StageAttach)
	if own == nil {
		return l.refuse(a, RefuseLink, Cause{"amqp:invalid-field",
			"attach without the terminus that the broker provides"})
	}
	switch {
	case own.Dynamic:
		l.target = fmt.Sprintf("queue://dynamic-%d-%d-%d", s.c.id, s.channel, a.Handle)
	case own.Address != nil:
		l.target = *own.Address
	case a.Receiver:
		return l.refuse(a, RefuseLink, Cause{"amqp:invalid-field", "source without an address"})
	default:
		l.anonymous = true
	}
	l.address = parseAddress(l.target)
	behaviour := s.c.b.behaviour(l.address)
	if behaviour.Refuse != NoRefusal {
		return l.refuse(a, behaviour.Refuse, behaviour.RefuseCause)
	}
	s.links[a.Handle] = l
	s.c.b.count(func(st *Stats) { st.Links++ })
	s.c.describeLink(l, own.Capabilities)
	l.accept(a, own, behaviour)
	return nil
}

// accept answers the attach and gives credit, or sends what waits.
func (l *link) accept(a wire.Attach, own *wire.Terminus, behaviour Behaviour) {
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
		l.presettled = a.SndSettleMode == 1
		source, target = l.terminus(wire.CodeSource, own), a.Target.Encode(wire.CodeTarget)
		l.queue = l.s.c.b.subscribe(l.s.c, a, l.address)
		announced = nil
	} else {
		l.deliveryCount = a.InitialDeliveryCount
		source, target = a.Source.Encode(wire.CodeSource), l.terminus(wire.CodeTarget, own)
	}
	list := []any{l.name, l.handle, !l.receives, a.SndSettleMode, uint8(0), source, target, nil, nil, nil,
		announced}
	if l.receives {
		list[9] = uint32(0)
		list[4] = a.RcvSettleMode
	}
	l.s.c.send(l.s.channel, wire.CodeAttach, list, nil)
	if l.receives {
		l.pump()
		return
	}
	l.grant()
}

// terminus is the broker's own source or target in the answer to attach: what the peer asked for, with the
// address that it got.
func (l *link) terminus(code uint64, asked *wire.Terminus) any {
	granted := *asked
	if !l.anonymous {
		granted.Address = &l.target
	}
	return granted.Encode(code)
}

// refuse refuses the link in one of the two ways that brokers have.
func (l *link) refuse(a wire.Attach, how Refusal, cause Cause) error {
	l.s.c.b.count(func(st *Stats) { st.Refused++ })
	if how == RefuseSession {
		l.s.end(cause)
		return nil
	}
	l.gone = true
	l.s.links[l.handle] = l
	list := []any{a.Name, a.Handle, !a.Receiver, a.SndSettleMode, uint8(0), a.Source.Encode(wire.CodeSource),
		a.Target.Encode(wire.CodeTarget)}
	if a.Receiver {
		list[5] = nil
		list = append(list, nil, nil, uint32(0))
	} else {
		list[6] = nil
	}
	l.s.c.send(l.s.channel, wire.CodeAttach, list, nil)
	l.s.c.send(l.s.channel, wire.CodeDetach, []any{l.handle, true, cause.encode()}, nil)
	return nil
}

// detach closes the link from our side; its handle stays taken until the peer answers.
func (l *link) detach(cause Cause) {
	if l.gone {
		return
	}
	l.release(false)
	l.s.c.send(l.s.channel, wire.CodeDetach, []any{l.handle, true, cause.encode()}, nil)
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
func (l *link) flow(f wire.Flow) {
	if l.gone {
		return
	}
	if !l.receives {
		if f.Echo {
			l.s.sendFlow(l)
		}
		return
	}
	if f.LinkCredit != nil {
		seen := uint32(0)
		if f.DeliveryCount != nil {
			seen = *f.DeliveryCount
		}
		l.credit = beyond(*f.LinkCredit, l.deliveryCount-seen)
		l.drain = f.Drain
	}
	l.pump()
	if f.Echo {
		l.s.sendFlow(l)
	}
}

// beyond is what is left of a credit or window when so much was sent since the peer counted: nothing, where
// it was taken back meanwhile.
func beyond(granted, sent uint32) uint32 {
	if sent > granted {
		return 0
	}
	return granted - sent
}
