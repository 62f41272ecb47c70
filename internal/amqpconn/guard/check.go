package guard

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"koji-relay/internal/amqpconn/frame"
)

// next looks at the frame that comes, and has it passed on or drops it.
func (g *Guard) next() error {
	head, err := g.in.Peek(8)
	if err != nil {
		return err
	}
	if !g.header {
		g.header, g.pass = true, 8
		return nil
	}
	size := binary.BigEndian.Uint32(head)
	if size > MaxFrame {
		return refuse("a frame of %d bytes, though we announced %d at most", size, MaxFrame)
	}
	// The driver knows no extended header, and nobody sends one.
	if offset := 4 * int(head[4]); size < 8 || offset != 8 {
		return refuse("a frame of %d bytes with its body at %d", size, offset)
	}
	number := binary.BigEndian.Uint16(head[6:8])
	if size == 8 {
		g.pass = 8
		return nil
	}
	// All of it but transfers is small. Of a transfer nothing but its kind matters.
	head, err = g.in.Peek(int(min(size, 16)))
	if err != nil {
		return err
	}
	transfer := len(head) > 10 && head[8] == 0 && head[9] == 0x53 && head[10] == frame.Transfer
	if !transfer {
		if head, err = g.in.Peek(int(size)); err != nil {
			return err
		}
	}
	pass, err := g.check(number, head[8:], transfer)
	switch {
	case err != nil:
		return err
	case pass:
		g.pass = int(size)
	default:
		_, err = g.in.Discard(int(size))
	}
	return err
}

// check says whether the driver may see a frame of the peer.
func (g *Guard) check(number uint16, body []byte, transfer bool) (pass bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.writing {
		if g.behind++; g.behind > maxBehind {
			return false, refuse("%d frames while it does not read ours", g.behind)
		}
	}
	if transfer {
		if c := g.incoming[number]; c != nil {
			c.arriving = min(c.arriving+allowanceEach, maxAllowance)
		}
		return true, nil
	}
	p, err := frame.Parse(body)
	if err == nil {
		pass = true
		switch p.Code {
		case frame.Open:
			err = g.opened(p)
		case frame.Begin:
			err = g.beginning(number, p)
		case frame.Flow:
			err = g.flow(g.incoming[number], p)
		case frame.Disposition:
			pass, err = g.disposition(g.incoming[number], p)
		case frame.End:
			delete(g.incoming, number)
			g.windowsChanged()
			g.ended = time.Now()
		}
	}
	if errors.Is(err, frame.ErrMalformed) {
		return false, refuse("%v", err)
	}
	return pass, err
}

// opened keeps the limits of an open frame.
func (g *Guard) opened(p frame.Performative) error {
	if err := p.Skip(2); err != nil {
		return err
	}
	size, err := p.Number(frame.Unlimited)
	if err != nil {
		return err
	}
	channels, err := p.Number(math.MaxUint16)
	if err != nil {
		return err
	}
	if size < minFrame {
		return refuse("max-frame-size %d is below %d", size, minFrame)
	}
	g.limits = Limits{MaxFrame: size, Sessions: channels + 1}
	return nil
}

// beginning keeps the limits of a begin frame.
func (g *Guard) beginning(number uint16, p frame.Performative) error {
	ours, err := p.Number(frame.Unlimited)
	if err != nil {
		return err
	}
	c := g.channels[uint16(ours)]
	if ours > math.MaxUint16 || c == nil {
		return refuse("begin for a session that we did not begin")
	}
	if err := p.Skip(1); err != nil {
		return err
	}
	window, err := p.Number(frame.Unlimited)
	if err != nil {
		return err
	}
	if err := p.Skip(1); err != nil {
		return err
	}
	if c.links, err = p.Number(frame.Unlimited); err != nil {
		return err
	}
	if c.links != frame.Unlimited {
		c.links++ // it is the highest handle, and they begin at 0
	}
	g.incoming[number], g.begun = c, c
	c.shut = window == 0
	g.windowsChanged()
	return nil
}

// flow refuses one that the driver would crash on, and those that cost memory by asking for answers.
func (g *Guard) flow(c *channel, p frame.Performative) error {
	if err := p.Skip(1); err != nil {
		return err
	}
	window, err := p.Number(frame.Unlimited)
	if err != nil {
		return err
	}
	if c != nil {
		g.window(c, window)
	}
	if err := p.Skip(2); err != nil {
		return err
	}
	handle, err := p.Next()
	if err != nil {
		return err
	}
	if err := p.Skip(1); err != nil {
		return err
	}
	credit, err := p.Next()
	if err != nil {
		return err
	}
	if !frame.IsNull(handle) && frame.IsNull(credit) {
		return refuse("flow for a link without link-credit")
	}
	if err := p.Skip(2); err != nil {
		return err
	}
	echo, err := p.Flag()
	if err != nil {
		return err
	}
	if echo {
		if g.echoes++; g.echoes > maxEchoes {
			return refuse("%d flow frames that want an answer", g.echoes)
		}
	}
	return nil
}

// disposition bounds the range of one, which the driver walks number by number, and drops one that ends
// nothing.
func (g *Guard) disposition(c *channel, p frame.Performative) (pass bool, err error) {
	if c == nil {
		return true, nil // the driver ends the connection
	}
	receiver, err := p.Flag()
	if err != nil {
		return false, err
	}
	first, err := p.Number(0)
	if err != nil {
		return false, err
	}
	last, err := p.Number(first)
	if err != nil {
		return false, err
	}
	settled, err := p.Flag()
	if err != nil {
		return false, err
	}
	state, err := p.Next()
	if err != nil {
		return false, err
	}
	if receiver && !settled && !isOutcome(state) {
		return false, nil
	}
	allowed := &c.arriving
	if receiver {
		allowed = &c.outgoing
	}
	named := uint64(last) - uint64(first) + 1
	switch {
	case last < first || last == math.MaxUint32:
		return false, refuse("disposition for deliveries %d to %d", first, last)
	case receiver && last >= c.sent:
		return false, refuse("disposition for deliveries %d to %d, and %d were sent", first, last, c.sent)
	case named > uint64(*allowed), receiver && !settled && named > maxConfirm:
		return false, refuse("disposition for deliveries %d to %d, more than can be outstanding", first, last)
	}
	*allowed -= uint32(named)
	return true, nil
}

// isOutcome reports whether an encoded delivery state ends a delivery (messaging, section 3.4). The others
// tell how far the peer has come.
func isOutcome(state []byte) bool {
	p, err := frame.Parse(state)
	return err == nil && p.Code >= frame.Accepted && p.Code <= frame.Modified
}
