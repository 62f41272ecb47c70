package drain_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/message"
	"koji-relay/queue"
	"koji-relay/queue/drain"
	"koji-relay/queue/storetest"
)

// running runs a drain in the test's bubble until the test ends.
func running(t *testing.T, store queue.Store, sender drain.Sender,
	o drain.Options) (*drain.Drainer, context.CancelFunc) {
	t.Helper()
	o.BatchSize, o.BatchBytes = cmp.Or(o.BatchSize, 100), cmp.Or(o.BatchBytes, 8<<20)
	o.Interval, o.MaxAttempts = cmp.Or(o.Interval, 30*time.Second), cmp.Or(o.MaxAttempts, 8)
	d := drain.New(store, sender, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return d, stop
}

// advance lets the bubble's clock run, and then everything that happens at that time.
func advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestDrainSendsAllInOrderAndEmptiesTheQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 7)...)
		running(t, store, sender, drain.Options{BatchSize: 3})
		synctest.Wait()
		storetest.WantNumbers(t, "sent", sender.numbers(), 1, 2, 3, 4, 5, 6, 7)
		storetest.WantNumbers(t, "left", store.left())
		if len(sender.batches) != 3 {
			t.Errorf("sent in %d batches, want 3", len(sender.batches))
		}
	})
}

type logBuffer struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *logBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// A drain that ends is in the log at once, one that goes on every half minute, and many short ones share a
// line.
func TestLogTellsHowManyQueuedMessagesWereSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 70)...)
		d, _ := running(t, store, sender, drain.Options{RateLimit: 1, BatchSize: 1, Interval: 10 * time.Second,
			Logger: slog.New(slog.NewTextHandler(log, nil))})
		want := func(counts ...string) {
			t.Helper()
			var got []string
			for line := range strings.Lines(log.text()) {
				if _, count, ok := strings.Cut(line, `msg="queued messages were sent" messages=`); ok {
					got = append(got, strings.TrimSpace(count))
				}
			}
			if !slices.Equal(got, counts) {
				t.Errorf("the log tells of %q messages, want %q", got, counts)
			}
		}
		advance(29 * time.Second)
		want()
		advance(2 * time.Second)
		want("31")
		advance(50 * time.Second)
		want("31", "30", "9")
		for i := range 5 {
			store.add(storetest.Unsent(100+i, 100+i)...)
			d.Wake()
			advance(2 * time.Second)
		}
		want("31", "30", "9")
		advance(30 * time.Second)
		want("31", "30", "9", "5")
	})
}

func TestDrainIsWokenAndLooksEveryInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		d, _ := running(t, store, sender, drain.Options{Interval: 10 * time.Second})
		synctest.Wait()
		store.add(storetest.Unsent(1, 1)...)
		d.Wake()
		synctest.Wait()
		storetest.WantNumbers(t, "sent after a wake-up", sender.numbers(), 1)
		store.add(storetest.Unsent(2, 2)...)
		advance(11 * time.Second)
		storetest.WantNumbers(t, "sent after an interval", sender.numbers(), 1, 2)
	})
}

func TestDrainWaitsWhileNoBrokerIsUpAndKeepsPlaces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{down: true}
		store.add(storetest.Unsent(1, 3)...)
		d, _ := running(t, store, sender, drain.Options{})
		advance(time.Minute)
		storetest.WantNumbers(t, "sent", sender.numbers())
		sender.set(func(f *fakeSender) { f.down = false })
		d.Wake()
		synctest.Wait()
		storetest.WantNumbers(t, "sent", sender.numbers(), 1, 2, 3)
	})
}

func TestBrokerLostDuringABatchLeavesTheRestQueued(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 6)...)
		up := true
		sender.outcome = func(m message.Message) message.Outcome {
			if m.Event >= 2 {
				sender.down = true
				return message.Outcome{State: message.Unknown}
			}
			return message.Outcome{Next: message.Done}
		}
		d, _ := running(t, store, sender, drain.Options{BatchSize: 3})
		advance(time.Minute)
		storetest.WantNumbers(t, "left", store.left(), 2, 3, 4, 5, 6)
		if up = store.complete[0]; up {
			t.Error("the pass counts as complete: the next one would not begin with what is left")
		}
		sender.set(func(f *fakeSender) { f.down, f.outcome, f.batches = false, nil, nil })
		d.Wake()
		synctest.Wait()
		storetest.WantNumbers(t, "sent then", sender.numbers(), 2, 3, 4, 5, 6)
	})
}

func TestRefusedMessageHoldsUpNothingAndBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 5)...)
		tried := []time.Time{}
		sender.outcome = func(m message.Message) message.Outcome {
			switch m.Event {
			case 2:
				tried = append(tried, time.Now())
				return message.Outcome{State: message.Rejected, Next: message.Count, Reason: "not allowed"}
			case 3:
				return message.Outcome{State: message.NotSent, Next: message.Dead, Reason: "too large"}
			}
			return message.Outcome{Next: message.Done}
		}
		buried := map[int]string{}
		running(t, store, sender,
			drain.Options{Observe: func(e queue.Entry, _ message.Outcome, s queue.Settlement) {
				if s.Action == queue.Bury {
					buried[e.Message.Event] = s.Reason
				}
			}})
		synctest.Wait()
		storetest.WantNumbers(t, "left at first", store.left(), 2)
		advance(2 * time.Hour)
		storetest.WantNumbers(t, "left at last", store.left())
		if len(tried) != 8 || tried[7].Sub(tried[0]) < time.Hour {
			t.Errorf("%d attempts over %v, want 8 over an hour or more", len(tried), tried[len(tried)-1].Sub(tried[0]))
		}
		if buried[2] != "rejected: not allowed" || buried[3] != "not sent: too large" {
			t.Errorf("dead letters %v", buried)
		}
	})
}

func TestMessageTurnedAwayForAPassingReasonIsTriedForAsLongAsItTakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 1)...)
		tries := 0
		sender.outcome = func(message.Message) message.Outcome {
			tries++
			if tries == 40 {
				return message.Outcome{Next: message.Done}
			}
			return message.Outcome{State: message.Released, Next: message.Later}
		}
		running(t, store, sender, drain.Options{})
		advance(10 * time.Hour)
		storetest.WantNumbers(t, "left", store.left())
		if tries != 40 {
			t.Errorf("%d tries in ten hours, want 40", tries)
		}
	})
}

func TestAcceptedMessageIsNotSentAgainWhileItsDeletionFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{settleErr: errors.New("database is gone")}, &fakeSender{}
		store.add(storetest.Unsent(1, 300)...)
		d, _ := running(t, store, sender, drain.Options{})
		advance(5 * time.Minute)
		before := len(sender.numbers())
		if before == 0 || before > 300 {
			t.Fatalf("%d messages sent while nothing could be deleted", before)
		}
		if n := d.Status().Unsaved; n != before {
			t.Errorf("%d outcomes remembered of %d", n, before)
		}
		store.set(func(f *fakeStore) { f.settleErr = nil })
		advance(time.Minute)
		storetest.WantNumbers(t, "left", store.left())
		sent := sender.numbers()
		slices.Sort(sent)
		if len(sent) != 300 || len(slices.Compact(sent)) != 300 {
			t.Errorf("%d messages sent, want each of 300 once", len(sent))
		}
	})
}

func TestRestOfTheQueueWaitsForOutcomesThatAreNotStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{settleErr: errors.New("no right to delete")}, &fakeSender{}
		store.add(storetest.Unsent(1, 10_000)...)
		d, _ := running(t, store, sender, drain.Options{BatchSize: 100})
		advance(10 * time.Minute)
		if n := d.Status().Unsaved; n == 0 || n > 300 {
			t.Errorf("%d outcomes wait in memory, want at most those of three batches", n)
		}
	})
}

func TestLostLockStopsSending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{lost: true}, &fakeSender{}
		store.add(storetest.Unsent(1, 3)...)
		running(t, store, sender, drain.Options{})
		synctest.Wait()
		storetest.WantNumbers(t, "sent without the lock", sender.numbers())
		store.set(func(f *fakeStore) { f.lost = false })
		advance(10 * time.Second)
		storetest.WantNumbers(t, "sent with it", sender.numbers(), 1, 2, 3)
	})
}

func TestPauseStopsSendingAndResumeGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		d, _ := running(t, store, sender, drain.Options{})
		synctest.Wait()
		d.Pause()
		store.add(storetest.Unsent(1, 3)...)
		d.Wake()
		advance(5 * time.Minute)
		storetest.WantNumbers(t, "sent while paused", sender.numbers())
		if store.expiries < 5 {
			t.Errorf("expiry ran %d times in five minutes of pause", store.expiries)
		}
		d.Resume()
		synctest.Wait()
		storetest.WantNumbers(t, "sent after resume", sender.numbers(), 1, 2, 3)
	})
}

func TestExpiryRunsWhileNoBrokerIsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{down: true}
		running(t, store, sender, drain.Options{})
		advance(10*time.Minute + time.Second)
		if store.expiries != 11 {
			t.Errorf("expiry ran %d times in ten minutes, want each minute", store.expiries)
		}
	})
}

func TestRateLimitHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 1000)...)
		running(t, store, sender, drain.Options{RateLimit: 20})
		advance(10 * time.Second)
		if n := len(sender.numbers()); n < 180 || n > 240 {
			t.Errorf("%d messages sent in ten seconds at 20 a second", n)
		}
	})
}

func TestStopFinishesTheBatchInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{delay: 3 * time.Second}
		store.add(storetest.Unsent(1, 250)...)
		_, stop := running(t, store, sender, drain.Options{})
		advance(time.Second)
		stop()
		if len(sender.numbers()) != 100 || len(store.left()) != 150 || sender.canceled {
			t.Errorf("%d sent, %d left, cut short: %v; want 100, 150, false", len(sender.numbers()), len(store.left()),
				sender.canceled)
		}
	})
}

func TestStopGivesUpOnASilentBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{delay: time.Hour}
		store.add(storetest.Unsent(1, 250)...)
		_, stop := running(t, store, sender, drain.Options{})
		advance(time.Second)
		began := time.Now()
		stop()
		if took := time.Since(began); took > drain.FinishTime+drain.SaveTime {
			t.Errorf("stopping took %v", took)
		}
		if len(store.left()) != 250 {
			t.Errorf("%d left, want all 250", len(store.left()))
		}
	})
}

// A message that waits for credit gets no answer: what is stored is safe, and need not be waited for.
func TestStopDoesNotWaitWhereNobodyAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{delay: time.Hour, silent: true}
		store.add(storetest.Unsent(1, 3)...)
		_, stop := running(t, store, sender, drain.Options{})
		advance(time.Second)
		began := time.Now()
		stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %v", took)
		}
		storetest.WantNumbers(t, "left", store.left(), 1, 2, 3)
	})
}

func TestUnreadableRowBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{}, &fakeSender{}
		store.add(storetest.Unsent(1, 2)...)
		store.entries[0].Unreadable = "read the properties: not a JSON object"
		var buried []queue.Settlement
		running(t, store, sender,
			drain.Options{Observe: func(_ queue.Entry, _ message.Outcome, s queue.Settlement) {
				if s.Action == queue.Bury {
					buried = append(buried, s)
				}
			}})
		synctest.Wait()
		storetest.WantNumbers(t, "sent", sender.numbers(), 2)
		if len(buried) != 1 || buried[0].ID != storetest.Message(1).ID {
			t.Errorf("buried %v, want message 1", buried)
		}
	})
}

func TestBusyDrainIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, sender := &fakeStore{held: true}, &fakeSender{}
		store.add(storetest.Unsent(1, 1)...)
		running(t, store, sender, drain.Options{})
		advance(5 * time.Second)
		storetest.WantNumbers(t, "sent while another drains", sender.numbers())
		store.set(func(f *fakeStore) { f.held = false })
		advance(3 * time.Second)
		storetest.WantNumbers(t, "sent then", sender.numbers(), 1)
	})
}
