package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
	"koji-relay/queue"
	"koji-relay/queue/storetest"
)

// What an administrator sets for the hub's sake, by ALTER DATABASE or ALTER ROLE, changes nothing for us.
func TestStoreWorksWhateverTheDatabaseIsSetTo(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"encoding of clients": {"client_encoding = 'LATIN1'"},
		"backslashes":         {"standard_conforming_strings = off", "bytea_output = 'escape'"},
		"German dates":        {"DateStyle = 'German'", "TimeZone = 'Asia/Kolkata'"},
		"dates of a kind":     {"DateStyle = 'SQL, DMY'", "TimeZone = '<+0530>-05:30'"},
		"little memory":       {"work_mem = '64kB'", "temp_file_limit = 0", "quote_all_identifiers = on"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := hubDatabase(t)
			pgtest.AlterDatabase(t, conn, settings...)
			s := open(t, conn, queue.Limits{})
			unsent := storetest.Unsent(1, 3)
			m := &unsent[0].Message
			m.Props = append(m.Props, message.Prop{Key: "user", Value: "Žluť 日本"})
			storetest.Put(t, s, unsent...)
			if err := s.Probe(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := s.Announce(t.Context(), "", "*"); err != nil {
				t.Error(err)
			}
			pgtest.SQL(t, as(hubRole, conn), insertEvents(commitID(1), 0, 2))
			r, err := Probe(t.Context(), as(relayRole, conn))
			if err != nil || r.Remedy() != "" || r.Outbox != 2 || len(r.Readers) != 1 ||
				time.Since(r.OutboxOldest).Abs() > time.Hour || time.Since(r.Readers[0].Seen).Abs() > time.Hour {
				t.Errorf("the probe says %+v, %v", r, err)
			}
			got := storetest.Drained(t, s)
			if !slices.Equal(storetest.Numbers(got), []int{1, 2, 3}) ||
				!reflect.DeepEqual(got[0].Message.Props, m.Props) {
				t.Fatalf("drained %+v", got)
			}
			storetest.Settle(t, s, queue.Settlement{ID: got[0].Message.ID, Action: queue.Bury, Reason: "für immer"})
			if dead := storetest.List(t, s, inspect.DeadBox, inspect.ListOptions{}); dead[0].Reason != "für immer" {
				t.Errorf("the dead letter says %q", dead[0].Reason)
			}
		})
	}
}

// Under other levels of isolation a statement fails for what others do at the same time, the hub's own too.
func TestSessionsKeepToTheirOwnIsolationAndTimes(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.AlterDatabase(t, conn, "default_transaction_isolation = 'serializable'",
		"default_transaction_deferrable = on", "lock_timeout = '1ms'")
	want := map[string]string{"transaction_isolation": "read committed", "transaction_deferrable": "off",
		"lock_timeout": "0"}
	if query[bool](t, conn, "SELECT current_setting('transaction_timeout', true) IS NOT NULL") { // PostgreSQL 17
		pgtest.AlterDatabase(t, conn, "transaction_timeout = '1min'")
		want["transaction_timeout"] = "0"
	}
	s := open(t, conn, queue.Limits{})
	for name, value := range want {
		var got string
		err := s.pool.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got)
		if err != nil || got != value {
			t.Errorf("%s is %s, %v, want %s", name, got, err, value)
		}
	}
}

func TestDatabaseOfAnotherEncodingHoldsEveryMessage(t *testing.T) {
	t.Parallel()
	for _, encoding := range []string{"SQL_ASCII", "LATIN1", "EUC_JP"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			s := open(t, pgtest.EncodedDatabase(t, encoding, kojiTables+relaySchema), queue.Limits{})
			const odd = "für “Žluť” 日本 😀"
			unsent := storetest.Unsent(1, 2)
			m := &unsent[0].Message
			m.Props, m.Body = append(m.Props, message.Prop{Key: "user", Value: odd}), `{"note": "`+odd+`"}`
			unsent[1].Outcome = message.Outcome{State: message.Modified, Reason: odd}
			if _, err := s.Put(t.Context(), unsent, []message.Undeliverable{{ID: "event-9", Callback: "postTag",
				Kwargs: []byte(m.Body), Reason: odd}}); err != nil {
				t.Fatal(err)
			}
			got := storetest.Drained(t, s)
			if len(got) == 0 || !reflect.DeepEqual(got[0].Message.Props, m.Props) {
				t.Fatalf("drained %+v, want the properties %v", got, m.Props)
			}
			var body struct{ Note string }
			if err := json.Unmarshal([]byte(got[0].Message.Body), &body); err != nil || body.Note != odd {
				t.Errorf("the body is %s", got[0].Message.Body)
			}
			storetest.Settle(t, s, queue.Settlement{ID: m.ID, Action: queue.SetAside, Reason: odd, Delay: time.Hour})
			storetest.Settle(t, s, queue.Settlement{ID: m.ID, Action: queue.Bury, Reason: odd})
			dead := storetest.List(t, s, inspect.DeadBox, inspect.ListOptions{})
			if len(dead) != 2 || !strings.HasPrefix(dead[0].Reason, "f") {
				t.Errorf("dead letters are %+v", dead)
			}
		})
	}
}

// A trigger may leave rows out without a word. Then nothing is taken, and the store says why it is of no use.
func TestPutIsNoPutWhereATriggerLeavesRowsOut(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	pgtest.SQL(t, conn, `CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql
			AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER leave_out BEFORE INSERT ON proton_queue FOR EACH ROW EXECUTE FUNCTION leave_out()`)
	_, err := s.Put(t.Context(), storetest.Unsent(1, 2), nil)
	if !errors.Is(err, errSwallowed) {
		t.Errorf("the put gave %v", err)
	}
	if n := query[int](t, conn, "SELECT count(*) FROM koji_relay.delivery"); n != 0 {
		t.Errorf("%d messages are known that are not there", n)
	}
	if err := s.Probe(t.Context()); !errors.Is(err, errSwallowed) {
		t.Errorf("the probe gave %v", err)
	}
	pgtest.SQL(t, conn, "DROP TRIGGER leave_out ON proton_queue")
	storetest.Put(t, s, storetest.Unsent(1, 2)...)
	if got := storetest.Numbers(storetest.Drained(t, s)); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("drained %v", got)
	}
}

// The probe writes what a put writes: where that cannot be done, the store must not pass for usable.
func TestProbeWritesWhereAPutDoes(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	for _, right := range []string{"INSERT ON proton_queue", "INSERT ON koji_relay.delivery",
		"USAGE ON SCHEMA koji_relay", "USAGE ON SEQUENCE proton_queue_id_seq"} {
		pgtest.SQL(t, conn, "REVOKE "+right+` FROM "`+relayRole+`"`)
		_, err := s.Put(t.Context(), storetest.Unsent(1, 1), nil)
		if probed := s.Probe(t.Context()); code(err) != "42501" || code(probed) != "42501" {
			t.Errorf("without %s the put gave %v, the probe %v", right, err, probed)
		}
		pgtest.SQL(t, conn, "GRANT "+right+` TO "`+relayRole+`"`)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// Policies may hide what was put. They end in an error, whichever way they do it.
func TestPoliciesOfTheQueueAreRefused(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.SQL(t, conn, `CREATE POLICY blind ON proton_queue FOR INSERT WITH CHECK (true);
		ALTER TABLE proton_queue ENABLE ROW LEVEL SECURITY`)
	s := open(t, conn, queue.Limits{})
	_, err := s.Put(t.Context(), storetest.Unsent(1, 2), nil)
	for what, err := range map[string]error{"put": err, "probe": s.Probe(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "BYPASSRLS") {
			t.Errorf("the %s gave %v", what, err)
		}
	}
	r, err := Probe(t.Context(), as(relayRole, conn))
	if err != nil || !strings.Contains(r.Remedy(), "rows of public.proton_queue") {
		t.Errorf("check says %q, %v", r.Remedy(), err)
	}
}

func TestCauseIsExplainedOnce(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	s := open(t, conn, queue.Limits{})
	pgtest.SQL(t, conn, `REVOKE INSERT ON proton_queue FROM "`+relayRole+`"`)
	probed := s.Probe(t.Context())
	err := s.explain("read the outbox", probed)
	if n := strings.Count(err.Error(), "db init --print"); n != 1 || strings.Count(err.Error(), s.name) != 1 {
		t.Errorf("it says %v", err)
	}
	if both := s.explain("read the outbox", errors.Join(probed, probed)); strings.Contains(both.Error(), "\n") {
		t.Errorf("it takes two lines to say %v", both)
	}
}

func TestProbeRefusesAServerThatTakesNoChanges(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	pgtest.AlterDatabase(t, conn, "default_transaction_read_only = on")
	if _, err := Probe(t.Context(), as(relayRole, conn)); !errors.Is(err, libpq.ErrReadOnly) {
		t.Errorf("it says %v", err)
	}
}

// A firewall forgets connections that are idle, and tells nobody.
func TestMuteConnectionsCostNoPut(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	host, port := query[string](t, conn, "SELECT host(inet_server_addr())"), query[string](t, conn,
		"SELECT inet_server_port()::text")
	wall := startFirewall(t, net.JoinHostPort(host, port))
	_, via, _ := net.SplitHostPort(wall.Addr().String())
	s := open(t, conn+" host=127.0.0.1 port="+via, queue.Limits{})
	var held []*pgxpool.Conn
	for range s.pool.Config().MaxConns {
		c, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	for _, c := range held {
		c.Release()
	}
	<-time.After(pingIdle + pingIdle/10)
	wall.forget()
	for n := range 3 {
		if _, err := s.Put(t.Context(), storetest.Unsent(n, n+1), nil); err != nil {
			t.Fatalf("put %d: %v", n, err)
		}
	}
}

// firewall forwards connections to a server until it has forgotten them.
type firewall struct {
	net.Listener
	mu   sync.Mutex // guards the field below
	mute chan struct{}
}

func startFirewall(t *testing.T, server string) *firewall {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &firewall{Listener: l, mute: make(chan struct{})}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			f.mu.Lock()
			mute := f.mute
			f.mu.Unlock()
			t.Cleanup(func() { in.Close(); out.Close() })
			go forward(in, out, mute)
			go forward(out, in, mute)
		}
	}()
	return f
}

// forget drops what comes on the connections that there are.
func (f *firewall) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.mute)
	f.mute = make(chan struct{})
}

// forward ends as either end does.
func forward(to io.WriteCloser, from io.Reader, mute <-chan struct{}) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		select {
		case <-mute:
			if err != nil {
				return
			}
			continue
		default:
		}
		if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
			to.Close()
			return
		}
	}
}

func TestPoolerWithTooFewSessionsIsNamed(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	var log bytes.Buffer
	p, err := Open(t.Context(), Options{Logger: slog.New(slog.NewTextHandler(&log, nil)),
		ConnString: pgtest.Pooler(t, as(relayRole, conn), "session\ndefault_pool_size = 2")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !strings.Contains(log.String(), "pool_size") {
		t.Errorf("the log has %s", log.String())
	}
}

func TestPoolerInStatementModeIsRefused(t *testing.T) {
	t.Parallel()
	pooled := pgtest.Pooler(t, as(relayRole, hubDatabase(t)), "statement")
	s, err := Open(t.Context(), Options{ConnString: pooled})
	if err == nil {
		s.Close()
	}
	r, failed := Probe(t.Context(), pooled)
	if !errors.Is(err, errPooler) || failed != nil || !strings.Contains(r.Remedy(), "pool by session") {
		t.Errorf("opening gave %v, the probe %q, %v", err, r.Remedy(), failed)
	}
}
