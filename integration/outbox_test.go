package integration

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// outboxEvents is how many events hubs insert into the outbox while two relays read it.
const outboxEvents = 10_000

// TestOutboxReadByTwoRelaysArrivesOnce: hubs with delivery = outbox insert commits of ten events, among them
// some that nobody can translate, while two relays of one fleet read. Each event arrives once, not only under
// one message-id.
func TestOutboxReadByTwoRelaysArrivesOnce(t *testing.T) {
	t.Parallel()
	broker := newServer(t, rabbitmq40.service)
	t.Cleanup(func() { logOnFailure(t, broker); broker.remove() })
	postgres := startPostgres(t)
	broker.awaitBroker(t)
	part := newPart()
	open := durable(t, rabbitmq40, broker, part, ledgerTopics...)
	// A broker that is slow to answer is not given up: what one relay queues then, and the broker takes after
	// all, the other one drains.
	set := forBroker(rabbitmq40, part, broker).with(newDatabase(t, postgres, part),
		settings{"relay.handoff_timeout": "30", "plugin.timeout": "60"})
	first, second := startRelay(t, set, broker), startRelay(t, set, broker)
	box := open()

	began := time.Now()
	hub := &outboxHub{ledger: newLedger(postgres.connString(part))}
	for range outboxEvents / 10 {
		hub.commit(t, 10)
	}
	inserted := time.Since(began)
	hub.commitUntranslatable(t)
	verdict, err := hub.awaitArrival(box, 60*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the outbox is empty", func() error {
		var left int
		if err := postgres.query(t, part, "SELECT count(*) FROM koji_relay.outbox", &left); err != nil || left > 0 {
			return fmt.Errorf("%d events are left: %w", left, err)
		}
		return nil
	})
	took := time.Since(began)

	// The queue of the subscriber is in order: what was sent twice is in front of what each relay sends now.
	for _, r := range []*relay{first, second} {
		body, ids := tagCommit(1)
		r.mustPost(t, body)
		box.waitFor(t, 10*time.Second, ids...)
		if code := r.stop(t); code != 0 {
			t.Errorf("the relay ended with %d", code)
		}
	}
	all, err := box.all()
	if err != nil {
		t.Fatal(err)
	}
	want := outboxEvents + hub.neighbours
	if arrived := len(all) - 2; arrived != want {
		t.Errorf("%d messages arrived for %d events", arrived, want)
	}
	t.Logf("%s; inserted in %v, all in %v", verdict.report(t, hub.ledger, false), inserted, took)
	hub.deadLetters(t, postgres, part)
}

// outboxHub inserts events of a ledger as hubs with delivery = outbox do, over one connection.
type outboxHub struct {
	*ledger
	db         *pgx.Conn
	silent     bool   // tells nobody: the poll finds it
	poke       string // a socket to poke after a commit; "": NOTIFY tells instead
	neighbours int    // events of the same commits as those that nobody can translate
	bad        int    // of these
}

// commit inserts n events, and more, in one transaction, and gives its id.
func (h *outboxHub) commit(t testing.TB, n int, more ...string) (id string) {
	t.Helper()
	ctx := within(t, time.Minute)
	if h.db == nil {
		db, err := pgx.Connect(ctx, h.outbox)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close(context.Background()) })
		h.db = db
	}
	id, numbers, _ := h.announce(len(h.events)%7, n)
	batch := &pgx.Batch{} // one transaction
	insert := func(event int, callback, kwargs string) {
		batch.Queue(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES ($1, $2, $3, $4)`, id,
			event, callback, kwargs)
	}
	for event, number := range numbers {
		e := h.event(number)
		callback := kinds[0].callback
		if e.topic == kinds[1].topic {
			callback = kinds[1].callback
		}
		insert(event, callback, e.body)
	}
	for i, kwargs := range more {
		insert(n+i, "postPackageListChange", kwargs)
	}
	if !h.silent && h.poke == "" {
		batch.Queue("SELECT pg_notify('koji_relay', '')")
	}
	if err := h.db.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatalf("insert into the outbox: %v", err)
	}
	if !h.silent && h.poke != "" {
		pokeRelay(h.poke)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stored += n
	for _, number := range numbers {
		h.ledger.events[number].handed = true
	}
	h.answered += n // the hub has its commit: this is its 200
	return id
}

// pokeRelay is what the plugin does after a commit: one datagram, and no care for what becomes of it.
func pokeRelay(socket string) {
	if conn, err := net.Dial("unixgram", socket); err == nil {
		_, _ = conn.Write([]byte("outbox"))
		conn.Close()
	}
}

// commitUntranslatable inserts commits with events behind two neighbours that have no action, and so no
// address.
func (h *outboxHub) commitUntranslatable(t testing.TB) {
	t.Helper()
	for _, kwargs := range []string{`{}`, `{"action": null, "tag": {"name": "f39"}}`,
		`{"action":  {}, "note": "kept to the byte"}`} {
		h.commit(t, 2, kwargs)
		h.neighbours += 2
		h.bad++
	}
}

// deadLetters checks that the events without an address were set aside, with their text and a reason.
func (h *outboxHub) deadLetters(t testing.TB, s *server, database string) {
	t.Helper()
	var n, kept, reasons int
	for sql, result := range map[string]*int{
		"SELECT count(*) FROM koji_relay.dead_letter WHERE callback = 'postPackageListChange' " +
			"AND address IS NULL": &n,
		`SELECT count(*) FROM koji_relay.dead_letter WHERE convert_from(body, 'UTF8') = '{"action":  {}, ` +
			`"note": "kept to the byte"}'`: &kept,
		"SELECT count(*) FROM koji_relay.dead_letter WHERE reason LIKE '%action%'": &reasons,
	} {
		if err := s.query(t, database, sql, result); err != nil {
			t.Fatal(err)
		}
	}
	if n != h.bad || kept != 1 || reasons != h.bad {
		t.Errorf("%d dead letters, %d with the text as it was, %d with a reason; want %d, 1, %d", n, kept, reasons,
			h.bad, h.bad)
	}
}
