package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"koji-relay/config"
	"koji-relay/internal/admin"
)

// Reload reads the configuration again and puts it in force. On any error the old one stays. It blocks until
// that is done, and may be called concurrently while Run runs; ctx ends the waiting only.
func (d *Daemon) Reload(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case d.reloads <- answer:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload puts the configuration of the file in force and remembers the result.
func (d *Daemon) reload() error {
	was := d.effective.Load()
	now := *was
	now.reload = admin.Reload{Time: time.Now()}
	next, pending, err := d.exchange()
	if err != nil {
		now.reload.Errors = strings.Split(err.Error(), "\n")
		d.effective.Store(&now)
		d.log.Error("reload refused: the old configuration stays", "error", oneLine(err))
		return err
	}
	now.config, now.loaded = next, now.reload.Time
	now.reload.OK = true
	now.reload.NeedRestart = pending
	now.reload.Changed = config.Changed(was.config, next)
	d.effective.Store(&now)
	for _, w := range next.Warnings {
		d.log.Warn("configuration: " + w.String())
	}
	d.log.Info("reloaded", "config", next.Path, "changed", strings.Join(now.reload.Changed, " "),
		"need_restart", strings.Join(pending, " "))
	return nil
}

// exchange builds the next service beside the one in force, hands over to it, and stops the old one. It
// returns what is in force then, and the names of the keys in the file that wait for a restart.
func (d *Daemon) exchange() (next *config.Config, pending []string, err error) {
	file, err := d.opts.Load()
	if err != nil {
		return nil, nil, err
	}
	next, pending = config.InForce(d.opts.Config, file)
	s, err := d.newService(next)
	if err != nil {
		return nil, nil, err
	}
	d.setLevel(next)
	setMemoryLimit(next)
	d.hubAPI.SetMaxInflightBytes(next.Relay.MaxInflightBytes)
	if d.store != nil {
		d.store.SetLimits(limits(next))
		d.drainer.Configure(d.drainOptions(next))
	}
	if d.history != nil {
		d.history.Configure(next.History.Keep, next.History.MaxBytes)
		d.drainer.Wake() // from a wait of the old interval
	}
	if d.outbox != nil {
		d.outbox.SetInterval(next.Queue.Interval)
	}
	running := s.run(d.fatal)
	// Hand over when the new connections are up, or cannot be had.
	select {
	case <-s.relay.Up():
	case <-time.After(min(next.Broker.ConnectTimeout, 5*time.Second)):
	}
	old := d.current.exchange(s, running)
	finish, cancel := context.WithTimeout(context.Background(), old.limit)
	defer cancel()
	if err := old.stop(finish); err != nil {
		d.log.Warn("parts of the old configuration did not stop in order", "error", err)
	}
	return next, pending, nil
}

func (d *Daemon) setLevel(c *config.Config) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Relay.LogLevel)); err != nil {
		panic(fmt.Sprintf("config let log_level = %q pass", c.Relay.LogLevel))
	}
	d.opts.Level.Set(level)
}

// ownMemory is what the Go runtime may take besides commits at work and batches of the drain. The program's
// own text and what the runtime frees too late come on top; together they stay within 64 MiB.
const ownMemory = 24 << 20

// historyMemory is what waits for the history at most, and what is on its way there.
const historyMemory = 12 << 20

// setMemoryLimit tells the Go runtime what the relay may take, so that it collects garbage in time. It is a
// soft limit; GOMEMLIMIT of the environment goes before it.
func setMemoryLimit(c *config.Config) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(ownMemory + historyMemory + c.Relay.MaxInflightBytes + 4*c.Queue.BatchBytes)
	}
}

// gcPercent is how much garbage there may be before it is collected, in percent of what is in use. Go's own
// value, 100, costs a tenth more processor time and saves 8 MiB under load.
const gcPercent = 200

// setGCPercent applies gcPercent. GOGC of the environment goes before it.
func setGCPercent() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
