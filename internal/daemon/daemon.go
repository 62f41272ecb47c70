// Package daemon builds the parts of koji-relay, starts them, exchanges them at a reload and stops them in
// order. It promises that a commit is taken by one configuration or the next, never by none, and that after
// Run nothing is left running. What the parts do is theirs.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	systemd "github.com/coreos/go-systemd/v22/daemon"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/history"
	"koji-relay/internal/admin"
	"koji-relay/internal/ingest"
	"koji-relay/queue"
	"koji-relay/queue/drain"
	"koji-relay/queue/file"
	"koji-relay/queue/postgres"
)

// Options configure a Daemon. All fields are required.
type Options struct {
	Config *config.Config
	// Load reads the configuration again, for a reload.
	Load    func() (*config.Config, error)
	Logger  *slog.Logger
	Level   *slog.LevelVar // of Logger; set from log_level
	LogLost func() int64   // how many lines of the log were lost
	Version string         // of the program
}

// Daemon is one running relay. Make one with New.
type Daemon struct {
	opts    Options
	log     *slog.Logger
	watch   *watch
	admin   *admin.Server  // set before anything else runs that would use it
	hubAPI  *ingest.Server // the same
	current current
	reloads chan chan error
	fatal   chan error // the error of a part that ended by itself

	// What outlives a reload. The first three are nil with [queue] enabled = off, the others unless the store is
	// Postgres.
	store    store
	health   *storeHealth
	drainer  *drain.Drainer
	postgres *postgres.Store
	pokes    []net.PacketConn // where the hub says that something is in the outbox
	outbox   *postgres.Outbox
	others   atomic.Pointer[[]string] // what the other readers of the outbox want; nil before the first look

	underway underway // the commits of the hub API
	// The history; both are nil with [history] keep = 0.
	historyStore history.Store
	history      *history.Recorder

	publishPaused atomic.Bool // by the administrator: commits are queued, nothing is sent
	effective     atomic.Pointer[effective]
	phase         atomic.Pointer[admin.Phase]
	started       time.Time
	sockets       string // where the hub hands over
}

// store is what a queue.Store can do besides.
type store interface {
	queue.Store
	queue.Inspector
	SetLimits(queue.Limits)
}

// New prepares a daemon; nothing is opened until Run.
func New(opts Options) *Daemon {
	d := &Daemon{
		opts:    opts,
		log:     opts.Logger,
		watch:   newWatch(opts.Version, opts.Config.Relay.Name, opts.Logger),
		reloads: make(chan chan error),
		fatal:   make(chan error, 1), // the first part that fails ends the daemon
		started: time.Now(),
	}
	d.watch.metrics.CountLostLog(opts.LogLost)
	d.effective.Store(&effective{config: opts.Config, loaded: d.started})
	d.enter(admin.Starting)
	return d
}

func (d *Daemon) enter(p admin.Phase) {
	d.phase.Store(&p)
	if d.admin != nil {
		d.admin.Refresh() // so that /ready does not lag behind
	}
}

// Run serves until intake ends, then finishes: the socket closes, requests in flight get their answers, the
// drain stops, brokers and store are closed. When finish ends it stops waiting for any of that. It returns
// nil after an orderly stop, and may be called once.
func (d *Daemon) Run(intake, finish context.Context) (err error) {
	parts := &stops{log: d.log}
	defer func() { err = errors.Join(err, parts.runAll(finish)) }()
	d.setLevel(d.opts.Config)
	setMemoryLimit(d.opts.Config)
	setGCPercent()
	listeners, err := d.listen(parts)
	if err != nil {
		return err
	}
	if err := d.openQueue(intake, parts); err != nil {
		return err
	}
	if err := d.startHistory(parts); err != nil {
		return err
	}
	d.sockets = addresses(listeners)
	s, err := d.newService(d.opts.Config)
	if err != nil {
		return err
	}
	d.current.exchange(s, s.run(d.fatal))
	parts.add(part{"sending", 20 * time.Second,
		func(ctx context.Context) error { return d.current.part.stop(ctx) }})
	d.warnOfOldEvents(intake)
	d.startDrain(parts)
	d.startReplays(parts)
	d.serveAdmin(parts)
	d.serve(listeners, parts)
	d.serveOutbox(parts)
	d.startWatchdog(parts)
	for _, w := range d.opts.Config.ClosedSocket() {
		d.log.Warn("configuration: " + w.String())
	}
	d.enter(admin.Running)
	d.log.Info("ready", "config", d.opts.Config.Path, "sockets", d.sockets)
	d.notify(systemd.SdNotifyReady)
	defer d.notify(systemd.SdNotifyStopping)
	defer d.enter(admin.Stopping)
	return d.wait(intake)
}

// wait blocks until the daemon is to stop, and reloads when asked.
func (d *Daemon) wait(intake context.Context) error {
	for {
		select {
		case <-intake.Done():
			d.log.Info("stopping: finishing the commits under way")
			return nil
		case err := <-d.fatal:
			return err
		case answer := <-d.reloads:
			answer <- d.reload()
		}
	}
}

// listen opens the socket that the configuration names, or takes over what systemd opened for us.
func (d *Daemon) listen(parts *stops) ([]net.Listener, error) {
	c := d.opts.Config.Relay
	all, pokes, err := ingest.Inherited(activation.Files(true))
	if err != nil {
		return nil, fmt.Errorf("take over the sockets of systemd: %w", err)
	}
	if len(all) == 0 {
		l, err := ingest.ListenUnix(ingest.SocketOptions{
			Path: c.Socket, Group: c.SocketGroup, Mode: fs.FileMode(c.SocketMode),
		})
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	d.listenPokes(all[0], pokes, parts)
	parts.add(part{"listeners", time.Second, func(context.Context) error {
		for _, l := range all {
			l.Close() // already closed by the server, unless it never served
		}
		return nil
	}})
	return all, nil
}

// openQueue opens the queue that the configuration names. It refuses to start without one: a queue that is
// enabled and not there would lose what it was meant to keep.
func (d *Daemon) openQueue(ctx context.Context, parts *stops) error {
	c := d.opts.Config
	opened, pg, err := OpenStore(ctx, c, d.log)
	if err != nil || opened == nil {
		return err
	}
	d.store = opened
	d.health = &storeHealth{store: opened}
	parts.add(part{"queue", 5 * time.Second, func(context.Context) error { return opened.Close() }})
	d.drainer = drain.New(opened, &d.current, d.drainOptions(c))
	if pg == nil && c.ReadsOutbox() {
		if pg, err = OpenOutbox(ctx, c, d.log); err != nil {
			return err
		}
		parts.add(part{"outbox", 5 * time.Second, func(context.Context) error { return pg.Close() }})
	}
	if pg != nil {
		d.postgres = pg
		d.outbox = postgres.NewOutbox(pg, outboxPublisher{&d.current}, postgres.OutboxOptions{Name: c.Relay.Name,
			Interval: c.Queue.Interval, Subjects: d.subjects, BeforeDelete: d.flushHistory, Logger: d.log})
	}
	return nil
}

// OpenOutbox opens the database of the outbox, for a relay whose queue is elsewhere.
func OpenOutbox(ctx context.Context, c *config.Config, log *slog.Logger) (*postgres.Store, error) {
	conn, err := c.DatabaseConn()
	if err != nil {
		return nil, fmt.Errorf("find the database of the outbox: %w", err)
	}
	pg, err := postgres.Open(ctx, postgres.Options{ConnString: conn.Reveal(), Application: application(),
		Limits: limits(c), Logger: log})
	if err != nil {
		return nil, fmt.Errorf("open the outbox: %w", err)
	}
	return pg, nil
}

// OpenStore opens the store of c for serve and for the commands that work on it while the relay is stopped.
// Both results are nil with [queue] enabled = off; the second is nil for a store that is not Postgres.
func OpenStore(ctx context.Context, c *config.Config, log *slog.Logger) (store, *postgres.Store, error) {
	if !c.Queue.Enabled {
		return nil, nil, nil
	}
	if c.Queue.Store == config.StoreFile {
		f, err := file.Open(c.Queue.Path, file.Options{Limits: limits(c)})
		if err != nil {
			return nil, nil, fmt.Errorf("open the queue: %w", err)
		}
		return f, nil, nil
	}
	conn, err := c.DatabaseConn()
	if err != nil {
		return nil, nil, fmt.Errorf("find the queue's database: %w", err)
	}
	pg, err := postgres.Open(ctx, postgres.Options{ConnString: conn.Reveal(), Application: application(),
		Limits: limits(c), Logger: log})
	if err != nil {
		return nil, nil, fmt.Errorf("open the queue: %w", err)
	}
	return pg, pg, nil
}

// application is what the database shows of our sessions: 63 bytes of it.
func application() string {
	host, _ := os.Hostname() // of use where it is known
	pid := fmt.Sprintf("/%d", os.Getpid())
	const most = 63
	name := "koji-relay " + host
	return name[:min(len(name), most-len(pid))] + pid
}

// startDrain starts what sends from the stores.
func (d *Daemon) startDrain(parts *stops) {
	if d.drainer == nil {
		return
	}
	parts.add(startPart("drain", 10*time.Second, d.fatal, d.drainer.Run))
	parts.add(startPart("wake the drain", time.Second, d.fatal, func(ctx context.Context) error {
		for ctx.Err() == nil {
			d.current.brokerUp(ctx)
			d.drainer.BrokerUp()
		}
		return nil
	}))
	if d.outbox != nil {
		parts.add(startPart("outbox reader", 5*time.Second, d.fatal, d.outbox.Run))
	}
}

// serve starts answering the hub.
func (d *Daemon) serve(listeners []net.Listener, parts *stops) {
	c := d.opts.Config.Relay
	server := ingest.New(ingest.Options{
		Decode:           callbacks.DecodeCommit,
		Publish:          d.publish,
		Events:           d.wanted,
		MaxRequestBytes:  c.MaxRequestBytes,
		MaxInflightBytes: c.MaxInflightBytes,
		Logger:           d.log,
	})
	d.hubAPI = server
	for _, l := range listeners {
		d.serveOn(newListener(l, "hub", shareOf(4, mostHub), d.log), server.Serve)
	}
	parts.add(part{"hub API", 10 * time.Second, func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		server.Close() // what Shutdown gave up on
		return err
	}})
}

// serveAdmin opens the control socket and the read-only port. The relay does its work without either.
func (d *Daemon) serveAdmin(parts *stops) {
	c := d.opts.Config.Relay
	server := admin.New(admin.Options{
		Source:  d.status,
		Present: d.present,
		Metrics: d.watch.metrics,
		Recent:  d.watch.recent,
		Control: d.control(),
		Logger:  d.log,
		// systemctl status shows it.
		Headline: func(line string) { d.notify("STATUS=" + line) },
	})
	d.admin = server
	parts.add(startPart("status", time.Second, d.fatal, server.Run))
	if d.health != nil {
		d.health.changed = server.Refresh
		parts.add(startPart("look at the store", time.Second, d.fatal, d.health.Run))
	}
	parts.add(part{"admin", 3 * time.Second, server.Shutdown})
	if c.Control != "" {
		d.serveAlso(parts, "control", shareOf(16, mostControl), func() (net.Listener, error) {
			return ingest.ListenUnix(ingest.SocketOptions{Path: c.Control, Mode: 0o600})
		}, server.ServeControl)
	}
	if c.Admin != "" {
		d.serveAlso(parts, "admin", shareOf(8, mostAdmin), func() (net.Listener, error) {
			return net.Listen("tcp", c.Admin)
		}, server.Serve)
	}
}

// serveOn serves until the server's shutdown; an error before ends the daemon.
func (d *Daemon) serveOn(l net.Listener, serve func(net.Listener) error) {
	go func() {
		if err := serve(l); err != nil {
			fail(d.fatal, err)
		}
	}()
}

// notify tells systemd; without systemd it does nothing.
func (d *Daemon) notify(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		d.log.Warn("systemd cannot be told the state", "error", err)
	}
}

func addresses(listeners []net.Listener) string {
	var all []string
	for _, l := range listeners {
		all = append(all, l.Addr().String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}
