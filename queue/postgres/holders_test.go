package postgres

import (
	"testing"

	"koji-relay/internal/inspect"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// TestHoldersAreNamed: a relay with no right but the printed grants sees which other one drains and reads,
// with Koji's lock row and without.
func TestHoldersAreNamed(t *testing.T) {
	t.Parallel()
	for name, koji := range map[string]string{"Koji's row": "", "advisory lock": "DELETE FROM locks"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := hubDatabase(t)
			if koji != "" {
				pgtest.SQL(t, conn, koji)
			}
			other, err := Open(t.Context(), Options{ConnString: as(relayRole, conn), Application: "koji-relay hub2/7"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { other.Close() })
			p := open(t, conn, queue.Limits{})
			look := func() (drain, outbox inspect.Holder) {
				t.Helper()
				drain, outbox, err := p.Holders(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return drain, outbox
			}
			if drain, outbox := look(); drain.String() != "nobody at the moment" || outbox != drain {
				t.Errorf("before anybody works it is %v and %v", drain, outbox)
			}
			b := readingOutbox(t, other, &fakePublisher{})
			storetest.Eventually(t, "it reads", func() bool { return b.Status().Reading })
			pass, err := other.BeginDrain(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			drain, outbox := look()
			if drain.Name != "koji-relay hub2/7" || outbox.Name != "koji-relay hub2/7" || drain.PID == 0 ||
				drain.PID == outbox.PID {
				t.Errorf("it is %+v and %+v", drain, outbox)
			}
			pass.End(true)
			if drain, _ := look(); (drain != inspect.Holder{}) {
				t.Errorf("after the pass it is %v", drain)
			}
		})
	}
}
