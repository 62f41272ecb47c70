package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"koji-relay/internal/ingest"
	"koji-relay/internal/message"
)

// watchdog tells systemd that the hub is being served (WatchdogSec of the unit). It says nothing while a commit
// of the hub API is under way for much longer than the time that every step of it is bounded by: then something
// is stuck that only a restart helps, and systemd ends the process with SIGABRT, which prints all goroutines.
// Drain, outbox and brokers are not judged: they may wait for others for as long as it takes.
type watchdog struct {
	interval time.Duration // after which systemd loses patience
	limit    func() time.Duration
	takes    *takes
	notify   func(state string)
	log      *slog.Logger
}

// startWatchdog does nothing unless systemd asked for it.
func (d *Daemon) startWatchdog(parts *stops) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		d.log.Warn("understand systemd's watchdog", "error", err)
	}
	if interval <= 0 {
		return
	}
	w := &watchdog{interval: interval, limit: d.longestTake, takes: d.takes, notify: d.notify, log: d.log}
	parts.add(startPart("watchdog", time.Second, d.fatal, w.Run))
}

// longestTake is a time in which every commit has its answer, even on a busy machine.
func (d *Daemon) longestTake() time.Duration {
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
	commit, took := w.takes.oldest()
	if took > w.limit() {
		if !wasStuck {
			w.log.Error("a commit is stuck: no longer telling systemd that all is well", "commit", commit, "took", took)
		}
		return true
	}
	if wasStuck {
		w.log.Info("no commit is stuck any more")
	}
	w.notify(systemd.SdNotifyWatchdog)
	return false
}

// takes remembers when the commits under way began. It may be used concurrently.
type takes struct {
	ingest.Taker

	mu    sync.Mutex // guards the fields below
	last  int
	began map[int]take
}

type take struct {
	commit string
	at     time.Time
}

func newTakes(t ingest.Taker) *takes { return &takes{Taker: t, began: make(map[int]take)} }

// Take implements ingest.Taker.
func (t *takes) Take(ctx context.Context, c message.Commit) message.Receipt {
	t.mu.Lock()
	t.last++
	id := t.last
	t.began[id] = take{c.ID, time.Now()}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.began, id)
		t.mu.Unlock()
	}()
	return t.Taker.Take(ctx, c)
}

// oldest says which commit is under way for longest, and how long; zero without any.
func (t *takes) oldest() (commit string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, one := range t.began {
		if since := time.Since(one.at); since > took {
			commit, took = one.commit, since
		}
	}
	return commit, took
}
