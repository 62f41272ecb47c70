package daemon

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/message"
)

// takerFunc is an ingest.Taker.
type takerFunc func(ctx context.Context, c message.Commit) message.Receipt

func (f takerFunc) Take(ctx context.Context, c message.Commit) message.Receipt { return f(ctx, c) }

// newWatchdog makes one whose systemd has 30 s of patience, over a taker that holds each commit until it is
// released.
func newWatchdog() (w *watchdog, release chan struct{}, told *int, log *strings.Builder) {
	told, log, release = new(int), new(strings.Builder), make(chan struct{})
	w = &watchdog{
		interval: 30 * time.Second,
		limit:    func() time.Duration { return 15 * time.Second },
		takes: newTakes(takerFunc(func(context.Context, message.Commit) message.Receipt {
			<-release
			return message.Receipt{Sent: 1}
		})),
		notify: func(string) { *told++ },
		log:    slog.New(slog.NewTextHandler(log, nil)),
	}
	return w, release, told, log
}

// pass lets time go by in a synctest bubble, until everything in it waits again.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestWatchdogIsFedWhileNothingIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, release, told, log := newWatchdog()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		for range 20 { // commits that take as long as they may, one after the other
			go w.takes.Take(ctx, message.Commit{ID: "slow"})
			pass(14 * time.Second)
			release <- struct{}{}
		}
		synctest.Wait()
		if *told < 28 {
			t.Errorf("systemd was told %d times within 280 s, want at least every 10 s", *told)
		}
		if log.Len() > 0 {
			t.Errorf("logged %s", log)
		}
	})
}

func TestWatchdogIsNotFedWhileACommitIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, release, told, log := newWatchdog()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		go w.takes.Take(ctx, message.Commit{ID: "7f3c"})
		pass(5 * time.Second)
		go w.takes.Take(ctx, message.Commit{ID: "later"})
		pass(16 * time.Second) // one more look: at 20 s
		before := *told
		pass(5 * time.Minute)
		if *told != before {
			t.Errorf("systemd was told %d times that all is well", *told-before)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "commit=7f3c") {
			t.Errorf("want one line that names the commit 7f3c, logged:\n%s", log)
		}
		release <- struct{}{}
		release <- struct{}{}
		pass(11 * time.Second)
		if *told == before {
			t.Error("systemd is not told that all is well again")
		}
	})
}

func TestTakesForgetWhatIsAnswered(t *testing.T) {
	t.Parallel()
	takes := newTakes(takerFunc(func(context.Context, message.Commit) message.Receipt { return message.Receipt{Sent: 1} }))
	for range 100 {
		if r := takes.Take(t.Context(), message.Commit{}); r.Sent != 1 {
			t.Fatalf("the receipt is %+v", r)
		}
	}
	if n := len(takes.began); n != 0 {
		t.Errorf("%d commits are remembered after their answer", n)
	}
}
