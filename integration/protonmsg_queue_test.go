package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// TestQueueIsSharedWithProtonmsg moves from protonmsg to the relay with a full queue, and back with a full
// queue.
func TestQueueIsSharedWithProtonmsg(t *testing.T) {
	t.Parallel()
	broker, database := startBroker(t, rabbitmq40), startPostgres(t)
	t.Run("its rows are sent as it would, under ids that outlast a kill", func(t *testing.T) {
		drainRowsOfProtonmsg(t, broker, database)
	})
	t.Run("it finds in the relay's rows what it would have written", func(t *testing.T) {
		readRowsAsProtonmsg(t, broker, database)
	})
}

func drainRowsOfProtonmsg(t *testing.T, broker, database *server) {
	g, part := loadGolden(t, "extra500"), newPart()
	box := subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, g.topics())...)
	set := forBroker(rabbitmq40, part, broker).with(newDatabase(t, database, part))
	goldenID := insertAsProtonmsg(t, database, part, g)
	ids := make([]string, 0, len(goldenID))
	for id := range goldenID {
		ids = append(ids, id)
	}

	// The first relay dies when the broker has taken a batch, before anything of it is deleted.
	r := newRelay(t, set.with(settings{"queue.batch_size": "20"}))
	path, err := fragileBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "serve", "--config", r.conf)
	cmd.Env = append(os.Environ(), "KOJI_RELAY_FAILPOINT=after-accept-before-delete:1")
	r.launch(t, cmd)
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the relay did not come to the failpoint")
	}
	r.start(t)
	box.waitFor(t, 30*time.Second, ids...)

	repeated := 0
	once := newInbox()
	for id, deliveries := range box.byID() {
		if goldenID[id] == "" {
			t.Errorf("message %s of topic %s is none of the rows", id, deliveries[0].Link)
			continue
		}
		repeated += len(deliveries) - 1
		for _, d := range deliveries[1:] {
			if *d.Body != *deliveries[0].Body {
				t.Errorf("message %s came again with another body", id)
			}
		}
		d := deliveries[0]
		d.ID = goldenID[id]
		once.put(d)
	}
	g.compare(t, rabbitmq40, part, once)
	if repeated == 0 || repeated > 20 {
		t.Errorf("%d messages came again after the kill, want those of one batch of 20", repeated)
	}
	eventually(t, 10*time.Second, "an empty proton_queue", func() error { return queued(t, database, part, 0) })
}

// insertAsProtonmsg writes the golden messages as the plugin does: the address without prefix, the properties
// as Python's json prints a dict, the body as it is sent. It gives the golden message-id for that which each
// row must get: the UUIDv5 of database, row and time in the namespace that is the UUIDv5 of proton_queue
// among the OIDs.
func insertAsProtonmsg(t *testing.T, s *server, name string, g golden) map[string]string {
	t.Helper()
	ctx := within(t, 30*time.Second)
	db, err := pgx.Connect(ctx, s.connString(name))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	space := uuid.NewSHA1(uuid.NameSpaceOID, []byte("proton_queue"))
	ids := map[string]string{}
	for _, m := range g.messages {
		var props []string
		for _, p := range m.Props {
			value := string(p.Value)
			if p.Type == "null" {
				value = "null"
			}
			props = append(props, fmt.Sprintf("%q: %s", p.Key, value))
		}
		var id int
		var created time.Time
		err := db.QueryRow(ctx, "INSERT INTO proton_queue (address, props, body) VALUES ($1, $2::text::json, "+
			"$3::text::json) RETURNING id, created_ts",
			m.Address, "{"+strings.Join(props, ", ")+"}", m.Body).Scan(&id, &created)
		if err != nil {
			t.Fatal(err)
		}
		row := fmt.Sprintf("%s/%d/%s", name, id, created.UTC().Format("2006-01-02T15:04:05.000000Z"))
		ids[uuid.NewSHA1(space, []byte(row)).String()] = m.id()
	}
	return ids
}

// queued is an error unless proton_queue has want rows.
func queued(t *testing.T, s *server, database string, want int) error {
	var n int
	if err := s.query(t, database, "SELECT count(*) FROM proton_queue", &n); err != nil {
		return err
	}
	if n != want {
		return fmt.Errorf("proton_queue has %d rows, want %d", n, want)
	}
	return nil
}

func readRowsAsProtonmsg(t *testing.T, broker, database *server) {
	g, part := loadGolden(t, "extra500"), newPart()
	box := subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, g.topics())...)
	down := settings{"broker.urls": "amqp://127.0.0.1:1",
		"broker.topic_prefix": fmt.Sprintf(rabbitmq40.prefix, part),
		"message.extra_limit": "500"}.with(newDatabase(t, database, part))
	r := startRelay(t, down)
	if total := r.postGolden(t, g); total.Queued != len(g.messages) {
		t.Fatalf("queued %d messages, want %d", total.Queued, len(g.messages))
	}
	read := takeAsProtonmsg(t, database, part)
	if len(read) != len(g.messages) {
		t.Fatalf("protonmsg reads %d rows, want %d", len(read), len(g.messages))
	}
	for i, want := range g.messages { // in the order of the hub's events
		got := read[i]
		if got.Address != want.Address || got.Body != want.Body {
			t.Errorf("row %d: protonmsg reads %s %s, want %s %s", i, got.Address, got.Body, want.Address, want.Body)
		}
		if g, w := fmt.Sprint(sortedProps(got.Props)), fmt.Sprint(sortedProps(want.Props)); g != w {
			t.Errorf("row %d: protonmsg reads the properties %s, want %s", i, g, w)
		}
	}
	// What protonmsg has sent and deleted the relay must neither send nor miss.
	r.stop(t)
	r.configure(t, down.with(forBroker(rabbitmq40, part, broker)))
	r.start(t)
	body, ids := tagCommit(1)
	r.mustPost(t, body)
	box.waitFor(t, 30*time.Second, ids...)
	eventually(t, 10*time.Second, "no trace of the messages that protonmsg took", func() error {
		var n int
		err := database.query(t, part, "SELECT count(*) FROM koji_relay.delivery", &n)
		if err == nil && n != 0 {
			err = fmt.Errorf("koji_relay.delivery has %d rows", n)
		}
		return err
	})
	if all, err := box.all(); err != nil || len(all) != 1 {
		t.Errorf("%d messages came, want only the one that protonmsg did not take; %v", len(all), err)
	}
}

// takeAsProtonmsg does what the plugin does with its queue: under its lock, oldest first, it reads rows,
// sends them (here: gives them back) and deletes them, all in one transaction.
func takeAsProtonmsg(t *testing.T, s *server, database string) (read []goldenMessage) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	db, err := pgx.Connect(ctx, s.connString(database))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx,
			"SELECT id, address, props::text, body::text FROM proton_queue ORDER BY id FOR UPDATE SKIP LOCKED")
		if err != nil {
			return err
		}
		var ids []int
		var id int
		var m goldenMessage
		var props string
		_, err = pgx.ForEachRow(rows, []any{&id, &m.Address, &props, &m.Body}, func() error {
			ids = append(ids, id)
			var err error
			m.Props, err = pythonProps(props)
			read = append(read, m)
			return err
		})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "DELETE FROM proton_queue WHERE id = ANY ($1)", ids)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// pythonProps gives a JSON object the types that Python's json and then python-proton give it.
func pythonProps(text string) (list []prop, err error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &values); err != nil {
		return nil, err
	}
	for key, raw := range values {
		kind := "long"
		switch {
		case raw[0] == '"':
			kind = "string"
		case string(raw) == "null":
			kind = "null"
		case raw[0] == 't' || raw[0] == 'f':
			kind = "boolean"
		case strings.ContainsAny(string(raw), ".eE"):
			kind = "double"
		}
		list = append(list, prop{key, kind, raw})
	}
	return list, nil
}
