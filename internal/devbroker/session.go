package devbroker

import (
	"fmt"
	"net"
	"slices"
	"time"

	"koji-relay/internal/devbroker/wire"
)

// session is one session of a connection. It belongs to the connection's serve goroutine.
type session struct {
	c       *conn
	channel uint16
	ended   bool // end was sent: everything but the peer's end is ignored

	nextIncomingID uint32 // of the peer's next transfer frame
	incomingWindow uint32 // frames that the peer may still send
	nextOutgoingID uint32
	outgoingWindow uint32 // frames that the peer has room for
	nextDeliveryID uint32
	links          map[uint32]*link
}

// serial numbers: the id of our first transfer frame. Any value will do; a low one is easy to read in traces.
const firstOutgoingID = 1

func (c *conn) begin(channel uint16, p wire.Described) error {
	if uint32(channel) >= c.b.opts.MaxSessions || c.sessions[channel] != nil {
		return c.closeWith(Cause{"amqp:not-allowed", fmt.Sprintf("begin on channel %d", channel)})
	}
	if time.Since(c.ended[channel]) < c.b.opts.SlowEnd {
		return nil
	}
	b, err := wire.DecodeBegin(p.Value)
	if err != nil {
		return err
	}
	s := &session{
		c: c, channel: channel,
		nextIncomingID: b.NextOutgoingID, incomingWindow: c.b.opts.IncomingWindow,
		nextOutgoingID: firstOutgoingID, outgoingWindow: b.IncomingWindow,
		links: map[uint32]*link{},
	}
	if c.b.shutWindows() {
		s.incomingWindow = 0
	}
	c.sessions[channel] = s
	c.b.count(func(st *Stats) { st.Sessions++ })
	c.stall(c.b.connBehaviour().StallAt == StageBegin)
	c.send(channel, wire.CodeBegin, []any{
		channel, s.nextOutgoingID, s.incomingWindow, uint32(1<<31 - 1), c.b.opts.MaxLinks - 1,
	}, nil)
	return nil
}

func (s *session) handle(p wire.Described, payload []byte) error {
	if p.Code() == wire.CodeEnd {
		s.abandon()
		delete(s.c.sessions, s.channel)
		if !s.ended {
			s.sendEnd(nil)
		}
		return nil
	}
	if s.ended {
		return nil
	}
	switch p.Code() {
	case wire.CodeAttach:
		a, err := wire.DecodeAttach(p.Value)
		if err != nil {
			return err
		}
		if a.Handle >= s.c.b.opts.MaxLinks {
			return s.c.closeWith(Cause{"amqp:connection:framing-error", fmt.Sprintf("handle %d", a.Handle)})
		}
		return s.attach(a)
	case wire.CodeFlow:
		f, err := wire.DecodeFlow(p.Value)
		if err != nil {
			return err
		}
		return s.flow(f)
	case wire.CodeTransfer:
		t, err := wire.DecodeTransfer(p.Value, payload)
		if err != nil {
			return err
		}
		return s.transfer(t)
	case wire.CodeDisposition:
		d, err := wire.DecodeDisposition(p.Value)
		if err != nil {
			return err
		}
		s.disposition(d)
		return nil
	case wire.CodeDetach:
		d, err := wire.DecodeDetach(p.Value)
		if err != nil {
			return err
		}
		s.detached(d)
		return nil
	}
	return wire.Malformed("unknown performative 0x%x", p.Code())
}

// end ends the session from our side.
func (s *session) end(cause Cause) {
	if s.ended {
		return
	}
	s.ended = true
	s.abandon()
	s.sendEnd([]any{cause.encode()})
}

func (s *session) sendEnd(fields []any) {
	s.c.ended[s.channel] = time.Now()
	s.c.send(s.channel, wire.CodeEnd, fields, nil)
}

// abandon lets go of all links without a word: the session or the connection is over.
func (s *session) abandon() {
	for _, l := range s.ordered() {
		l.release(false)
	}
	s.links = map[uint32]*link{}
}

// ordered gives the links by handle, so that what happens to several happens in the same order each time.
func (s *session) ordered() []*link {
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	slices.SortFunc(links, func(a, b *link) int { return int(a.handle) - int(b.handle) })
	return links
}

func (s *session) flow(f wire.Flow) error {
	next := uint32(firstOutgoingID)
	if f.NextIncomingID != nil {
		next = *f.NextIncomingID
	}
	s.outgoingWindow = beyond(f.IncomingWindow, s.nextOutgoingID-next)
	if f.Handle != nil {
		l := s.links[*f.Handle]
		if l == nil {
			s.end(Cause{"amqp:session:unattached-handle", fmt.Sprintf("flow for handle %d", *f.Handle)})
			return nil
		}
		l.flow(f)
	} else if f.Echo {
		s.sendFlow(nil)
	}
	s.c.pump()
	return nil
}

// sendFlow sends the session's state, and the link's where there is one.
func (s *session) sendFlow(l *link) {
	list := []any{s.nextIncomingID, s.incomingWindow, s.nextOutgoingID, uint32(1<<31 - 1)}
	if l != nil {
		list = append(list, l.handle, l.deliveryCount, l.credit, nil, l.drain)
	}
	s.c.send(s.channel, wire.CodeFlow, list, nil)
}

func (s *session) transfer(t wire.Transfer) error {
	if s.incomingWindow == 0 {
		s.end(Cause{"amqp:session:window-violation", "transfer beyond the session window"})
		return nil
	}
	s.nextIncomingID++
	s.incomingWindow--
	if s.incomingWindow <= s.c.b.opts.IncomingWindow/2 && !s.c.b.shutWindows() {
		s.incomingWindow = s.c.b.opts.IncomingWindow
		s.sendFlow(nil)
	}
	l := s.links[t.Handle]
	if l == nil || l.receives {
		s.end(Cause{"amqp:session:unattached-handle", fmt.Sprintf("transfer for handle %d", t.Handle)})
		return nil
	}
	return l.transfer(t)
}

func (s *session) disposition(d wire.Disposition) {
	s.c.b.count(func(st *Stats) { st.Dispositions++ })
	if !d.Receiver {
		return // the peer settles what it sent and we settled before: nothing is left to do
	}
	for _, l := range s.ordered() {
		if l.receives {
			l.settled(d)
		}
	}
	s.c.pump()
}

func (s *session) detached(d wire.Detach) {
	l := s.links[d.Handle]
	if l == nil {
		return
	}
	delete(s.links, d.Handle)
	if l.gone {
		return // the answer to our own detach
	}
	l.release(d.Closed)
	s.c.send(s.channel, wire.CodeDetach, []any{d.Handle, d.Closed}, nil)
}

// reviseWindows brings the window of each session in line with what the broker was told.
func (c *conn) reviseWindows() {
	for _, s := range c.sessions {
		s.incomingWindow = c.b.opts.IncomingWindow
		if c.b.shutWindows() {
			s.incomingWindow = 0
		}
		s.sendFlow(nil)
	}
}

// settleHeld tells the outcomes that a script held back.
func (c *conn) settleHeld() {
	c.eachLink(func(l *link) { l.settleHeld() })
}

// reviseCredit brings the credit of every sender that the pattern covers in line with the scripts.
func (c *conn) reviseCredit(pattern string) {
	c.eachLink(func(l *link) {
		if l.address.matches(pattern) {
			l.withdrawn = false
			l.grant()
		}
	})
}

// pump sends what queues have for this connection's receivers.
func (c *conn) pump() {
	c.eachLink(func(l *link) { l.pump() })
}

func (c *conn) eachLink(f func(*link)) {
	if c.closing {
		return
	}
	for _, s := range c.sessions {
		for _, l := range s.ordered() {
			if !l.gone && !s.ended {
				f(l)
			}
		}
	}
}

// inflict makes a fault happen on this connection's matching links; see Broker.Inflict.
func (c *conn) inflict(pattern string, fault Fault, cause Cause) {
	var hit []*link
	c.eachLink(func(l *link) {
		if pattern == "" || l.address.matches(pattern) {
			hit = append(hit, l)
		}
	})
	switch fault {
	case DetachLink, EndSession, WithdrawCredit:
		for _, l := range hit {
			l.fail(fault, cause)
		}
	default:
		if pattern == "" || len(hit) > 0 {
			c.fail(fault, cause)
		}
	}
}

// fail makes a fault of the whole connection happen.
func (c *conn) fail(fault Fault, cause Cause) {
	switch fault {
	case DropConnection:
		c.kill(true)
	case CloseConnection:
		c.closeWith(cause)
	case FreezeConnection:
		c.flush() // what was said before the frost was said; its error comes again
		c.gate.shut()
	case StopReading:
		c.reading.shut()
	case HalfClose:
		c.flush()
		c.muted = true
		if t, ok := c.tcp.(*net.TCPConn); ok {
			t.CloseWrite() // its error would be that the connection is gone
		}
	case KillBroker:
		c.b.kill()
	}
}
