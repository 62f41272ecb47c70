package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"koji-relay/queue/schema"
)

// beforeHistory is the schema before there was a history.
const beforeHistory = 2

// TestUpgradeLosesNothing: messages, events and dead letters wait in a schema of version 2. A relay of today
// says what to do. While `koji-relay db upgrade` works, hubs go on inserting events, and an older relay goes
// on where KOJI_RELAY_OLD_BINARY names its program (built from the parent of commit 045b779). Then all
// arrive.
func TestUpgradeLosesNothing(t *testing.T) {
	t.Parallel()
	broker, postgres := startBroker(t, rabbitmq40), startPostgres(t)
	part := newPart()
	createDatabase(t, postgres, part)
	box := subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, []string{tagTopic})...)
	site := oldSite{T: t, db: connectTo(t, postgres, part)}
	site.init()
	site.leave(30)
	set := forBroker(rabbitmq40, part, broker).with(settings{"queue.store": "postgres",
		"queue.database": postgres.connString(part), "queue.interval": "1"})

	var old *relay
	if program := os.Getenv("KOJI_RELAY_OLD_BINARY"); program != "" {
		old = newRelay(t, set.with(settings{"broker.urls": "amqp://127.0.0.1:1"}))
		old.startCommand(t, exec.Command(program, "serve", "--config", old.conf))
	}
	r := newRelay(t, set)
	refused(t, r)

	hubs := site.hubs(postgres, part, old)
	for range 3 { // commits of each
		hubs.step()
	}
	if out := r.command(t, "", "db", "upgrade"); !strings.Contains(out, fmt.Sprint(schema.Version())) {
		t.Errorf("db upgrade says %q", out)
	}
	for range 3 {
		hubs.step()
	}
	if old != nil {
		if code := old.stop(t); code != 0 {
			t.Errorf("the old relay ended with %d", code)
		}
		if was := old.log.text(); strings.Contains(was, "panic") {
			t.Errorf("the old relay said\n%s", was)
		}
	}
	hubs.end()

	r.start(t)
	r.awaitConnected(t, broker)
	box.waitFor(t, 60*time.Second, append(site.ids, hubs.ids...)...)
	dead := r.command(t, "", "dead", "list", "--json")
	for _, id := range site.dead {
		if !strings.Contains(dead, id) {
			t.Errorf("dead letter %s is gone:\n%s", id, dead)
		}
	}
	// What came after the upgrade has a history from its beginning, what waited before it at least an end.
	for _, id := range []string{site.ids[0], hubs.ids[len(hubs.ids)-1]} {
		eventually(t, 30*time.Second, "the history tells of "+id, func() error {
			if shown := r.command(t, "", "history", "--id", id, "--json"); !strings.Contains(shown, "accepted") {
				return fmt.Errorf("it says %q", shown)
			}
			return nil
		})
	}
	if code := r.stop(t); code != 0 {
		t.Errorf("the relay ended with %d", code)
	}
	t.Logf("%d waited, %d came meanwhile (%d of them through the older relay), %d dead letters", len(site.ids),
		len(hubs.ids), hubs.answered, len(site.dead))
}

// refused checks that a relay of today does not begin on the old schema, and says what to do.
func refused(t *testing.T, r *relay) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"serve", "check"} {
		out, err := exec.CommandContext(within(t, time.Minute), path, command, "--config", r.conf).CombinedOutput()
		if command == "serve" && err == nil {
			t.Error("serve begins on the old schema")
		}
		if command == "serve" && !strings.Contains(string(out), "koji-relay db upgrade") {
			t.Errorf("%s does not say what to do:\n%s", command, out)
		}
	}
}

// oldSite is a database as a relay of version 2 left it.
type oldSite struct {
	*testing.T
	db   *pgx.Conn
	ids  []string // of messages that wait, and of events in the outbox
	dead []string
}

func connectTo(t testing.TB, s *server, database string) *pgx.Conn {
	t.Helper()
	db, err := pgx.Connect(within(t, 10*time.Second), s.connString(database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	return db
}

func (s *oldSite) exec(sql string, args ...any) {
	s.Helper()
	if _, err := s.db.Exec(within(s, 30*time.Second), sql, args...); err != nil {
		s.Fatalf("%s: %v", sql, err)
	}
}

// init is what `koji-relay db init` did.
func (s *oldSite) init() {
	s.Helper()
	s.exec(`CREATE TABLE proton_queue (id SERIAL PRIMARY KEY, created_ts TIMESTAMPTZ DEFAULT now(),
		address TEXT NOT NULL, props JSON NOT NULL, body JSON NOT NULL); CREATE SCHEMA koji_relay`)
	for i, step := range schema.Steps[:beforeHistory] {
		s.exec(step + fmt.Sprintf("; INSERT INTO koji_relay.version (version) VALUES (%d)", i+1))
	}
}

const taggedKwargs = `{"tag": {"id": 7, "name": "f39"}, "build": {"build_id": 1, "name": "pkg",
	"version": "1", "release": "1"}, "user": {"id": 1, "name": "kojiadmin"}, "force": false}`

// leave inserts what waits: as many messages, events and dead letters, as the old relay and the old plugin
// did.
func (s *oldSite) leave(each int) {
	s.Helper()
	for range each {
		id, commit, dead := uuid.NewString(), uuid.NewString(), uuid.NewString()
		s.exec(`WITH q AS (INSERT INTO proton_queue (address, props, body)
				VALUES ('build.tag', '{"type": "Tag", "tag": "f39"}', $2) RETURNING id, created_ts)
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, commit, event, callback,
				address, size, attempts, tries, next_attempt, last_error)
			SELECT $1, id, created_ts, now(), '', 0, 'postTag', 'build.tag', 100, 0, 1, now(), 'why' FROM q`,
			id, taggedKwargs)
		s.exec(`INSERT INTO koji_relay.outbox (commit, event, callback, kwargs) VALUES ($1, 0, 'postTag', $2)`,
			commit, taggedKwargs)
		s.exec(`INSERT INTO koji_relay.dead_letter (message_id, died, created, commit, event, callback, address,
				props, body, attempts, reason)
			VALUES ($1, now(), now(), '', 0, 'postTag', 'build.tag', '{}', '{}', 7, 'why')`, dead)
		s.ids = append(s.ids, id, messageID(commit, 0))
		s.dead = append(s.dead, dead)
	}
}

// oldHubs go on while the schema is upgraded: half of the commits go to the older relay, if there is one, and
// into the outbox where it does not take them.
type oldHubs struct {
	*testing.T
	stop     context.CancelFunc
	running  sync.WaitGroup
	stepped  chan struct{}
	mu       sync.Mutex // guards the fields below
	ids      []string
	answered int // by the older relay
}

func (s *oldSite) hubs(postgres *server, database string, old *relay) *oldHubs {
	ctx, cancel := context.WithCancel(s.Context())
	h := &oldHubs{T: s.T, stop: cancel, stepped: make(chan struct{})}
	s.Cleanup(h.end)
	for hub := range 2 {
		db := connectTo(s, postgres, database)
		h.running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				h.commit(ctx, db, old, (n+hub)%2 == 0)
				select {
				case h.stepped <- struct{}{}:
				case <-ctx.Done():
				}
			}
		})
	}
	return h
}

// commit is one commit of a hub.
func (h *oldHubs) commit(ctx context.Context, db *pgx.Conn, old *relay, direct bool) {
	body, ids := tagCommit(2)
	taken := false
	if direct && old != nil {
		a, err := old.post(ctx, body)
		taken = err == nil && a.Code == 200
	}
	if !taken {
		commit := uuid.NewString()
		tx, err := db.Begin(context.Background())
		if err != nil {
			h.Errorf("a hub meets %v", err)
			return
		}
		for event := range 2 {
			_, err := tx.Exec(context.Background(), `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
				VALUES ($1, $2, 'postTag', $3)`, commit, event, taggedKwargs)
			if err != nil {
				h.Errorf("a hub's insert meets %v", err)
				return
			}
		}
		if err := tx.Commit(context.Background()); err != nil {
			h.Errorf("a hub's commit meets %v", err)
			return
		}
		ids = []string{messageID(commit, 0), messageID(commit, 1)}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ids = append(h.ids, ids...); taken {
		h.answered += 2
	}
}

// step waits for one more commit of each hub.
func (h *oldHubs) step() {
	h.Helper()
	for range 2 {
		select {
		case <-h.stepped:
		case <-time.After(time.Minute):
			h.Fatal("the hubs do not go on")
		}
	}
}

func (h *oldHubs) end() {
	h.stop()
	h.running.Wait()
}
