package storetest

import (
	"slices"
	"testing"
	"time"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// heldReplays gives those on which a relay works.
func heldReplays(t *testing.T, s history.Store) (held []int64) {
	t.Helper()
	all, err := s.Replays(t.Context())
	must(t, err)
	for i := range all {
		if all[i].Held {
			held = append(held, all[i].ID)
		}
	}
	return held
}

func testReplays(t *testing.T, s history.Store) {
	const withPassword, without = "amqp://koji:secret@mq.example.com:5672",
		"amqp://koji:xxxxx@mq.example.com:5672"
	ctx, lease := t.Context(), time.Minute
	first := inspect.Replay{Query: inspect.HistoryQuery{Tag: "f40-*"}, Rate: 7, State: inspect.ReplayRuns,
		Total: 3, URL: withPassword}
	must(t, s.AddReplay(ctx, &first, nil))
	m := Tagged(1, noon())
	row, err := history.NewRow(&m, inspect.ViaSocket, inspect.Step{Time: m.Created, Kind: inspect.Accepted})
	must(t, err)
	second := inspect.Replay{File: true, Rate: 8, State: inspect.ReplayRuns, URL: withPassword}
	must(t, s.AddReplay(ctx, &second, []history.Row{row, row}))
	if second.ID <= first.ID || first.ID == 0 {
		t.Errorf("the ids are %d and %d", first.ID, second.ID)
	}
	if held := heldReplays(t, s); len(held) != 0 {
		t.Errorf("a relay works on %v, and none has claimed them", held)
	}
	both, err := s.ClaimReplays(ctx, "one", lease)
	must(t, err)
	if len(both) != 2 || both[0].ID != first.ID || both[0].Query != first.Query || both[1].ID != second.ID ||
		!both[1].File {
		t.Fatalf("claimed %+v, want both, the oldest first", both)
	}
	if held := heldReplays(t, s); !slices.Equal(held, []int64{first.ID, second.ID}) {
		t.Errorf("a relay works on %v, want both", held)
	}
	// Each is saved by itself: the one that stands, and the one that goes on.
	claimed, stands := &both[0], noon()
	claimed.Done, claimed.Cursor = 2, inspect.Ref{Handed: noon(), ID: ID(1)}
	claimed.Error, claimed.Stands, claimed.Seen = "refused", stands, stands.Add(time.Minute)
	both[1].Done, both[1].Cursor.Line = 1, 1
	for i := range both {
		if runs, err := s.SaveReplay(ctx, &both[i], "one"); err != nil || !runs {
			t.Fatalf("saving replay %d gives %v, %v", both[i].ID, runs, err)
		}
	}
	again, err := s.ClaimReplays(ctx, "one", lease)
	must(t, err)
	if len(again) != 2 || again[0].Done != 2 || again[0].Cursor.ID != ID(1) ||
		!again[0].Cursor.Handed.Equal(noon()) || again[0].Error != "refused" || !again[0].Stands.Equal(stands) ||
		!again[0].Seen.Equal(stands.Add(time.Minute)) || again[1].Done != 1 || again[1].Cursor.Line != 1 {
		t.Errorf("after a restart they are at %+v", again)
	}
	_, err = s.ClaimReplays(ctx, "one", -time.Second) // its lease is over
	must(t, err)
	if held := heldReplays(t, s); len(held) != 0 {
		t.Errorf("a relay works on %v, and its lease is over", held)
	}
	if ran, err := s.CancelReplay(ctx, first.ID); err != nil || !ran {
		t.Errorf("cancelling it gives %v, %v", ran, err)
	}
	if runs, err := s.SaveReplay(ctx, claimed, "one"); err != nil || runs {
		t.Errorf("a cancelled replay runs: %v, %v", runs, err)
	}
	if ran, _ := s.CancelReplay(ctx, first.ID); ran {
		t.Error("it was cancelled twice")
	}
	lines, last, err := s.Lines(ctx, second.ID, 1, 10)
	must(t, err)
	if len(lines) != 1 || last != 2 || lines[0].ID != m.ID || lines[0].Address != m.Address ||
		string(lines[0].Content) != string(row.Content) {
		t.Errorf("the lines behind the first are %+v", lines)
	}
	second.State = inspect.ReplayDone
	if again, err = s.ClaimReplays(ctx, "one", lease); err != nil || len(again) != 1 ||
		again[0].ID != second.ID {
		t.Fatalf("claimed %+v, %v, want the second", again, err)
	}
	if runs, err := s.SaveReplay(ctx, &second, "one"); err != nil || !runs {
		t.Errorf("ending it gives %v, %v", runs, err)
	}
	if lines, _, err = s.Lines(ctx, second.ID, 0, 10); err != nil || len(lines) != 0 {
		t.Errorf("a replay that is done keeps %d lines, %v", len(lines), err)
	}
	all, err := s.Replays(ctx)
	must(t, err)
	if len(all) != 2 || all[0].State != inspect.ReplayCancelled || all[1].State != inspect.ReplayDone ||
		all[1].ID != second.ID {
		t.Errorf("the replays are %+v", all)
	}
	for _, r := range all {
		if r.Held {
			t.Errorf("replay %d is %s, and a relay works on it", r.ID, r.State)
		}
		if r.URL != without {
			t.Errorf("a replay that is %s has the URL %q; want it without its password", r.State, r.URL)
		}
	}
}
