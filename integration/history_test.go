package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReplayBringsWhatAConsumerMissed: a consumer lost all that it was sent. One replay brings it again,
// equal to the byte, although the relay is killed in its middle; the history knows of each message before and
// after.
func TestReplayBringsWhatAConsumerMissed(t *testing.T) {
	t.Parallel()
	broker := newServer(t, rabbitmq40.service)
	t.Cleanup(func() { logOnFailure(t, broker); broker.remove() })
	postgres := startPostgres(t)
	broker.awaitBroker(t)
	for _, store := range []string{"postgres", "file"} {
		t.Run(store, func(t *testing.T) {
			part := newPart()
			open := durable(t, rabbitmq40, broker, part, "build.tag")
			set := forBroker(rabbitmq40, part, broker)
			if store == "postgres" {
				set = set.with(newDatabase(t, postgres, part))
			}
			r := startRelay(t, set, broker)
			const n = 400
			body, ids := tagCommit(n)
			if a := r.mustPost(t, body); a.Sent+a.Queued != n {
				t.Fatalf("of %d messages the relay answers %+v", n, a)
			}
			eventually(t, 60*time.Second, "the history has all", func() error {
				if got := strings.Count(r.command(t, "", "history", "--fate", "accepted", "--json"),
					"\n"); got != n {
					return fmt.Errorf("it has %d of %d", got, n)
				}
				return nil
			})
			r.command(t, "", "replay", "--tag", "f39-*", "--since", "1h", "--rate", "60", "--yes",
				"--background") // slow, so that the last one is replayed after the kill, and its record not lost
			eventually(t, 30*time.Second, "the replay is on its way", func() error {
				if s := replayState(t, r); s.Done == 0 {
					return fmt.Errorf("it is at %+v", s)
				}
				return nil
			})
			r.kill(t)
			r.start(t)
			eventually(t, 60*time.Second, "the replay ends", func() error {
				if s := replayState(t, r); s.State != "done" || s.Done < n {
					return fmt.Errorf("it is at %+v", s)
				}
				return nil
			})
			box := open()
			box.waitFor(t, 30*time.Second, ids...)
			twice(t, box, ids)
			if code := r.stop(t); code != 0 {
				t.Errorf("the relay ended with %d", code)
			}
			shown := r.command(t, "", "history", "show", ids[n-1]) // from the store itself
			for _, step := range []string{"handed over", "accepted", "replayed"} {
				if !strings.Contains(shown, step) {
					t.Errorf("the history does not tell of %q:\n%s", step, shown)
				}
			}
		})
	}
}

type replayed struct {
	State string `json:"state"`
	Done  int    `json:"done"`
}

// replayState is how far the only replay is.
func replayState(t testing.TB, r *relay) (s replayed) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.command(t, "", "replay", "list", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// twice checks that each message has arrived at least twice, each time the same.
func twice(t *testing.T, box *inbox, ids []string) {
	t.Helper()
	eventually(t, 30*time.Second, "each message has arrived twice", func() error {
		all, err := box.all()
		if err != nil {
			return err
		}
		first, times := map[string]string{}, map[string]int{}
		for _, d := range all {
			slices.SortFunc(d.Props, func(a, b prop) int {
				return cmp.Compare(a.Key,
					b.Key)
			}) // a map has no order
			text, err := json.Marshal(d)
			if err != nil {
				return err
			}
			if known := first[d.ID]; known != "" && known != string(text) {
				t.Fatalf("message %s arrived as\n%s\nand then as\n%s", d.ID, known, text)
			}
			first[d.ID] = string(text)
			times[d.ID]++
		}
		for _, id := range ids {
			if times[id] < 2 {
				return fmt.Errorf("%s has arrived %d times", id, times[id])
			}
		}
		return nil
	})
}
