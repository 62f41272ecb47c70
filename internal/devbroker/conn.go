package devbroker

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"koji-relay/internal/devbroker/wire"
)

// handshakeTimeout bounds TLS and SASL; writeTimeout one write to a peer that does not read. Frozen time
// counts in neither: a frozen connection is not in a system call.
const (
	handshakeTimeout = 10 * time.Second
	writeTimeout     = 30 * time.Second
	lingerTimeout    = 5 * time.Second // for the peer's answer to our close
)

// conn is one connection. Two goroutines serve it:
//
//	read:  socket -> frames
//	serve: frames, posted calls, queues that have work, heartbeats -> sessions and links -> socket
//
// All protocol state belongs to serve; whatever comes from outside is posted to it.
type conn struct {
	b      *Broker
	id     int
	nc     net.Conn // the TLS connection where there is TLS
	tcp    net.Conn
	in     *bufio.Reader
	frames chan wire.Frame
	wake   chan struct{}
	done   chan struct{} // closed by kill
	once   sync.Once

	gate    gate // shut by FreezeConnection and stalls
	reading gate // shut by StopReading

	writing sync.Mutex // held across one write, so that Freeze can wait for it to end

	// mu guards the next two.
	mu     sync.Mutex
	posted []func()
	info   ConnInfo

	// The rest belongs to serve.
	peer     wire.Open
	user     string // authenticated; empty for ANONYMOUS
	out      []byte // frames not written yet
	muted    bool   // after HalfClose: what would be written is thrown away
	closing  bool   // close was sent: everything but close is ignored
	sessions map[uint16]*session
	ended    map[uint16]time.Time // when we sent the end of a session
	lastSent time.Time
}

func newConn(b *Broker, tcp net.Conn) *conn {
	c := &conn{
		b: b, nc: tcp, tcp: tcp,
		// Room for the frames of a pipelining sender, so that the socket is read while one is handled.
		frames:   make(chan wire.Frame, 64),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		sessions: map[uint16]*session{}, ended: map[uint16]time.Time{},
	}
	if b.opts.TLSConfig != nil {
		c.nc = tls.Server(tcp, b.opts.TLSConfig)
	}
	c.in = bufio.NewReaderSize(gatedReader{c}, 64<<10)
	c.info = ConnInfo{Remote: tcp.RemoteAddr()}
	return c
}

// gatedReader reads from the socket while the connection is not frozen. Bytes that arrive in a Read that was
// under way when the gate shut are held back until it opens.
type gatedReader struct{ c *conn }

func (r gatedReader) Read(p []byte) (int, error) {
	if err := r.c.pass(&r.c.reading); err != nil {
		return 0, err
	}
	n, err := r.c.nc.Read(p)
	if killed := r.c.pass(&r.c.reading); killed != nil {
		return 0, killed
	}
	return n, err
}

// pass blocks while the connection or the broker is frozen, or one of the other gates is shut. It fails when
// the connection is killed.
func (c *conn) pass(others ...*gate) error {
	for _, g := range append(others, &c.gate, &c.b.gate) {
		opened := g.opened()
		if opened == nil {
			continue
		}
		select {
		case <-opened:
		case <-c.done:
			return net.ErrClosed
		}
		return c.pass(others...) // another may have shut meanwhile
	}
	return nil
}

// kill closes the socket, with a reset when abrupt, and ends the goroutines. May be called by anyone, twice.
func (c *conn) kill(abrupt bool) {
	c.once.Do(func() {
		close(c.done)
		if t, ok := c.tcp.(*net.TCPConn); ok && abrupt {
			t.SetLinger(0) // its error would be that the socket is closed already
			t.Close()
			return
		}
		c.nc.SetWriteDeadline(time.Now().Add(time.Second)) // for TLS's good-bye
		c.nc.Close()
	})
}

// stall freezes the connection when the script says so; the next read or write waits.
func (c *conn) stall(now bool) {
	if now {
		c.gate.shut()
	}
}

// post has serve call f soon. It never blocks.
func (c *conn) post(f func()) {
	c.mu.Lock()
	c.posted = append(c.posted, f)
	c.mu.Unlock()
	c.rouse()
}

// rouse makes serve look at posted calls and queues. It never blocks.
func (c *conn) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *conn) takePosted() []func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	fs := c.posted
	c.posted = nil
	return fs
}

// write sends bytes at once, after waiting for a frozen connection to thaw.
func (c *conn) write(p []byte) error {
	for {
		if err := c.pass(); err != nil {
			return err
		}
		c.writing.Lock()
		if c.gate.opened() == nil && c.b.gate.opened() == nil {
			break
		}
		c.writing.Unlock()
	}
	defer c.writing.Unlock()
	if c.muted {
		return nil
	}
	c.lastSent = time.Now()
	c.nc.SetWriteDeadline(c.lastSent.Add(writeTimeout))
	_, err := c.nc.Write(p)
	return err
}

// awaitWrite returns when no write is under way.
func (c *conn) awaitWrite() {
	c.writing.Lock()
	defer c.writing.Unlock()
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.write(c.out)
	c.out = c.out[:0]
	if cap(c.out) > 1<<20 {
		c.out = nil
	}
	return err
}

// send queues one frame; serve flushes.
func (c *conn) send(channel uint16, code uint64, list []any, payload []byte) {
	c.out = wire.AppendFrame(c.out, wire.FrameAMQP, channel, code, list, payload)
}

func (c *conn) readHeader() (string, error) {
	var header [8]byte
	_, err := io.ReadFull(c.in, header[:])
	return string(header[:]), err
}

// serve is the connection's life.
func (c *conn) serve() {
	defer c.b.forget(c)
	defer c.kill(false)
	err := c.greet()
	if err == nil {
		var reader sync.WaitGroup
		reader.Go(c.read)
		err = c.loop()
		c.kill(false)
		reader.Wait()
	}
	for _, s := range c.sessions {
		s.abandon()
	}
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		c.b.opts.Logger.Debug("connection ended", "conn", c.id, "error", err)
	}
}

// greet does TLS, SASL and the exchange of open.
func (c *conn) greet() error {
	script := c.b.connBehaviour()
	c.stall(script.StallAt == StageAccept)
	if err := c.pass(); err != nil {
		return err
	}
	c.nc.SetReadDeadline(time.Now().Add(handshakeTimeout))
	if t, ok := c.nc.(*tls.Conn); ok {
		if err := t.Handshake(); err != nil {
			return fmt.Errorf("shake hands for TLS: %w", err)
		}
	}
	limit := c.b.opts.MaxFrameSize
	if err := c.negotiate(limit); err != nil {
		return fmt.Errorf("negotiate: %w", err)
	}
	f, err := wire.ReadFrame(c.in, limit)
	if err != nil {
		return err
	}
	p, _, err := f.Performative()
	if err == nil && p.Code() != wire.CodeOpen {
		err = wire.Malformed("performative 0x%x where open is due", p.Code())
	}
	if err == nil {
		c.peer, err = wire.DecodeOpen(p.Value)
	}
	if err == nil && c.peer.MaxFrameSize < wire.MinFrameSize {
		err = wire.Malformed("max-frame-size %d", c.peer.MaxFrameSize)
	}
	if err != nil {
		c.peer.MaxFrameSize = wire.MinFrameSize
		c.sendOpen()
		return errors.Join(err, c.closeWith(Cause{"amqp:decode-error", err.Error()}), c.flush())
	}
	c.nc.SetReadDeadline(time.Time{})
	c.stall(script.StallAt == StageOpen)
	c.sendOpen()
	c.describeOpen()
	c.b.count(func(s *Stats) { s.Opened++ })
	if script.RefuseOpen != (Cause{}) {
		c.closeWith(script.RefuseOpen)
	}
	return c.flush()
}

func (c *conn) sendOpen() {
	o := c.b.opts
	var idle any
	if o.IdleTimeout > 0 {
		idle = uint32(o.IdleTimeout.Milliseconds())
	}
	var properties wire.Pairs
	for _, p := range [][2]string{{"product", o.Product}, {"version", o.Version},
		{"topic-prefix", o.TopicPrefix}} {
		if p[1] != "" {
			properties = append(properties, wire.Symbol(p[0]), p[1])
		}
	}
	c.send(0, wire.CodeOpen, []any{
		o.ContainerID, nil, o.MaxFrameSize, uint16(o.MaxSessions - 1), idle, nil, nil,
		wire.Symbols{"ANONYMOUS-RELAY"}, nil, properties,
	}, nil)
}

// read feeds frames to serve until the socket fails or the connection is killed.
func (c *conn) read() {
	defer close(c.frames)
	for {
		if idle := c.b.opts.IdleTimeout; idle > 0 {
			c.nc.SetReadDeadline(time.Now().Add(2 * idle))
		}
		f, err := wire.ReadFrame(c.in, c.b.opts.MaxFrameSize)
		var bad *wire.Error
		if errors.As(err, &bad) {
			c.post(func() { c.closeWith(Cause{"amqp:connection:framing-error", bad.Error()}) })
		}
		if err != nil {
			return
		}
		select {
		case c.frames <- f:
		case <-c.done:
			return
		}
	}
}

// loop handles one thing at a time and writes when there is nothing more to handle.
func (c *conn) loop() error {
	var beat <-chan time.Time
	half := time.Duration(c.peer.IdleTimeout) * time.Millisecond / 2
	if half > 0 {
		ticker := time.NewTicker(max(half/2, time.Millisecond))
		defer ticker.Stop()
		beat = ticker.C
	}
	for {
		var err error
		frames := c.frames
		if c.reading.opened() != nil {
			frames = nil // what was read ahead waits, too
		}
		select {
		case f, more := <-frames:
			if !more {
				// Calls posted by read (a framing error) still have something to say.
				c.runPosted()
				return errors.Join(io.EOF, c.flush())
			}
			if err = c.pass(); err == nil {
				err = c.handle(f)
			}
		case <-c.wake:
			c.runPosted()
			c.pump()
		case now := <-beat:
			if now.Sub(c.lastSent) >= half/2 {
				err = c.write(wire.Heartbeat)
			}
		case <-c.done:
			return net.ErrClosed
		}
		if err == nil && (len(frames) == 0 || len(c.out) > flushAbove) {
			err = c.flush()
		}
		if err != nil {
			return err
		}
	}
}

const flushAbove = 64 << 10

func (c *conn) runPosted() {
	for _, f := range c.takePosted() {
		f()
	}
}

// closeWith sends close with the cause. The peer has a while to answer with its own close.
func (c *conn) closeWith(cause Cause) error {
	if c.closing {
		return nil
	}
	c.closing = true
	c.send(0, wire.CodeClose, []any{cause.encode()}, nil)
	c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
	return nil
}

// handle deals with one frame. An error ends the connection; what the peer did wrong is answered with close
// and is no error here.
func (c *conn) handle(f wire.Frame) error {
	if len(f.Body) == 0 {
		c.b.count(func(s *Stats) { s.Heartbeats++ })
		return nil
	}
	if f.Kind != wire.FrameAMQP {
		return c.closeWith(Cause{"amqp:connection:framing-error", fmt.Sprintf("frame of type %d", f.Kind)})
	}
	p, payload, err := f.Performative()
	if err == nil {
		err = c.dispatch(f.Channel, p, payload)
	}
	var bad *wire.Error
	if errors.As(err, &bad) {
		return c.closeWith(Cause{"amqp:decode-error", bad.Error()})
	}
	return err
}

func (c *conn) dispatch(channel uint16, p wire.Described, payload []byte) error {
	switch {
	case p.Code() == wire.CodeClose:
		err := c.closeWith(Cause{})
		return errors.Join(io.EOF, err, c.flush())
	case c.closing:
		return nil
	case p.Code() == wire.CodeBegin:
		return c.begin(channel, p)
	}
	s := c.sessions[channel]
	if s == nil {
		return c.closeWith(Cause{"amqp:not-allowed", fmt.Sprintf("performative 0x%x on channel %d without a "+
			"session", p.Code(), channel)})
	}
	return s.handle(p, payload)
}
