package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAReplayThatCannotGoOnHoldsUpNoOther: one replay's broker refuses connections, another one's is silent.
// Those that were begun later end all the same, and the list says what holds up the first two. They survive a
// kill, and end when their brokers are back. In a fleet no message is sent by two relays.
func TestAReplayThatCannotGoOnHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	broker := newServer(t, rabbitmq40.service)
	t.Cleanup(func() { logOnFailure(t, broker); broker.remove() })
	postgres := startPostgres(t)
	broker.awaitBroker(t)
	for _, store := range []string{"postgres", "file"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			part := newPart()
			set := forBroker(rabbitmq40, part, broker).with(settings{"broker.send_timeout": "4"})
			durable(t, rabbitmq40, broker, part, "build.tag")
			var relays []*relay
			if store == "postgres" {
				set = set.with(newDatabase(t, postgres, part))
				relays = append(relays, startRelay(t, set, broker)) // and a second one of the fleet
			}
			r := startRelay(t, set, broker)
			relays = append(relays, r)
			const n = 200
			body, ids := tagCommit(n)
			if a := r.mustPost(t, body); a.Sent != n {
				t.Fatalf("of %d messages the relay answers %+v", n, a)
			}
			eventually(t, 60*time.Second, "the history has all", func() error { return historyHas(t, r, n) })

			refused, silent := newWay(t, "refused", broker.addr()), newWay(t, "silent", broker.addr())
			boxes := map[string]func() *inbox{}
			begin := func(name, address, rate string) {
				own := part + "-" + name
				boxes[name] = durable(t, rabbitmq40, broker, own, "build.tag")
				r.command(t, "", "replay", "--tag", "f39-*", "--url",
					"amqp://"+user+":"+password+"@"+address, "--topic-prefix", fmt.Sprintf(rabbitmq40.prefix, own),
					"--rate", rate, "--yes", "--background")
			}
			begin("refused", refused.Listen, "10")
			begin("silent", silent.Listen, "10")
			awaitReplays(t, r, "the first two are on their way", func(all []turn) error {
				if all[0].Done == 0 || all[1].Done == 0 {
					return fmt.Errorf("they are at %+v", all)
				}
				return nil
			})
			refused.Stop()
			for _, direction := range []string{"upstream", "downstream"} {
				silent.disturb(t, "timeout", direction, `{"timeout": 0}`)
			}

			begin("healthy", broker.addr(), "40")
			r.command(t, "", "replay", "--tag", "f39-*", "--rate", "100", "--yes", "--background")
			lines := filepath.Join(r.dir, "lines.jsonl")
			if err := os.WriteFile(lines, []byte(r.command(t, "", "history", "--json")), 0o600); err != nil {
				t.Fatal(err)
			}
			r.command(t, "", "replay", "--from", lines, "--rate", "100", "--yes", "--background")
			var stuck []turn
			awaitReplays(t, r, "those behind them have ended", func(all []turn) error {
				for i, one := range all {
					if ended := one.State == "done" && one.Done+one.Skipped == n; ended != (i >= 2) ||
						i < 2 && (one.Stands.IsZero() || one.Error == "" || !one.Held || one.Done >= n) {
						return fmt.Errorf("replay %d is at %+v", one.ID, one)
					}
				}
				stuck = all[:2]
				return nil
			})
			if shown := r.command(t, "", "replay", "list"); strings.Count(shown, "it stands since") != 2 {
				t.Errorf("the list does not say what stands:\n%s", shown)
			}
			healthy := boxes["healthy"]()
			healthy.waitFor(t, 30*time.Second, ids...)
			for id, all := range healthy.byID() {
				if len(all) != 1 {
					t.Errorf("message %s was sent %d times by one replay", id, len(all))
				}
			}

			for _, one := range relays {
				one.kill(t)
			}
			r.start(t)
			if err := refused.Start(); err != nil {
				t.Fatal(err)
			}
			silent.clear()
			awaitReplays(t, r, "all have ended", func(all []turn) error {
				for i := range stuck {
					if all[i].Done < stuck[i].Done {
						t.Fatalf("before the kill a replay was at %+v, and then at %+v", stuck[i], all[i])
					}
					if all[i].State != "done" || all[i].Done != n || !all[i].Stands.IsZero() {
						return fmt.Errorf("replay %d is at %+v", all[i].ID, all[i])
					}
				}
				return nil
			})
			for _, name := range []string{"refused", "silent"} {
				boxes[name]().waitFor(t, 30*time.Second, ids...)
			}
		})
	}
}

// turn is what the list says of a replay.
type turn struct {
	ID      int       `json:"id"`
	State   string    `json:"state"`
	Done    int       `json:"done"`
	Skipped int       `json:"skipped"`
	Error   string    `json:"error"`
	Stands  time.Time `json:"stands"`
	Held    bool      `json:"held"`
}

// awaitReplays waits until check has nothing against the list of replays.
func awaitReplays(t *testing.T, r *relay, what string, check func([]turn) error) {
	t.Helper()
	eventually(t, 2*time.Minute, what, func() error {
		var all []turn
		for line := range strings.Lines(r.command(t, "", "replay", "list", "--json")) {
			var one turn
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				return err
			}
			all = append(all, one)
		}
		return check(all)
	})
}
