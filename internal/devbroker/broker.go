// Package devbroker is a small AMQP 1.0 broker in memory: the bus of the demo, and the scripted peer of
// tests.
//
// It promises to speak the protocol as AMQP 1.0 specifies it to any client, to pass messages on byte for byte
// (it decodes performatives, and of a message only message-id and to), to misbehave exactly as it is told to
// (Script, ScriptConnections, Inflict, Freeze, Stop), and to remember what it received. It never writes to
// disk, never expires or dead-letters a message, has no transactions, selectors or link recovery, and is not
// meant for production.
//
// Like net/http/httptest.Server, a Broker runs goroutines of its own from Start until Stop or Close, which
// wait for all of them. Its methods may be called concurrently.
package devbroker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"koji-relay/internal/devbroker/wire"
)

// Options configure a Broker. The zero value is a broker on a free loopback port that lets anyone in.
type Options struct {
	// Addr is the TCP address, default 127.0.0.1:0. A port 0 is chosen at the first Start and kept.
	Addr string
	// TLSConfig turns TLS on. With ClientAuth set, EXTERNAL can be offered.
	TLSConfig *tls.Config
	// Mechanisms are offered in this order; default PLAIN, ANONYMOUS. AllowBare also lets clients in that
	// send no SASL at all.
	Mechanisms []string
	AllowBare  bool
	// Users are the passwords for PLAIN; nil lets every name and password in.
	Users map[string]string

	// Product, Version and TopicPrefix are announced in the open frame where not empty, so that a client
	// can tell brokers apart.
	Product, Version, TopicPrefix string
	// ContainerID of the broker, default "devbroker".
	ContainerID string

	MaxFrameSize   uint32 // announced; default 65536, at least 512
	MaxMessageSize uint64 // announced at attach and enforced; 0 = not announced, 128 MiB enforced
	Credit         uint32 // for each sending link, default 500
	IncomingWindow uint32 // session window in frames, default 2048
	ShutWindow     bool   // what ShutWindows does, from the beginning
	// SlowEnd is how long the end of a session takes: a begin with its number in that time is lost, as in
	// RabbitMQ before 4.1.3.
	SlowEnd     time.Duration
	MaxLinks    uint32        // of a session, default 1024
	MaxSessions uint32        // of a connection, default 256
	IdleTimeout time.Duration // announced and enforced at twice the value; 0 = none

	// Queues are named queues and the routing keys (patterns) bound to them. A queue that a link names
	// without being listed here is made on first use.
	Queues map[string][]string
	// DurableUsers are users whose subscriptions survive their connections whatever their clients ask for, one
	// for each source address: what an administrator configures on a real broker. Others get that for a
	// source that asks for it, keyed by container-id and link name.
	DurableUsers []string
	// ReleaseUnrouted releases messages that no queue wants, as RabbitMQ 4 does; otherwise they are
	// accepted and gone.
	ReleaseUnrouted bool
	// FillTo puts the address that a message was sent to into its property "to", where that is empty, as
	// ActiveMQ does. Nothing else of the message changes.
	FillTo bool
	// MaxQueueBytes bounds each queue, default 64 MiB; above it a message is rejected with
	// amqp:resource-limit-exceeded. MaxRecordBytes bounds what Received remembers, default 64 MiB;
	// negative = remember nothing.
	MaxQueueBytes  int
	MaxRecordBytes int

	// Logger gets debug messages, default none. Neither bodies nor passwords are logged.
	Logger *slog.Logger
}

const defaultMaxMessage = 128 << 20

func (o *Options) setDefaults() error {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if o.Mechanisms == nil {
		o.Mechanisms = []string{mechPlain, mechAnonymous}
	}
	if o.ContainerID == "" {
		o.ContainerID = "devbroker"
	}
	if o.MaxFrameSize == 0 {
		o.MaxFrameSize = 64 << 10
	}
	if o.MaxFrameSize < wire.MinFrameSize {
		return fmt.Errorf("max frame size %d: AMQP needs at least %d", o.MaxFrameSize, wire.MinFrameSize)
	}
	if o.Credit == 0 {
		o.Credit = 500
	}
	if o.IncomingWindow == 0 {
		o.IncomingWindow = 2048
	}
	if o.MaxLinks == 0 {
		o.MaxLinks = 1024
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 256
	}
	if o.MaxQueueBytes == 0 {
		o.MaxQueueBytes = 64 << 20
	}
	if o.MaxRecordBytes == 0 {
		o.MaxRecordBytes = 64 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Broker is the broker. Make one with New.
type Broker struct {
	opts Options
	wg   sync.WaitGroup // goroutines of the listener and the connections
	gate gate           // shut by Freeze

	// mu guards the rest. It is never held across I/O, and no connection's lock is taken under it.
	mu          sync.Mutex
	addr        string // host:port once known
	listener    net.Listener
	closed      bool
	conns       map[*conn]struct{}
	windowsShut bool
	queues      map[string]*queue
	serial      int // of temporary queues
	scripts     []*script
	connScript  ConnBehaviour
	stats       Stats
	records     []Received
	recordBytes int
	changed     chan struct{} // closed at the next change of stats; nil when nobody waits
}

// New makes a broker that does not listen yet.
func New(opts Options) (*Broker, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	b := &Broker{
		opts: opts, conns: map[*conn]struct{}{}, queues: map[string]*queue{}, windowsShut: opts.ShutWindow,
	}
	for name, patterns := range opts.Queues {
		b.queueLocked(name).patterns = patterns
	}
	return b, nil
}

// Start listens and serves. After Stop it listens on the same port again, with queues, durable subscriptions,
// scripts and records as they were.
func (b *Broker) Start() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errors.New("start the broker: it is closed")
	}
	if b.listener != nil {
		return nil
	}
	l, err := listen(b.addr, b.opts.Addr)
	if err != nil {
		return fmt.Errorf("listen for AMQP: %w", err)
	}
	b.listener, b.addr = l, l.Addr().String()
	b.wg.Go(func() { b.accept(l) })
	return nil
}

// listen takes the address used before, else the configured one. For port 0 it prefers ports below the range
// that systems hand out for outgoing connections: while the broker is stopped, no client can be given its
// port.
func listen(before, configured string) (net.Listener, error) {
	if before != "" {
		return net.Listen("tcp", before)
	}
	host, port, err := net.SplitHostPort(configured)
	if err == nil && port == "0" {
		for range 20 {
			l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(20000+rand.IntN(12000))))
			if err == nil {
				return l, nil
			}
		}
	}
	return net.Listen("tcp", configured)
}

// Addr is the host:port that the broker listens on or, while stopped, listened on. Empty before Start.
func (b *Broker) Addr() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// URL is the broker's URL, amqp:// or amqps://.
func (b *Broker) URL() string {
	if b.opts.TLSConfig != nil {
		return "amqps://" + b.Addr()
	}
	return "amqp://" + b.Addr()
}

func (b *Broker) accept(l net.Listener) {
	for {
		nc, err := l.Accept()
		if err != nil {
			return // closed by kill
		}
		c := newConn(b, nc)
		b.mu.Lock()
		if b.listener != l {
			b.mu.Unlock()
			c.kill(true)
			return
		}
		b.stats.Connections++
		c.id = b.stats.Connections
		b.conns[c] = struct{}{}
		b.notifyLocked()
		b.wg.Go(c.serve)
		b.mu.Unlock()
	}
}

// Refuse closes the listener and leaves the connections alone: new ones are refused until Start.
func (b *Broker) Refuse() {
	b.mu.Lock()
	l := b.listener
	b.listener = nil
	b.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

// kill is a broker process that dies: the listener goes, every connection is reset.
func (b *Broker) kill() {
	b.Refuse()
	b.each(func(c *conn) { c.kill(true) })
}

// Stop kills the broker as SIGKILL would, and waits until nothing of it runs. Messages in named queues and
// durable subscriptions survive, as on a disk; Start brings the broker back.
func (b *Broker) Stop() {
	b.kill()
	b.wg.Wait()
}

// Close is Stop for good. It may be called twice.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.Stop()
}

// Freeze stops all reading and writing, on connections that come later too: TCP connects, and nobody answers.
// When it returns, no byte of the broker is sent until Thaw.
func (b *Broker) Freeze() {
	b.gate.shut()
	b.each(func(c *conn) { c.awaitWrite() })
}

// Thaw ends Freeze and lets connections go on that a script froze or stalled.
func (b *Broker) Thaw() {
	b.gate.open()
	b.each(func(c *conn) {
		c.gate.open()
		c.reading.open()
		c.rouse()
	})
}

// SettleHeld tells the outcomes that were Held until now, oldest first on each link.
func (b *Broker) SettleHeld() {
	b.each(func(c *conn) { c.post(c.settleHeld) })
}

// Inflict makes the fault happen now: on every link that matches the pattern for DetachLink, EndSession and
// WithdrawCredit ("" or "#" = all), and for the others on each connection that has such a link ("" = on all
// connections, with links or without). It does not wait for the effect.
func (b *Broker) Inflict(pattern string, fault Fault, cause Cause) {
	switch {
	case fault == KillBroker:
		b.kill()
	case fault == DropConnection && pattern == "":
		b.each(func(c *conn) { c.kill(true) }) // reaches frozen connections, too
	default:
		b.each(func(c *conn) { c.post(func() { c.inflict(pattern, fault, cause) }) })
	}
}

// ShutWindows makes the window of each session 0, now and of those that begin, or opens it again: what
// RabbitMQ 4 does while an alarm is on.
func (b *Broker) ShutWindows(shut bool) {
	b.mu.Lock()
	b.windowsShut = shut
	b.mu.Unlock()
	b.each(func(c *conn) { c.post(c.reviseWindows) })
}

func (b *Broker) shutWindows() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.windowsShut
}

// each calls f for every live connection, without the lock.
func (b *Broker) each(f func(*conn)) {
	b.mu.Lock()
	conns := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}

func (b *Broker) forget(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	b.notifyLocked()
}

// gate is a door that goroutines wait at while it is shut. The zero gate is open.
type gate struct {
	mu   sync.Mutex
	wait chan struct{} // guarded by mu; nil = open, else closed when it opens
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait == nil {
		g.wait = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wait != nil {
		close(g.wait)
		g.wait = nil
	}
}

// opened is nil when the gate is open, else a channel that is closed when it opens.
func (g *gate) opened() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wait
}
