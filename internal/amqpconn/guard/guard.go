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
