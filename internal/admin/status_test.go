package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"koji-relay/internal/inspect"
)

func TestReadyMeansThatACommitWouldBeTaken(t *testing.T) {
	t.Parallel()
	brokersDown := func(s *Status) {
		for i := range s.Brokers {
			s.Brokers[i].State = inspect.Down
		}
	}
	storeBroken := func(s *Status) { s.Queue.Usable, s.Queue.Error = false, "connection refused" }
	for _, c := range []struct {
		name    string
		change  func(*Status)
		state   State
		reasons string
	}{
		{"all is well", func(*Status) {}, OK, ""},
		{"one broker of two begins anew", func(s *Status) {
			s.Brokers[0].State, s.Brokers[0].Since = inspect.Down, time.Now().Add(-30*time.Second)
		}, OK, ""},
		{"one broker of two down", func(s *Status) {
			s.Brokers[0].State, s.Brokers[0].Since = inspect.Down, time.Now().Add(-2*time.Minute)
		}, Degraded, "BROKER_DOWN"},
		{"no broker", brokersDown, Degraded, "NO_BROKER"},
		{"stalled brokers", func(s *Status) {
			s.Brokers[0].State, s.Brokers[1].State = inspect.Stalled,
				inspect.Connecting
		}, Degraded, "NO_BROKER"},
		{"store broken", storeBroken, Degraded, "STORE_UNUSABLE"},
		{"no broker, store broken", func(s *Status) { brokersDown(s); storeBroken(s) }, NotReady,
			"NO_BROKER STORE_UNUSABLE"},
		{"ordered, store broken", func(s *Status) { s.Queue.Ordered = true; storeBroken(s) }, NotReady,
			"STORE_UNUSABLE"},
		{"paused", func(s *Status) { s.Paused = Paused{Drain: true, Publish: true} }, Degraded, "PAUSED"},
		{"paused, store broken", func(s *Status) { s.Paused.Publish = true; storeBroken(s) }, NotReady,
			"PAUSED STORE_UNUSABLE"},
		{"drain paused", func(s *Status) { s.Paused.Drain = true }, Degraded, "DRAIN_PAUSED"},
		{"queue off", func(s *Status) { s.Queue = Queue{} }, OK, ""},
		{"queue off, no broker", func(s *Status) { s.Queue = Queue{}; brokersDown(s) }, NotReady,
			"NO_BROKER QUEUE_OFF"},
		{"queue full", func(s *Status) { s.Queue.Full = true }, Degraded, "QUEUE_FULL"},
		{"queue full, no broker", func(s *Status) { s.Queue.Full = true; brokersDown(s) }, NotReady,
			"NO_BROKER QUEUE_FULL"},
		{"nobody has bound the topics", func(s *Status) { s.Queue.Depth, s.Queue.SetAside = 3, 3 }, Degraded,
			"TURNED_AWAY"},
		{"dead letters", func(s *Status) { s.Queue.DeadLetters = 1 }, Degraded, "DEAD_LETTERS"},
		{"the drain is under way", func(s *Status) { s.Queue.Depth, s.Queue.Oldest = 3, time.Now() }, OK, ""},
		{"messages wait for minutes", func(s *Status) {
			s.Queue.Depth, s.Queue.Oldest = 3, time.Now().Add(-time.Hour)
		},
			Degraded, "BACKLOG"},
		{"events wait for minutes", func(s *Status) {
			s.Outbox.Depth, s.Outbox.Oldest = 3, time.Now().Add(-time.Hour)
		},
			Degraded, "OUTBOX_BACKLOG"},
		{"outbox unreadable", func(s *Status) { s.Outbox.Error = "permission denied" }, Degraded,
			"OUTBOX_UNREADABLE"},
		{"reload failed", func(s *Status) { s.Config.Reload.Time = time.Now() }, Degraded, "RELOAD_FAILED"},
		{"certificate ends soon", func(s *Status) { s.Certificates[0].Expires = time.Now().Add(time.Hour) },
			Degraded, "CERTIFICATE_EXPIRES"},
		{"certificate has ended", func(s *Status) { s.Certificates[0].Expires = time.Now() }, Degraded,
			"CERTIFICATE_EXPIRED"},
		{"stale", func(s *Status) { s.Generated = time.Now().Add(-time.Minute) }, Degraded, "STALE"},
		{"starting", func(s *Status) { s.Phase = Starting }, NotReady, "STARTING"},
		{"not filled in", func(s *Status) { *s = Status{} }, NotReady, "STARTING"},
		{"stopping", func(s *Status) { s.Phase = Stopping }, NotReady, "STOPPING"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			status := runningStatus()
			c.change(&status)
			s, _, _ := newTestServer(t, status)
			code, text := get(t, s.Handler(), "/ready")
			var ready struct {
				Ready   bool
				State   State
				Reasons []Reason
			}
			if err := json.Unmarshal([]byte(text), &ready); err != nil {
				t.Fatal(err)
			}
			var codes []string
			for _, r := range ready.Reasons {
				codes = append(codes, r.Code)
			}
			if got := strings.Join(codes, " "); got != c.reasons || ready.State != c.state {
				t.Errorf("state %s for %q, want %s for %q", ready.State, got, c.state, c.reasons)
			}
			if want := c.state != NotReady; ready.Ready != want || (code == 200) != want {
				t.Errorf("ready is %v with code %d, want %v", ready.Ready, code, want)
			}
		})
	}
}

// While it starts nothing is known of the queue, and so not that it is switched off either.
func TestStartingPageDoesNotSayThatTheQueueIsOff(t *testing.T) {
	t.Parallel()
	for phase, want := range map[Phase]bool{Starting: false, Running: true} {
		s, _, _ := newTestServer(t, Status{Phase: phase})
		if _, text := get(t, s.Handler(), "/"); strings.Contains(text, "switched off") != want {
			t.Errorf("while %s the page says that the queue is off: %v, want %v", phase, !want, want)
		}
	}
}

func TestStatusListsAreNeverNull(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, Status{Phase: Running})
	_, text := get(t, s.Handler(), "/status")
	if strings.Contains(text, "null") {
		t.Errorf("a list is null in %s", text)
	}
	if strings.Contains(text, "0001-01-01") && strings.Count(text, "0001-01-01") > 1 { // started
		t.Errorf("unknown times are shown in %s", text)
	}
}

func TestCacheIsRefreshedInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{status: runningStatus()}
		s := New(Options{Source: source.get, Metrics: NewMetrics("1", ""), Recent: NewRecent(1),
			Control: &fakeControl{}, Logger: discard})
		if s.Status().Ready {
			t.Error("ready before the first look")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		synctest.Wait()
		if !s.Status().Ready || source.count() != 1 {
			t.Errorf("after the start: ready %v, %d looks", s.Status().Ready, source.count())
		}
		for range 1000 {
			s.Status() // reading does not ask the source
		}
		pass(10*time.Second + time.Millisecond) // the bubble's clock
		if source.count() != 6 {
			t.Errorf("%d looks in 10 s, want 6", source.count())
		}
		s.Refresh()
		s.Refresh()
		pass(2 * refreshGap)
		if source.count() != 7 {
			t.Errorf("%d looks after two nudges, want 7", source.count())
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Chaos found a relay that handed commits back and said for more than 5 s that it was ready: what it says was
// as old as the last count of the queue, and a busy database takes seconds for that.
func TestReadyIsOfNowHoweverSlowlyTheQueueIsCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		counting := make(chan struct{}) // never ends in time
		first := true
		source := func(ctx context.Context) Status {
			if !first {
				select {
				case <-counting:
				case <-ctx.Done():
				}
			}
			first = false
			return runningStatus()
		}
		var away atomic.Bool // all brokers and the database
		s := New(Options{Source: source, Metrics: NewMetrics("1", ""), Recent: NewRecent(1),
			Control: &fakeControl{}, Logger: discard,
			Present: func(s *Status) {
				if away.Load() {
					s.Brokers, s.Queue.Usable = []inspect.Broker{{Name: "b", State: inspect.Down}}, false
				}
			}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		pass(5 * time.Second) // it is counting
		if !s.Status().Ready {
			t.Error("not ready although all is well")
		}
		away.Store(true)
		now := s.Status()
		if now.Ready || len(now.Reasons) == 0 {
			t.Errorf("ready although a commit would be handed back: %v", now.Reasons)
		}
		for _, r := range now.Reasons {
			if r.Since.IsZero() {
				t.Errorf("%s since nobody knows when", r.Code)
			}
		}
		away.Store(false)
		if !s.Status().Ready {
			t.Error("not ready although all is well again")
		}
		cancel()
		<-ended
	})
}

func TestSlowSourceNeverBlocksAReadAndIsNotKeptBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		status := runningStatus()
		source := func(ctx context.Context) Status {
			calls.Add(1)
			<-time.After(4 * time.Second)
			status.Generated = time.Now()
			return status
		}
		s := New(Options{Source: source, Metrics: NewMetrics("1", ""), Recent: NewRecent(1),
			Control: &fakeControl{},
			Logger:  discard})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		pass(400*time.Second + time.Millisecond)
		if n := calls.Load(); n > 11 {
			t.Errorf("a look of 4 s was made %d times in 400 s; it may take a tenth of the time", n)
		}
		before := time.Now()
		if code, _ := get(t, s.Handler(), "/metrics"); code != 200 || time.Since(before) != 0 {
			t.Errorf("a scrape answered %d and waited %s", code, time.Since(before))
		}
		cancel()
		<-ended
	})
}

func TestStatusGrowsStaleWhenTheSourceHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newTestServer(t, runningStatus())
		pass(time.Minute)
		status := s.Status()
		if status.State != Degraded || len(status.Reasons) != 1 || status.Reasons[0].Code != "STALE" {
			t.Errorf("after a minute without a look: %s %v", status.State, status.Reasons)
		}
	})
}

func TestRecentKeepsTheLastNewestFirst(t *testing.T) {
	t.Parallel()
	r := NewRecent(3)
	if got := r.Last(); len(got) != 0 {
		t.Errorf("an empty list gives %v", got)
	}
	for i := range 5 {
		r.Add(Fate{Event: i})
	}
	var got []int
	for _, f := range r.Last() {
		got = append(got, f.Event)
	}
	if diff := cmp.Diff([]int{4, 3, 2}, got); diff != "" {
		t.Error(diff)
	}
}

func TestRatesAreOverTheirWindow(t *testing.T) {
	t.Parallel()
	var h history
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	// Ten messages a second for ten minutes, then silence for two.
	for s := range 721 {
		h.add(start.Add(time.Duration(s)*time.Second), totals{sent: int64(10 * min(s, 600)), queued: 7})
	}
	rates, minutes := h.rates()
	if rates.Minute.Sent != 0 || rates.FiveMinutes.Sent < 5.9 || rates.FiveMinutes.Sent > 6.1 {
		t.Errorf("rates %+v, want 0 and 6 sent per second", rates)
	}
	if len(h.samples) > 152 {
		t.Errorf("%d samples kept", len(h.samples))
	}
	var sent, queued int64
	for i, m := range minutes {
		if want := start.Add(time.Duration(i) * time.Minute); !m.Time.Equal(want) {
			t.Errorf("minute %d is %s, want %s", i, m.Time, want)
		}
		sent += m.Sent
		queued += m.Queued
	}
	if len(minutes) != 13 || sent != 6000 || queued != 7 {
		t.Errorf("%d minutes with %d sent, %d queued; want 13, 6000, 7", len(minutes), sent, queued)
	}
	if m := minutes[3]; m.Sent != 600 {
		t.Errorf("the fourth minute has %d, want 600", m.Sent)
	}
}

func TestMinutesAreKeptForAnHour(t *testing.T) {
	t.Parallel()
	var h history
	at := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	for i, step := range []time.Duration{0, time.Minute, 30 * time.Minute, 45 * time.Minute, 3 * time.Hour} {
		at = at.Add(step)
		h.add(at, totals{sent: int64(i + 1)})
		_, minutes := h.rates()
		if n := len(minutes); n == 0 || n > minutesKept || !minutes[n-1].Time.Equal(at.Truncate(time.Minute)) {
			t.Errorf("step %d: %d minutes", i, n)
		}
	}
	if _, minutes := h.rates(); fmt.Sprint(len(minutes), minutes[0].Sent) != "1 1" {
		t.Errorf("after three hours: %v", minutes)
	}
}

func TestHeadlineIsToldWhenItChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, source, _ := newTestServer(t, runningStatus())
		var told []string
		s.opts.Headline = func(line string) { told = append(told, line) }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		pass(10 * time.Second)
		source.change(func(s *Status) { s.Paused.Drain = true })
		pass(10 * time.Second)
		source.change(func(s *Status) { s.Paused.Drain = false })
		pass(10 * time.Second)
		cancel()
		<-done
		want := []string{"All is well. Every commit is taken and sent.",
			"Ready, with problems. Every commit is taken.", "All is well. Every commit is taken and sent."}
		if !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestReasonSaysSinceWhenAndWhatToDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{status: runningStatus()}
		source.change(func(s *Status) { s.Queue.DeadLetters = 2 })
		s := New(Options{Source: source.get, Metrics: NewMetrics("1", ""), Recent: NewRecent(1),
			Control: &fakeControl{}, Logger: discard})
		s.refresh(t.Context())
		began := time.Now()
		time.Sleep(time.Hour) // of the bubble
		source.change(func(s *Status) { s.Queue.DeadLetters = 3; s.Paused.Drain = true; s.Generated = time.Now() })
		s.refresh(t.Context())
		want := []Reason{
			{Code: "DRAIN_PAUSED", Text: "the queue is not drained", Since: time.Now(), Command: "koji-relay resume"},
			{Code: "DEAD_LETTERS", Text: "3 dead letters to decide on: retry or drop", Count: 3, Since: began,
				Command: "koji-relay dead list"},
		}
		if diff := cmp.Diff(want, s.Status().Reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
		source.change(func(s *Status) { s.Queue.DeadLetters, s.Paused.Drain = 0, false })
		s.refresh(t.Context())
		if left := s.Status().Reasons; len(left) != 0 {
			t.Errorf("all is over, and the reasons are %v", left)
		}
	})
}

// A second relay on a host has a file and a unit of its own: a command without them would ask the first one.
func TestCommandsMeanThisRelay(t *testing.T) {
	t.Parallel()
	status := runningStatus()
	status.Unit, status.Config.Option = "koji-relay@new-bus", "--config /etc/koji-relay/new-bus.conf"
	status.Paused.Drain, status.Queue.SetAside = true, 1
	status.HandOver.HandedBack = HandedBack{Events: 1, Last: time.Now()}
	status.judge(time.Now())
	got := map[string]string{}
	for _, r := range status.Reasons {
		got[r.Code] = r.Command
	}
	for code, want := range map[string]string{
		"DRAIN_PAUSED": "koji-relay resume --config /etc/koji-relay/new-bus.conf",
		"TURNED_AWAY":  "koji-relay queue list --config /etc/koji-relay/new-bus.conf",
		"HANDED_BACK":  "journalctl -u koji-relay@new-bus -p err",
	} {
		if got[code] != want {
			t.Errorf("%s: the command is %q, not %q", code, got[code], want)
		}
	}
}
