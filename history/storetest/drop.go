package storetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"koji-relay/history"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// testDropsUnderSearches drops one day after the other while others search, look up, replay and write. None
// of them meets an error, and what is left is found whole.
func testDropsUnderSearches(t *testing.T, s history.Store) {
	const days, each = 4, 40
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for day := range days {
		var some []message.Message
		for n := range each {
			some = append(some, Tagged(day*each+n, today.Add(-time.Duration(day)*24*time.Hour+
				time.Duration(n)*time.Millisecond)))
		}
		Append(t, s, inspect.Queued, some...)
		happen(t, s, &some[0], inspect.Dead)
	}
	left := Tagged(0, today) // of today
	questions := []inspect.HistoryQuery{{}, {Tag: "f4*"}, {Fate: inspect.Dead}, {Build: "package-0"},
		{OldestFirst: true, Content: true}}
	asked, written := 0, days*each
	work := map[string]func(context.Context) error{
		"search": func(ctx context.Context) error {
			q := questions[asked%len(questions)]
			asked++
			found := false
			err := history.Search(ctx, s, q, func(m *inspect.HistoryMessage) error {
				found = found || m.MessageID == left.ID
				return nil
			})
			if err == nil && !found {
				t.Errorf("%+v does not find a message of today", q)
			}
			return err
		},
		"show and plan a replay": func(ctx context.Context) error {
			if _, err := history.Show(ctx, s, left.ID); err != nil {
				return err
			}
			_, err := history.PlanReplay(ctx, s, inspect.HistoryQuery{Tag: "f4*"})
			return err
		},
		"write": func(ctx context.Context) error {
			m := Tagged(written, time.Now())
			written++
			row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Accepted})
			if err != nil {
				return err
			}
			return s.Append(ctx, &history.Batch{Writer: "test", Rows: []history.Row{row},
				Steps: []history.Step{{ID: left.ID, Handed: today,
					Step: inspect.Step{Time: time.Now(), Kind: inspect.Attempt}}}})
		},
	}
	runBesideDrops(t, work, func(between func()) {
		for keep := days - 2; keep >= 0; keep-- {
			between()
			dropDay(t, s, time.Duration(keep)*24*time.Hour)
		}
		between()
	})
	for _, n := range events(t, s, inspect.HistoryQuery{}) {
		if n >= each && n < days*each {
			t.Fatalf("message %d of a dropped day is found", n)
		}
	}
	if got := events(t, s, inspect.HistoryQuery{Until: today.Add(time.Second)}); len(got) != each {
		t.Errorf("of today %d are left, want %d", len(got), each)
	}
}

// runBesideDrops runs all of work again and again while drop runs. between waits until each has been done
// once more: nothing waits for good.
func runBesideDrops(t *testing.T, work map[string]func(context.Context) error, drop func(between func())) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	did := make(map[string]chan struct{}, len(work))
	for name, do := range work {
		once := make(chan struct{})
		did[name] = once
		wg.Go(func() {
			defer close(once)
			for ctx.Err() == nil {
				if err := do(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				select {
				case once <- struct{}{}:
				default: // nobody waits for it now
				}
			}
		})
	}
	drop(func() {
		for name, once := range did {
			select {
			case <-once:
			case <-time.After(time.Minute):
				t.Fatalf("%s does not come to its end", name)
			}
		}
	})
}

// dropDay tidies until a day has gone. A store may refuse while somebody reads that day, as the recorder
// knows: it tries again a minute later.
func dropDay(t *testing.T, s history.Store, keep time.Duration) {
	t.Helper()
	var err error
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); {
		var usage history.Usage
		usage, err = s.Tidy(t.Context(), keep, 1<<40)
		if len(usage.Dropped) > 0 {
			return
		}
	}
	t.Fatalf("no day is dropped with keep = %v: %v", keep, err)
}
