package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// part is something that runs or is open until its stop, which is bounded by limit.
type part struct {
	name  string
	limit time.Duration
	stop  func(ctx context.Context) error
}

// startPart runs a part until its stop. A part that ends by itself with an error ends the daemon.
func startPart(name string, limit time.Duration, fatal chan<- error, run func(context.Context) error) part {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			fail(fatal, fmt.Errorf("%s: %w", name, err))
		}
	}()
	return part{name, limit, func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

// lenient makes a part whose stop may fail: the relay has done its work all the same.
func (p part) lenient(log *slog.Logger) part {
	stop := p.stop
	p.stop = func(ctx context.Context) error {
		if err := stop(ctx); err != nil {
			log.Warn("a part did not stop in time; the relay ends without it", "part", p.name, "error", err)
		}
		return nil
	}
	return p
}

// inTime waits for f until ctx ends. f goes on.
func inTime(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail reports the error that ends the daemon; those after the first add nothing.
func fail(fatal chan<- error, err error) {
	select {
	case fatal <- err:
	default:
	}
}

// stops are what has to happen at the end, registered right after each part is opened and run last-in,
// first-out. One that fails or overruns does not spare the others.
type stops struct {
	parts []part
	log   *slog.Logger
}

func (s *stops) add(p part) { s.parts = append(s.parts, p) }

// runAll runs every stop within its limit, and hurries them all when finish ends (a second signal).
func (s *stops) runAll(finish context.Context) error {
	var errs []error
	for i := len(s.parts) - 1; i >= 0; i-- {
		p := s.parts[i]
		start := time.Now()
		ctx, cancel := context.WithTimeout(finish, p.limit)
		err := p.stop(ctx)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.name, err))
		}
		s.log.Debug("stopped", "part", p.name, "took", time.Since(start))
	}
	s.parts = nil
	return errors.Join(errs...)
}
