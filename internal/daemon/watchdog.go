package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// watchdog tells systemd that the hub is being served (WatchdogSec of the unit). It says nothing while a
// commit of the hub API does not move on for much longer than the time that every step of it is bounded by:
// then something is stuck that only a restart helps, and systemd ends the process with SIGABRT, which prints
// all goroutines. Drain, outbox and brokers are not judged: they may wait for others for as long as it takes.
type watchdog struct {
	interval time.Duration // after which systemd loses patience
	limit    func() time.Duration
	underway *underway
	notify   func(state string)
	log      *slog.Logger
}

// startWatchdog does nothing unless systemd asked for it.
func (d *Daemon) startWatchdog(parts *stops) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("WATCHDOG_USEC of systemd cannot be read; no watchdog", "error", err)
	}
	if interval <= 0 {
		return
	}
	w := &watchdog{interval: interval, limit: d.longestPiece, underway: &d.underway, notify: d.notify,
		log: d.log}
	parts.add(startPart("watchdog", time.Second, d.fatal, w.Run))
}

// longestPiece is a time in which every piece of a commit is dealt with, even on a busy machine.
func (d *Daemon) longestPiece() time.Duration {
	c := d.effective.Load().config
	return 10*time.Second + 2*(c.Relay.HandoffTimeout+2*c.Queue.StoreTimeout)
}

// Run blocks until ctx ends.
func (w *watchdog) Run(ctx context.Context) error {
	tick := time.NewTicker(w.interval / 3)
	defer tick.Stop()
	stuck := false
	for {
		stuck = w.tell(stuck)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tell notifies systemd, or logs once why it does not, and returns whether a commit is stuck.
func (w *watchdog) tell(wasStuck bool) (stuck bool) {
	commit, took := w.underway.oldest()
	if took > w.limit() {
		if !wasStuck {
			w.log.Error("a commit is stuck: no longer telling systemd that all is well", "commit", commit, "took",
				took)
		}
		return true
	}
	if wasStuck {
		w.log.Info("no commit is stuck any more")
	}
	w.notify(systemd.SdNotifyWatchdog)
	return false
}

// underway remembers the commits that are dealt with. The zero value is ready; it may be used concurrently.
type underway struct {
	mu      sync.Mutex // guards the field below and the moved of all its members
	commits map[*work]bool
}

// work is one commit under way.
type work struct {
	of     *underway
	commit string
	moved  time.Time // when its last piece was dealt with
}

func (u *underway) begin(commit string) *work {
	w := &work{u, commit, time.Now()}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.commits == nil {
		u.commits = make(map[*work]bool)
	}
	u.commits[w] = true
	return w
}

func (w *work) progress() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	w.moved = time.Now()
}

func (w *work) end() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.commits, w)
}

// oldest says which commit has not moved for longest, and how long; zero without any.
func (u *underway) oldest() (commit string, still time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for w := range u.commits {
		if since := time.Since(w.moved); since > still {
			commit, still = w.commit, since
		}
	}
	return commit, still
}
