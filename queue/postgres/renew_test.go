package postgres

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"koji-relay/internal/pgtest"
	"koji-relay/queue"
)

// TestRenewedSessionGoesOn: a reader whose session is only old does not walk past all that is held for others
// anew; on another server it does.
func TestRenewedSessionGoesOn(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	const rows = 5000
	announced := open(t, conn, queue.Limits{})
	announce(t, announced, "", "away")
	pgtest.SQL(t, conn, fmt.Sprintf(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT md5(i::text)::uuid, 0, 'postTag', '{}' FROM generate_series(1, %d) i;
		INSERT INTO koji_relay.outbox_taken SELECT id, '', commit FROM koji_relay.outbox`, rows))
	pgtest.SQL(t, conn, "VACUUM ANALYZE")
	if err := announced.Close(); err != nil {
		t.Fatal(err)
	}
	var walk marks[int64]
	var server time.Time
	for _, step := range []struct {
		name  string
		walks bool
	}{{"the first session", true}, {"a renewed one", false}, {"one on another server", true}} {
		before := rowsRead(t, conn)
		p := open(t, conn, queue.Limits{})
		b := NewOutbox(p, &fakePublisher{}, OutboxOptions{Interval: time.Minute})
		b.walk, b.server = walk, server
		session, err := p.listen(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		session.until = time.Now()
		if held, err := session.tryLock(t.Context(), lockOf("")); err != nil || !held {
			t.Fatalf("%s: the lock is held: %v, %v", step.name, held, err)
		}
		if err := b.readAll(t.Context(), session); !errors.Is(err, errRenew) {
			t.Fatalf("%s: %v", step.name, err)
		}
		session.close()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if read := rowsRead(t, conn) - before; read >= rows != step.walks {
			t.Errorf("%s reads %d rows beside %d that are held", step.name, read, rows)
		}
		walk, server = b.walk, b.server
		if walk.full.IsZero() {
			t.Fatalf("%s: it is not known how far the reads came", step.name)
		}
		walk.at = []mark[int64]{{time.Now().Add(-2 * lateness), rows}} // as if it had read for a while
		if !step.walks {
			server = server.Add(-time.Second)
		}
	}
}
