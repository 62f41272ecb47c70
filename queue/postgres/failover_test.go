package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/libpq"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// address leads to one server or another, as the address of a cluster does that moves in a failover.
// Connections stay with the server that they were made to.
type address struct {
	listener net.Listener
	// mu guards the field below.
	mu sync.Mutex
	to string
}

func newAddress(t *testing.T) *address {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &address{listener: l}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			to := a.to
			a.mu.Unlock()
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			running.Go(func() { pipe(client, server) })
			running.Go(func() { pipe(server, client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return a
}

func pipe(from, to net.Conn) {
	_, _ = io.Copy(to, from)
	from.Close()
	to.Close()
}

// leadTo lets new connections go to the server of conn.
func (a *address) leadTo(t *testing.T, conn string) {
	t.Helper()
	c, err := pgx.ParseConfig(conn)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = fmt.Sprintf("127.0.0.1:%d", c.Port)
}

// through is conn by way of the address.
func (a *address) through(conn string) string {
	return fmt.Sprintf("%s port=%d", conn, a.listener.Addr().(*net.TCPAddr).Port)
}

// servers are a primary with what the queue needs, and a standby that has it, too.
func servers(t *testing.T) (primary, standby *pgtest.Cluster) {
	t.Helper()
	primary = pgtest.StartCluster(t)
	pgtest.SQL(t, primary.ConnString("postgres"), kojiTables+relaySchema)
	standby = primary.Standby(t)
	conn := standby.ConnString("postgres")
	storetest.Eventually(t, "the standby has caught up", func() bool {
		return query[bool](t, conn, `SELECT to_regclass('koji_relay.reader') IS NOT NULL
			AND has_table_privilege('`+relayRole+`', 'koji_relay.outbox', 'DELETE')`)
	})
	return primary, standby
}

// The old primary goes on as a standby would: its sessions live, and take no changes.
func TestPutAfterAFailoverIsTakenByTheNewPrimary(t *testing.T) {
	t.Parallel()
	primary, standby := servers(t)
	old := primary.ConnString("postgres")
	at := newAddress(t)
	at.leadTo(t, old)
	s := open(t, at.through(old), queue.Limits{})
	publisher := &fakePublisher{}
	reader := readingOutbox(t, s, publisher)
	storetest.Eventually(t, "the outbox is read", func() bool { return reader.Status().Reading })
	var puts sync.WaitGroup
	for n := range 8 { // a connection each
		puts.Go(func() { _, _ = s.Put(t.Context(), storetest.Unsent(n, n), nil) })
	}
	puts.Wait()
	standbyConn := standby.ConnString("postgres")
	storetest.Eventually(t, "the standby has it all",
		func() bool { return query[int](t, standbyConn, "SELECT count(*) FROM proton_queue") == 8 })
	pgtest.SQL(t, old, "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
	storetest.Eventually(t, "the old primary takes no changes", func() bool {
		return query[string](t, old, "SHOW transaction_read_only") == "on"
	})
	if _, err := s.Put(t.Context(), storetest.Unsent(50, 50), nil); !errors.Is(err, libpq.ErrReadOnly) {
		t.Errorf("put to a read-only server gave %v, want that it is read-only", err)
	}
	standby.Promote(t)
	at.leadTo(t, standbyConn)
	for n := 100; n < 164; n++ {
		if _, err := s.Put(t.Context(), storetest.Unsent(n, n), nil); err != nil {
			t.Fatalf("put %d after the failover: %v", n-100, err)
		}
	}
	pgtest.SQL(t, standbyConn, insertEvents(commitID(1), 0, 1))
	storetest.Eventually(t, "the outbox of the new primary is read",
		func() bool { return publisher.count() == 1 })
	if n := query[int](t, standbyConn, "SELECT count(*) FROM proton_queue"); n != 72 {
		t.Errorf("the new primary has %d messages, want 72", n)
	}
}

// A connection string may name both servers; the relay finds the one that takes changes.
func TestOfSeveralServersThePrimaryIsUsed(t *testing.T) {
	t.Parallel()
	primary, standby := servers(t)
	port := func(conn string) uint16 {
		c, err := pgx.ParseConfig(conn)
		if err != nil {
			t.Fatal(err)
		}
		return c.Port
	}
	old := primary.ConnString("postgres")
	both := fmt.Sprintf("%s host=127.0.0.1,127.0.0.1 port=%d,%d", old, port(standby.ConnString("postgres")),
		port(old))
	s := open(t, both, queue.Limits{})
	storetest.Put(t, s, storetest.Unsent(1, 1)...)
	storetest.Eventually(t, "the standby has it", func() bool {
		return query[int](t, standby.ConnString("postgres"), "SELECT count(*) FROM proton_queue") == 1
	})
	primary.Kill()
	standby.Promote(t)
	storetest.Put(t, s, storetest.Unsent(2, 2)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); len(got) != 2 {
		t.Errorf("drained %v, want 1 and 2", got)
	}
}

// Whatever the cause, the next try gets another connection.
func TestErrorAboutTheServerEndsTheConnection(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	for _, state := range []string{"25006", "57P01", "57P03", "57P05", "08000", "08006", "25P03"} {
		var pids []uint32
		err := s.do(t.Context(), "try", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
			pids = append(pids, conn.PgConn().PID())
			if len(pids) > 1 {
				return nil
			}
			_, err := conn.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '`+state+`'; END $$`)
			return err
		})
		if err != nil || len(pids) != 2 || pids[0] == pids[1] {
			t.Errorf("%s: tried on the sessions %v, %v; want two different ones and success", state, pids, err)
		}
	}
}
