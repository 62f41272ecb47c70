package daemon

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/callbacks"
	"koji-relay/internal/message"
)

// newWatchdog makes one whose systemd has 30 s of patience.
func newWatchdog() (w *watchdog, told *int, log *strings.Builder) {
	told, log = new(int), new(strings.Builder)
	w = &watchdog{
		interval: 30 * time.Second,
		limit:    func() time.Duration { return 15 * time.Second },
		underway: &underway{},
		notify:   func(string) { *told++ },
		log:      slog.New(slog.NewTextHandler(log, nil)),
	}
	return w, told, log
}

// pass lets time go by in a synctest bubble, until everything in it waits again.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestWatchdogIsFedWhileNothingIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, told, log := newWatchdog()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		for range 20 { // commits that take as long as they may, one after the other
			slow := w.underway.begin("slow")
			pass(14 * time.Second)
			slow.end()
		}
		large := w.underway.begin("large") // and one of many pieces
		for range 20 {
			pass(14 * time.Second)
			large.progress()
		}
		large.end()
		synctest.Wait()
		if *told < 56 {
			t.Errorf("systemd was told %d times within 560 s, want at least every 10 s", *told)
		}
		if log.Len() > 0 {
			t.Errorf("logged %s", log)
		}
	})
}

func TestWatchdogIsNotFedWhileACommitIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, told, log := newWatchdog()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		stuck := w.underway.begin("7f3c")
		pass(5 * time.Second)
		later := w.underway.begin("later")
		pass(16 * time.Second) // one more look: at 20 s
		before := *told
		pass(5 * time.Minute)
		if *told != before {
			t.Errorf("systemd was told %d times that all is well", *told-before)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "commit=7f3c") {
			t.Errorf("want one line that names the commit 7f3c, logged:\n%s", log)
		}
		stuck.end()
		later.end()
		pass(11 * time.Second)
		if *told == before {
			t.Error("systemd is not told that all is well again")
		}
	})
}

// TestWatchdogSeesWhatTheHubAPIPublishes: a commit of the hub API that hangs is seen, where
// no time limit holds either.
func TestWatchdogSeesWhatTheHubAPIPublishes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d Daemon
		hangs := make(chan struct{})
		d.current.service = &service{hub: &publisher{translate: func(message.Commit) (none callbacks.Translation) {
			<-hangs
			return none
		}, watch: newWatch("test", "", slog.New(slog.DiscardHandler))}}
		go d.publish(t.Context(), message.Commit{ID: "7f3c", Events: []message.Event{{Callback: "postTag"}}})
		w, told, log := newWatchdog()
		w.underway = &d.underway
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		pass(21 * time.Second)
		before := *told
		pass(time.Minute)
		if *told != before || !strings.Contains(log.String(), "commit=7f3c") {
			t.Errorf("systemd was told %d times that all is well; logged:\n%s", *told-before, log)
		}
		close(hangs)
		pass(11 * time.Second)
		if *told == before {
			t.Error("systemd is not told that all is well again")
		}
	})
}
