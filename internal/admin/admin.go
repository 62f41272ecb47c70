// Package admin shows an administrator what the relay does, and lets those who may steer it.
//
// Two handlers: the read-only one (a loopback port: /live, /ready, /metrics, /status and the status page at
// /) and the control one (a Unix socket for its owner: the same, and what changes state). Both show one
// cached Status, so that neither a scrape nor a page costs the queue anything.
//
// It promises: a read never waits for a broker or a store; the read-only handler changes nothing and answers
// no other site's scripts; the number of metric series is bounded.
//
// It never: reaches into a stage (the daemon tells it everything), shows bodies except to the control
// socket's "show" and "export", or shows secrets (the daemon sends masked texts).
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Server. Present, Refresh and Headline may be zero; all else is required.
type Options struct {
	// Source gives the state of the daemon. It is called by one goroutine for the cache, and concurrently for
	// the control socket; its context has a deadline. A Queue that cannot be read in time is not Known.
	Source func(ctx context.Context) Status
	// Present brings into a Status of Source what the daemon knows of now without asking anybody: it does not
	// block. So whether the relay is ready is never older than the question, however slowly a store counts.
	Present func(*Status)
	Metrics *Metrics
	Recent  *Recent
	Control Control
	Logger  *slog.Logger
	Refresh time.Duration // how often Source is asked; 0 means 2 s
	// Headline, when set, is called by Run with the first line of the page, when it has changed.
	Headline func(line string)
}

const (
	defaultRefresh = 2 * time.Second
	sourceTimeout  = 10 * time.Second
	// refreshGap bounds how often Refresh makes the cache ask.
	refreshGap = 250 * time.Millisecond
	// headerTimeout and idleTimeout are how long a connection may stand by without a request. Their number is
	// bounded.
	headerTimeout = 2 * time.Second
	idleTimeout   = 30 * time.Second
)

// Server is the administrator's side of the daemon. Make one with New.
type Server struct {
	opts    Options
	history history
	day     day
	cached  atomic.Pointer[look]
	nudge   chan struct{}

	searches  chan struct{} // bounds the searches of the page at a time
	replacing sync.Mutex    // held while cached is replaced

	readOnly, control http.Server
	stopping          context.Context // ends with Shutdown, and so do streams that have no end of their own
}

// look is a Status as the daemon gave it, and since when each reason has been seen.
type look struct {
	status Status
	since  since
	given  bool // by the daemon
}

// New makes a Server and registers its gauges with opts.Metrics, which therefore takes one Server only.
// Nothing runs until Run, Serve and ServeControl are called.
func New(opts Options) *Server {
	if opts.Refresh == 0 {
		opts.Refresh = defaultRefresh
	}
	if opts.Present == nil {
		opts.Present = func(*Status) {}
	}
	s := &Server{opts: opts, nudge: make(chan struct{}, 1), searches: make(chan struct{}, maxSearches)}
	s.cached.Store(&look{status: Status{Phase: Starting, Generated: time.Now()}})
	opts.Metrics.register.MustRegister(newGauges(s.Status))
	errorLog := slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug)
	const maxHeader = 32 << 10
	s.readOnly = http.Server{Handler: s.Handler(), ErrorLog: errorLog, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: idleTimeout}
	// No limits on whole requests: exports, imports and profiles take their time.
	s.control = http.Server{Handler: s.ControlHandler(), ErrorLog: errorLog, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ConnContext: withUser}
	var stop context.CancelFunc
	s.stopping, stop = context.WithCancel(context.Background())
	s.control.RegisterOnShutdown(stop)
	return s
}

// Run keeps the cached Status fresh until ctx ends; it then returns nil. It rests for nine times as long as
// Source takes, so that a store that is slow to count is not kept busy counting.
func (s *Server) Run(ctx context.Context) error {
	told := ""
	for {
		start := time.Now()
		s.refresh(ctx)
		if line := s.Status().Headline(); line != told && s.opts.Headline != nil {
			told = line
			s.opts.Headline(line)
		}
		took := time.Since(start)
		if !wait(ctx, max(refreshGap, took), nil) ||
			!wait(ctx, max(s.opts.Refresh, 10*took)-time.Since(start), s.nudge) {
			return nil
		}
	}
}

// wait ends after d, or when early receives; false when ctx ended first.
func wait(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-early:
	}
	return ctx.Err() == nil
}

// Refresh asks for a new Status soon, because something changed. It does not block.
func (s *Server) Refresh() {
	select {
	case s.nudge <- struct{}{}:
	default:
	}
}

// refresh asks Source once, and caches the answer.
func (s *Server) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	status := s.opts.Source(ctx)
	if status.Generated.IsZero() {
		status.Generated = time.Now()
	}
	s.history.add(time.Now(), s.opts.Metrics.totals())
	s.day.add(time.Now(), &status)
	judged := status
	s.judge(&judged, time.Now())
	s.replacing.Lock()
	defer s.replacing.Unlock()
	s.cached.Store(&look{status, s.cached.Load().since.note(judged.Reasons, time.Now()), true})
}

// judge adds to a status what this package has seen by itself, and judges all of it.
func (s *Server) judge(status *Status, now time.Time) {
	path := status.HandOver.Path
	status.HandOver = s.opts.Metrics.handOver.now(now, status.stores())
	status.HandOver.Path = path
	status.Outlook = s.day.outlook(&status.Queue)
	status.judge(now)
}

// Status gives the cached state with what is present, judged by the clock of now. It does not block. The
// slices that it shares with other callers must not be changed.
func (s *Server) Status() *Status {
	last := s.cached.Load()
	status := last.status
	if last.given {
		s.opts.Present(&status)
	}
	now := time.Now()
	status.UptimeSeconds = seconds(now, status.Started)
	status.Rates, status.Minutes = s.history.rates()
	status.Recent = s.opts.Recent.Last()
	s.judge(&status, now)
	for i := range status.Reasons {
		if r := &status.Reasons[i]; r.Since.IsZero() { // else what it is about is older than our looking
			if r.Since = last.since[r.Code]; r.Since.IsZero() {
				r.Since = now // the next look will note it
			}
		}
	}
	// An empty list is [] in JSON, for programs that count.
	status.Brokers = present(status.Brokers)
	status.DeadLetters = present(status.DeadLetters)
	status.Certificates = present(status.Certificates)
	status.Queue.ByTopic = present(status.Queue.ByTopic)
	status.Config.Settings = present(status.Config.Settings)
	if status.Queue.DeadLettersByReason == nil {
		status.Queue.DeadLettersByReason = map[string]int64{}
	}
	return &status
}

func present[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// Serve answers read-only requests on l, a loopback port, until Shutdown or Close; it then returns nil.
func (s *Server) Serve(l net.Listener) error { return serve(&s.readOnly, l, "the admin endpoint") }

// ServeControl answers on l, a Unix socket for its owner alone, until Shutdown or Close; it then returns nil.
func (s *Server) ServeControl(l net.Listener) error {
	return serve(&s.control, l, "the control socket")
}

func serve(server *http.Server, l net.Listener, what string) error {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s on %s: %w", what, l.Addr(), err)
	}
	return nil
}

// Shutdown closes the listeners and waits for requests in flight until ctx ends; then it drops them.
func (s *Server) Shutdown(ctx context.Context) error {
	err := errors.Join(s.readOnly.Shutdown(ctx), s.control.Shutdown(ctx))
	if err != nil {
		s.Close()
		return fmt.Errorf("finish the administrator's requests: %w", err)
	}
	return nil
}

// Close drops every connection at once.
func (s *Server) Close() error { return errors.Join(s.readOnly.Close(), s.control.Close()) }
