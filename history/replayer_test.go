package history_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/history"
	"koji-relay/history/file"
	"koji-relay/history/storetest"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// replaySite is a history with messages, and a Replayer whose sinks are known by the URL of their replay. It
// lives in a bubble of synthetic time.
type replaySite struct {
	*testing.T
	store history.Store
	began time.Time

	mu    sync.Mutex // guards the fields below
	sinks map[string]*turnSink
	order []string // the URL of each batch that was taken
	takes bool     // what refuses
}

// turnSink does what its replay's URL says.
type turnSink struct {
	site    *replaySite
	url     string
	sent    int
	last    time.Time
	sending bool
}

var errRefused = errors.New("connection refused")

func (s *turnSink) Send(ctx context.Context, _ *inspect.Replay, ms []message.Message) (int, int, error) {
	s.site.mu.Lock()
	defer s.site.mu.Unlock()
	switch s.url {
	case "silent":
		s.sending = true
		s.site.mu.Unlock()
		<-ctx.Done()
		s.site.mu.Lock()
		s.sending = false
		return 0, 0, ctx.Err()
	case "refuses":
		if !s.site.takes {
			return 0, 0, errRefused
		}
	}
	s.sent, s.last = s.sent+len(ms), time.Now()
	s.site.order = append(s.site.order, s.url)
	return len(ms), 0, nil
}

func (s *turnSink) Waiting(_ context.Context, ids []string) (int, error) {
	if s.url == "queue stands" {
		return len(ids), nil
	}
	return 0, nil
}

func (*turnSink) Close() {}

func newReplaySite(t *testing.T, messages int) *replaySite {
	store, err := file.Open(filepath.Join(t.TempDir(), "history"))
	if err != nil {
		t.Fatal(err)
	}
	s := &replaySite{T: t, store: store, sinks: map[string]*turnSink{}}
	handed := time.Now().Add(-time.Minute).Truncate(time.Microsecond)
	var all []message.Message
	for n := range messages {
		all = append(all, storetest.Tagged(n, handed.Add(time.Duration(n)*time.Millisecond)))
	}
	storetest.Append(t, store, inspect.Accepted, all...)
	return s
}

func (s *replaySite) add(url string, rate float64) int64 {
	r := inspect.Replay{URL: url, Rate: rate, State: inspect.ReplayRuns,
		Query: inspect.HistoryQuery{Tag: "f4*", Until: time.Now()}}
	if err := s.store.AddReplay(s.Context(), &r, nil); err != nil {
		s.Fatal(err)
	}
	return r.ID
}

// run works on the replays of a store until stop, which closes the site's.
func (s *replaySite) run(store history.Store) (stop func()) {
	end := s.work(store)
	return func() {
		end()
		if err := s.store.Close(); err != nil {
			s.Error(err)
		}
	}
}

// work works on the replays of a store until stop.
func (s *replaySite) work(store history.Store) (stop func()) {
	s.began = time.Now()
	r := history.NewReplayer(store, history.ReplayerOptions{Writer: "test",
		Logger: slog.New(slog.DiscardHandler),
		Open: func(_ context.Context, r *inspect.Replay) (history.Sink, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			sink := s.sinks[r.URL]
			if sink == nil {
				sink = &turnSink{site: s, url: r.URL}
				s.sinks[r.URL] = sink
			}
			return sink, nil
		},
		Note: func(string, time.Time, inspect.Step) {}})
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	}
}

func (s *replaySite) list() map[string]inspect.Replay {
	all, err := s.store.Replays(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	found := map[string]inspect.Replay{}
	for _, r := range all {
		found[r.URL] = r
	}
	return found
}

func (s *replaySite) has(url string) turnSink {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sinks[url] == nil {
		return turnSink{}
	}
	return *s.sinks[url]
}

// Replays that cannot go on were begun first: the others end in their time all the same, and the list says of
// each what it does.
func TestAReplayThatCannotGoOnHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		s := newReplaySite(t, n)
		silent := s.add("silent", 100)
		s.add("refuses", 100)
		s.add("queue stands", 40)
		s.add("fast", 100)
		s.add("slow", 50)
		s.add("no rate", 0)
		if _, err := s.store.CancelReplay(t.Context(), s.list()["refuses"].ID); err != nil {
			t.Fatal(err)
		}
		s.add("refuses", 10) // and one that was begun later than the good ones
		stop := s.run(s.store)
		defer stop()
		time.Sleep(2500 * time.Millisecond) // of synthetic time, as below
		for url, rate := range map[string]int{"fast": 100, "slow": 50} {
			if got := s.has(url).sent; got < 2*rate || got > 3*rate {
				t.Errorf("after 2.5 s %s has sent %d messages at %d a second", url, got, rate)
			}
		}
		time.Sleep(17500 * time.Millisecond)
		list := s.list()
		for url, rate := range map[string]time.Duration{"fast": 100, "slow": 50} {
			r, took := list[url], s.has(url).last.Sub(s.began)
			if r.State != inspect.ReplayDone || r.Done != n || s.has(url).sent != n || r.Held ||
				took > (n/rate+2)*time.Second {
				t.Errorf("%s took %v: %+v", url, took, r)
			}
		}
		for url, want := range map[string]string{"refuses": "connection refused", "queue stands": "",
			"no rate": "its rate is 0"} {
			r := list[url]
			if r.State != inspect.ReplayRuns || !strings.Contains(r.Error, want) || !r.Held || r.Stands.IsZero() ||
				r.Stands.Sub(s.began) > 15*time.Second || time.Since(r.Seen) > 10*time.Second {
				t.Errorf("of %s the list says %+v", url, r)
			}
		}
		if r := list["queue stands"]; r.Done != 200 || r.Waiting != 200 {
			t.Errorf("where the queue stands the list says %+v", r)
		}
		s.mu.Lock()
		s.takes = true
		s.mu.Unlock()
		time.Sleep(10 * time.Second)
		if r := s.list()["refuses"]; r.State != inspect.ReplayRuns || r.Error != "" || !r.Stands.IsZero() ||
			r.Done < 10 || r.Done > 110 {
			t.Errorf("it goes on, and the list says %+v", r)
		}
		// A replay that hangs in a call ends when it is cancelled, and not when the call does.
		if !s.has("silent").sending {
			t.Error("nothing was sent to the silent broker")
		}
		if ran, err := s.store.CancelReplay(t.Context(), silent); err != nil || !ran {
			t.Errorf("cancelling gives %v, %v", ran, err)
		}
		time.Sleep(2 * time.Second)
		if s.has("silent").sending {
			t.Error("it is cancelled, and goes on")
		}
	})
}

// What was put into the queue before a restart is waited for as what comes after it: nothing more is put
// there ahead, and the replay is not done before.
func TestAReplayRemembersWhatWaitsOverARestart(t *testing.T) {
	t.Parallel()
	for name, messages := range map[string]int{"all of it waits": 150, "as much as may": 2000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newReplaySite(t, messages)
				s.add("queue stands", 100)
				var before inspect.Replay
				for range 3 {
					stop := s.work(s.store)
					time.Sleep(time.Minute)
					stop()
					p := s.list()["queue stands"]
					if p.State != inspect.ReplayRuns || p.Waiting != p.Done || p.Done != cmp.Or(before.Done, p.Done) {
						t.Fatalf("before a restart it was %+v, now it is %+v", before, p)
					}
					before = p
				}
				s.mu.Lock()
				s.sinks["queue stands"].url = "queue moves"
				s.mu.Unlock()
				stop := s.run(s.store)
				time.Sleep(time.Minute)
				all, err := s.store.Replays(t.Context())
				if err != nil || all[0].State != inspect.ReplayDone || all[0].Done != messages {
					t.Errorf("in the end it is %+v, %v", all[0], err)
				}
				stop()
			})
		})
	}
}

func TestReplaysTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newReplaySite(t, 2000)
		urls := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		for _, url := range urls {
			s.add(url, 1e6) // as fast as they can
		}
		stop := s.run(s.store)
		time.Sleep(5 * time.Second)
		stop()
		got := map[string]int{}
		for _, url := range s.order { // until the first of them has all
			if got[url]++; got[url] == 10 {
				break
			}
		}
		for _, url := range urls {
			if got[url] < 7 {
				t.Errorf("when one had all its 10 batches taken, %s had %d: %v", url, got[url], s.order)
			}
		}
	})
}

// leasing fails to claim, or gives the replays to another relay.
type leasing struct {
	history.Store
	away, lost atomic.Bool
	claims     atomic.Int64
}

func (l *leasing) ClaimReplays(ctx context.Context, writer string, lease time.Duration) ([]inspect.Replay,
	error) {
	if l.away.Load() {
		<-ctx.Done() // it does not answer
		return nil, ctx.Err()
	}
	l.claims.Add(1)
	if l.lost.Load() {
		return nil, nil
	}
	return l.Store.ClaimReplays(ctx, writer, lease)
}

// A relay renews its lease while a call takes long, and ends the call before another relay may have the
// replay: no replay is sent by two.
func TestARelaySendsOnlyWhatItHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newReplaySite(t, 10)
		s.add("silent", 10)
		l := &leasing{Store: s.store}
		stop := s.run(l)
		defer stop()
		time.Sleep(time.Minute)
		if claims := l.claims.Load(); claims < 50 || !s.has("silent").sending {
			t.Errorf("within a minute it claimed %d times, and sends: %v", claims, s.has("silent").sending)
		}
		l.away.Store(true)
		time.Sleep(5 * time.Second)
		if !s.has("silent").sending {
			t.Error("it gave up a replay for five seconds without the store")
		}
		time.Sleep(7 * time.Second)
		if s.has("silent").sending {
			t.Error("it sends when the lease of 15 s may be over soon")
		}
		l.away.Store(false)
		time.Sleep(10 * time.Second)
		if !s.has("silent").sending {
			t.Error("the store is back, and the replay does not go on")
		}
		l.lost.Store(true)
		time.Sleep(2 * time.Second)
		if s.has("silent").sending {
			t.Error("another relay has the replay, and this one sends it")
		}
	})
}

// unsaving cannot save.
type unsaving struct {
	history.Store
	away atomic.Bool
}

func (u *unsaving) SaveReplay(ctx context.Context, r *inspect.Replay, writer string) (bool, error) {
	if u.away.Load() {
		return false, errRefused
	}
	return u.Store.SaveReplay(ctx, r, writer)
}

func TestWhatCannotBeSavedIsNotGoneOnWith(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newReplaySite(t, 100)
		s.add("one", 50)
		u := &unsaving{Store: s.store}
		u.away.Store(true)
		stop := s.run(u)
		defer stop()
		time.Sleep(time.Minute)
		if got := s.has("one").sent; got != 10 { // a fifth of a second's worth
			t.Errorf("it sent %d messages, and the store knows of none", got)
		}
		u.away.Store(false)
		time.Sleep(time.Minute)
		if r := s.list()["one"]; r.State != inspect.ReplayDone || r.Done != 100 || s.has("one").sent != 100 {
			t.Errorf("then it sent %d messages: %+v", s.has("one").sent, r)
		}
	})
}
