// Package guard stands between the AMQP driver and the socket, since the driver trusts its peer. It promises
// that a peer costs bounded memory and time whatever it sends, and tells what the peer allows. It never
// changes what a message says.
package guard

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"koji-relay/internal/amqpconn/frame"
)

const (
	// MaxFrame is the max-frame-size that we announce, and the most that the guard keeps of one connection.
	MaxFrame = 64 << 10
	// minFrame is the least that a peer may announce (transport, section 2.4.1).
	minFrame = 512
	// lastDelivery is the highest delivery-id that is used: the driver does not know that they go round.
	lastDelivery = math.MaxUint32 - 1<<20
	// maxBehind is how many frames a peer may send while it does not read ours. It may settle all that it has
	// of us.
	maxBehind = 100_000
	// maxEchoes is how many answers to a flow frame a peer may wait for.
	maxEchoes = 1000
	// A peer settles each delivery once, most of them in ranges. Some name deliveries in a range that are
	// settled already. So each delivery allows for several namings, and some are allowed from the beginning.
	firstAllowance, maxAllowance, allowanceEach = 1 << 16, 1 << 20, 8
	// maxConfirm bounds a range that is not settled: the driver answers each delivery of it with the whole
	// range.
	maxConfirm = 1024
)

// Guard stands between the driver and the socket. It sees every frame, both ways, before the driver acts on
// it, since the driver trusts its peer (upstream 8, 9, 10, 11, 12, 15 and 16):
//
//	socket --> guard: refuses, drops, remembers --> driver
//	socket <-- guard: counts, puts properties in order <-- driver
//
// A frame that is refused ends the connection. Nothing of a peer costs more than MaxFrame bytes before it is
// checked, and what the driver then does with it is bounded.
type Guard struct {
	net.Conn
	in     *bufio.Reader
	out    *writer
	header bool // the protocol header has passed
	pass   int  // bytes of the frame at hand that the driver has not read yet
	// windows receives when Shut may have changed. 1: signals that nobody reads are merged.
	windows chan struct{}

	mu       sync.Mutex // guards what follows
	err      error      // how reading ended
	limits   Limits
	begun    *channel            // the session that the peer answered last
	ended    time.Time           // when the peer ended one last, or agreed to its end
	channels map[uint16]*channel // by our number
	incoming map[uint16]*channel // by the peer's number
	writing  bool
	behind   int                 // frames read while one write is under way
	echoes   int                 // answers that the peer waits for
	awaited  map[uint64]Delivery // by tag
	sorter   sorter
}

// Limits are what a peer allows on a connection.
type Limits struct {
	MaxFrame uint32 // bytes
	Sessions uint32
}

// channel is one session as the guard sees it.
type channel struct {
	links    uint32 // that the peer allows
	sent     uint32 // deliveries, which are numbered from 0
	outgoing uint32 // allowance for the peer's answers to those
	arriving uint32 // allowance for what the peer says of its own deliveries
	shut     bool   // the peer takes no frame of a message: its window is 0
}

// New puts a guard around a socket on which the SASL layer is done.
func New(nc net.Conn) *Guard {
	return &Guard{
		Conn: nc, in: bufio.NewReaderSize(nc, MaxFrame), out: newWriter(nc),
		channels: map[uint16]*channel{}, incoming: map[uint16]*channel{}, awaited: map[uint64]Delivery{},
		windows: make(chan struct{}, 1),
	}
}

// RefusedError says what a peer did that no connection survives.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the broker broke the protocol: " + e.Reason }

func refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }

// Read hands on what is checked. One goroutine at a time calls it.
func (g *Guard) Read(p []byte) (int, error) {
	n, err := g.read(p)
	if err != nil {
		g.mu.Lock()
		if g.err == nil {
			g.err = err
		}
		g.mu.Unlock()
	}
	return n, err
}

func (g *Guard) read(p []byte) (int, error) {
	for g.pass == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	n, err := g.in.Read(p[:min(len(p), g.pass)])
	g.pass -= n
	return n, err
}

// ReadError is how reading ended, which the driver's error does not let one ask.
func (g *Guard) ReadError() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Allowed are the limits of the open frame.
func (g *Guard) Allowed() Limits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limits
}

// Links is how many links the peer allows in the session that it answered last.
func (g *Guard) Links() uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.begun == nil {
		return frame.Unlimited
	}
	return g.begun.links
}

// Shut reports whether the peer takes no messages: the window of each of its sessions is 0.
func (g *Guard) Shut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.incoming {
		if !c.shut {
			return false
		}
	}
	return len(g.incoming) > 0
}

// Windows receives when Shut may have changed.
func (g *Guard) Windows() <-chan struct{} { return g.windows }

// window keeps what the peer says of the window of a session. g.mu is held.
func (g *Guard) window(c *channel, frames uint32) {
	if c.shut != (frames == 0) {
		c.shut = frames == 0
		g.windowsChanged()
	}
}

func (g *Guard) windowsChanged() {
	select {
	case g.windows <- struct{}{}:
	default:
	}
}

// SessionEnded is when a session ended last; zero without one.
func (g *Guard) SessionEnded() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ended
}

// Delivery is what the guard is told of one that the driver is about to send.
type Delivery struct {
	Keys []string // the order of its properties
	More bool     // another one follows at once: it may wait a little, and go together with that
}

// Await tells of the delivery with this tag, until Forget.
func (g *Guard) Await(tag uint64, d Delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.awaited[tag] = d
}

// Forget ends what Await began.
func (g *Guard) Forget(tag uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.awaited, tag)
}

// Refused is the refusal that ended reading; nil without one.
func (g *Guard) Refused() error {
	var refused *RefusedError
	if errors.As(g.ReadError(), &refused) {
		return refused
	}
	return nil
}

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

// WriteOn has frames written on goroutines that spawn makes, where it reports true. Call it before anything
// is written.
func (g *Guard) WriteOn(spawn func(func()) bool) { g.out.spawn = spawn }

// WriteError is how writing ended; nil while it works.
func (g *Guard) WriteError() error { return g.out.failure() }

// Write looks at what the driver sends: it writes whole frames. Transfers may still be on their way to the
// socket when it returns; nothing overtakes them. One goroutine at a time calls it.
func (g *Guard) Write(b []byte) (int, error) {
	how, err := g.sending(b)
	if err != nil {
		return 0, err
	}
	err = g.out.write(b, how)
	g.mu.Lock()
	g.writing, g.behind = false, 0
	g.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (g *Guard) sending(b []byte) (manner, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writing = true
	if len(b) <= 10 || b[8] != 0 {
		return through, nil // a header, or a heartbeat
	}
	number := binary.BigEndian.Uint16(b[6:8])
	switch b[10] {
	case frame.Begin:
		g.channels[number] = &channel{outgoing: firstAllowance, arriving: firstAllowance}
	case frame.Flow:
		g.echoes = max(g.echoes-1, 0)
	case frame.Transfer:
		return g.transferring(g.channels[number], b[8:])
	}
	return through, nil
}

// transferring counts deliveries, and puts the properties of a message in order.
func (g *Guard) transferring(c *channel, body []byte) (manner, error) {
	p, err := frame.Parse(body)
	if err != nil || c == nil {
		return soon, err
	}
	if err := p.Skip(1); err != nil {
		return soon, err
	}
	id, err := p.Next()
	if err != nil || frame.IsNull(id) {
		return soon, err // not the first frame of its message
	}
	n, err := frame.Number(id, 0)
	if err != nil {
		return soon, err
	}
	if c.sent = n + 1; c.sent > lastDelivery {
		return soon, errors.New("the numbers for deliveries are used up")
	}
	c.outgoing = min(c.outgoing+allowanceEach, maxAllowance)
	tag, err := p.Next()
	if err != nil {
		return soon, err
	}
	if len(tag) != 2+8 { // it is not one of ours
		return soon, nil
	}
	d, ours := g.awaited[binary.BigEndian.Uint64(tag[2:])]
	if !ours {
		return soon, nil
	}
	if len(d.Keys) > 1 {
		size, err := frame.Size(body)
		if err != nil {
			return soon, err
		}
		g.sorter.orderProperties(body[size:], d.Keys)
	}
	if d.More {
		return held, nil
	}
	return soon, nil
}
