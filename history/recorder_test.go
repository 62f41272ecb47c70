package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// memory is a store that keeps batches, and is away when told.
type memory struct {
	Store // for what these tests do not call

	mu      sync.Mutex // guards the fields below
	away    error
	hangs   bool // Append answers nothing until its context ends
	alive   time.Time
	batches []Batch
	ended   bool
}

func (s *memory) Append(ctx context.Context, b *Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hangs {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return ctx.Err()
	}
	if s.away != nil {
		return s.away
	}
	s.batches = append(s.batches, *b)
	return nil
}

func (s *memory) Begin(context.Context, string) (time.Time, error) { return s.alive, s.away }

func (s *memory) End(context.Context, string) error {
	s.ended = true
	return s.away
}

func (s *memory) Tidy(context.Context, time.Duration, int64) (Usage, error) { return Usage{}, nil }

func (s *memory) set(away error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func (s *memory) told() (events []int, gaps []inspect.Gap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		for _, r := range b.Rows {
			events = append(events, r.Event)
		}
		gaps = append(gaps, b.Gaps...)
	}
	return events, gaps
}

func aMessage(n int, body string) *message.Message {
	return &message.Message{ID: uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n)).String(), Event: n,
		Address: "build.tag",
		Body:    body, Created: time.Now()}
}

// running runs a recorder in a bubble of synthetic time until stop.
func running(t *testing.T, s *memory, o Options) (r *Recorder, stop func()) {
	t.Helper()
	r = NewRecorder(s, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	synctest.Wait()
	return r, func() {
		cancel()
		<-done
	}
}

var accepted = inspect.Step{Kind: inspect.Accepted}

func TestMessagesAreWrittenWithinASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r, stop := running(t, s, Options{})
		defer stop()
		r.Message(aMessage(1, "{}"), inspect.ViaSocket, accepted)
		time.Sleep(time.Second)
		if events, _ := s.told(); !slices.Equal(events, []int{1}) {
			t.Errorf("a second later %v are written", events)
		}
	})
}

// The race detector looks on.
func TestAReloadMeetsABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r, stop := running(t, s, Options{})
		var reloading sync.WaitGroup
		reloading.Go(func() {
			for i := range 2000 {
				r.Configure(time.Duration(i)*time.Hour, int64(i))
			}
		})
		for i := range 50 {
			r.Message(aMessage(i, "{}"), inspect.ViaSocket, accepted)
			if err := r.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		}
		reloading.Wait()
		stop()
		if events, _ := s.told(); len(events) != 50 {
			t.Errorf("%d messages are in the store", len(events))
		}
	})
}

func TestFlushReturnsWhenAllIsInTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r, stop := running(t, s, Options{})
		defer stop()
		for n := range 3 {
			r.Message(aMessage(n, "{}"), inspect.ViaOutbox, accepted)
			began := time.Now()
			if err := r.Flush(t.Context()); err != nil || time.Since(began) > 0 {
				t.Errorf("flushing took %v, error %v", time.Since(began), err)
			}
			if events, _ := s.told(); len(events) != n+1 {
				t.Errorf("after a flush %v are written", events)
			}
		}
		if err := r.Flush(t.Context()); err != nil {
			t.Errorf("with nothing to write: %v", err)
		}
		s.set(errors.New("no route to host"))
		r.Message(aMessage(4, "{}"), inspect.ViaOutbox, accepted)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Flush(ctx); err == nil {
			t.Error("the store is away, and all is said to be there")
		}
		began := time.Now()
		if err := r.Flush(t.Context()); err == nil || time.Since(began) > 0 {
			t.Errorf("a store that is known to be away was waited for %v, error %v", time.Since(began), err)
		}
		r.mu.Lock()
		waiting := len(r.waiters)
		r.mu.Unlock()
		if waiting > 0 {
			t.Errorf("nobody waits any more, and yet %d are remembered", waiting)
		}
		s.set(nil)
		time.Sleep(10 * time.Second)
	})
}

func TestWhatIsLeftIsWrittenAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r, stop := running(t, s, Options{})
		r.Message(aMessage(1, "{}"), inspect.ViaSocket, accepted)
		r.Step(aMessage(1, "").ID, time.Now(), inspect.Step{Kind: inspect.Replayed})
		stop()
		if events, _ := s.told(); !slices.Equal(events, []int{1}) || !s.ended {
			t.Errorf("at the end %v are written, ended %v", events, s.ended)
		}
	})
}

func TestEveryMessageIsInTheStoreOrInAGap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		missed := 0
		r, stop := running(t, s, Options{Missed: func(n int) { missed += n }})
		s.set(errors.New("no route to host"))
		const all = 200
		body := `{"pad": "` + strings.Repeat("x", 100_000) + `"}` // 20 MB, where 4 MiB have room
		for n := range all {
			r.Message(aMessage(n, body), inspect.ViaSocket, accepted)
			time.Sleep(20 * time.Millisecond)
		}
		if r.Stats().Error == "" {
			t.Error("the store is away, and the recorder does not say so")
		}
		s.set(nil)
		time.Sleep(10 * time.Second)
		stop()
		events, gaps := s.told()
		lost := 0
		for _, g := range gaps {
			lost += g.Messages
			if g.Began.IsZero() || g.Ended.Before(g.Began) || g.Reason == "" {
				t.Errorf("gap %+v", g)
			}
		}
		slices.Sort(events)
		if unique := len(slices.Compact(events)); unique+lost != all || lost == 0 || unique < 30 {
			t.Errorf("%d in the store and %d in gaps, of %d", unique, lost, all)
		}
		if stats := r.Stats(); stats.Missed != int64(lost) || missed != lost || stats.Error != "" ||
			stats.Recorded != int64(len(events)) {
			t.Errorf("the recorder counts %+v, and told of %d", stats, missed)
		}
	})
}

// The gap of a killed relay covers all that may be missing: until its last sign of life, or until now where
// nothing tells.
func TestTheGapOfAKilledRelayEndsWhenItWasSeenLast(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		seen          time.Duration // behind the last write; 0: there is no sign
		atLeast, most time.Duration
		reason        string
	}{
		"the store was prompt": {time.Second, time.Second, 5 * time.Second, inspect.Killed},
		"the store was slow":   {9 * time.Second, 9 * time.Second, 13 * time.Second, inspect.KilledBehind},
		"the store was away": {20 * time.Minute, 20 * time.Minute, 20*time.Minute + 4*time.Second,
			inspect.KilledBehind},
		"nothing tells":           {0, time.Hour, time.Hour + time.Second, inspect.Killed},
		"the sign is an old one":  {-time.Hour, time.Hour, time.Hour + time.Second, inspect.Killed},
		"the sign is a bit older": {-time.Second, 2 * time.Second, 5 * time.Second, inspect.Killed},
	} {
		path := filepath.Join(t.TempDir(), "sign")
		synctest.Test(t, func(t *testing.T) {
			alive := time.Now().Add(-time.Hour)
			if test.seen != 0 {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(path, alive.Add(test.seen), alive.Add(test.seen)); err != nil {
					t.Fatal(err)
				}
			}
			s := &memory{alive: alive}
			_, stop := running(t, s, Options{Writer: "hub1", Sign: path})
			time.Sleep(time.Second)
			stop()
			_, gaps := s.told()
			if len(gaps) != 1 || !gaps[0].Began.Equal(alive) || gaps[0].Writer != "hub1" {
				t.Fatalf("%s: gaps %+v", name, gaps)
			}
			if took := gaps[0].Ended.Sub(alive); took < test.atLeast || took > test.most ||
				gaps[0].Reason != test.reason {
				t.Errorf("%s: a gap of %v, %q", name, took, gaps[0].Reason)
			}
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s: an orderly end left the sign", name)
			}
		})
	}
}

func TestTheSignIsRenewedWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sign")
	synctest.Test(t, func(t *testing.T) {
		s := &memory{hangs: true, alive: time.Now()}
		r, stop := running(t, s, Options{Sign: path})
		r.Message(aMessage(1, "{}"), inspect.ViaSocket, accepted)
		for range 10 {
			time.Sleep(time.Minute)
			if seen, _ := sign(path).read(); time.Since(seen) > 2*aliveEvery {
				t.Fatalf("the last sign of life is %v old", time.Since(seen))
			}
		}
		stop()
	})
}

// A relay is stopped while its store does not answer. It ends in time all the same, and the next start
// records what is missing: once.
func TestWhatCannotBeWrittenAtTheEndIsAGapAtTheNextStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sign")
	synctest.Test(t, func(t *testing.T) {
		missed := 0
		s := &memory{}
		r, stop := running(t, s, Options{Writer: "hub1", Sign: path, Missed: func(n int) { missed += n }})
		r.Message(aMessage(0, "{}"), inspect.ViaSocket, accepted)
		time.Sleep(time.Second)
		s.mu.Lock()
		s.hangs = true
		s.alive = time.Now()
		s.mu.Unlock()
		began := time.Now()
		r.Message(aMessage(1, "{}"), inspect.ViaSocket, accepted) // on its way at the stop
		time.Sleep(time.Second)
		r.Message(aMessage(2, "{}"), inspect.ViaSocket, accepted) // in the buffer
		r.Step(aMessage(1, "").ID, time.Now(), inspect.Step{Kind: inspect.Replayed})
		stopped := time.Now()
		stop()
		if took := time.Since(stopped); took > 5*time.Second {
			t.Errorf("the end took %v", took)
		}
		if missed != 2 || r.Stats().Missed != 2 {
			t.Errorf("%d are counted as missed, want 2", missed)
		}
		time.Sleep(time.Hour)
		s.hangs, s.batches = false, nil
		for range 2 { // starts
			_, stop = running(t, s, Options{Writer: "hub1", Sign: path})
			time.Sleep(time.Second)
			stop()
			s.alive = time.Time{} // it ended
		}
		_, gaps := s.told()
		if len(gaps) != 1 || gaps[0].Messages != 2 || gaps[0].Began.Before(began) ||
			gaps[0].Ended.Before(stopped) ||
			gaps[0].Ended.Sub(stopped) > 5*time.Second || gaps[0].Reason == inspect.Killed {
			t.Errorf("the gaps are %+v", gaps)
		}
	})
}

func TestAnIdleRelaySaysThatItIsAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		_, stop := running(t, s, Options{})
		time.Sleep(20 * time.Second)
		stop()
		if n := len(s.batches); n < 8 || n > 12 {
			t.Errorf("in 20 s it wrote %d times", n)
		}
	})
}

func TestAMessageThatCannotBeRecordedIsAGap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &memory{}
		r, stop := running(t, s, Options{})
		bad := aMessage(1, "{}")
		bad.ID = "not a UUID"
		r.Message(bad, inspect.ViaSocket, accepted)
		r.Message(aMessage(2, "{}"), inspect.ViaSocket, accepted)
		time.Sleep(time.Second)
		stop()
		events, gaps := s.told()
		if !slices.Equal(events, []int{2}) || len(gaps) != 1 || gaps[0].Messages != 1 {
			t.Errorf("written %v, gaps %+v", events, gaps)
		}
	})
}

func TestKeysOfAMessage(t *testing.T) {
	t.Parallel()
	build := []message.Prop{{Key: "name", Value: "a-b"}, {Key: "version", Value: "1"}, {Key: "release",
		Value: "2.el9"}}
	for _, test := range []struct {
		callback string
		props    []message.Prop
		want     Keys
	}{
		{"postTag", append(build, message.Prop{Key: "tag", Value: "t"}, message.Prop{Key: "user",
			Value: "u"}),
			Keys{Package: "a-b", Build: "a-b-1-2.el9", Tag: "t", User: "u"}},
		{"preTaskStateChange", []message.Prop{{Key: "id", Value: int64(7)}}, Keys{Task: 7}},
		{"postRepoDone", []message.Prop{{Key: "task_id", Value: int64(8)}, {Key: "tag", Value: "t"}},
			Keys{Task: 8, Tag: "t"}},
		{"postOther", []message.Prop{{Key: "id", Value: int64(9)}, {Key: "name", Value: nil}}, Keys{}},
	} {
		if got := KeysOf(&message.Message{Callback: test.callback, Props: test.props}); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.callback, got, test.want)
		}
	}
	for build, want := range map[string]string{"a-b-1-2.el9": "a-b", "bash": "bash", "a-b": "a-b",
		"-1-2": "-1-2"} {
		if got := packageOf(build); got != want {
			t.Errorf("the package of %q is %q, want %q", build, got, want)
		}
	}
}
