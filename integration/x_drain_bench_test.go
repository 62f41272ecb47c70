package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const benchBatchSize = 1000 // of the example configuration

// drains: the backlog of an outage goes from a real PostgreSQL to a real RabbitMQ. Messages are counted where
// they arrive.
func drains(t *table) {
	small, large, million := t.n(10_000, 200), t.n(100_000, 300), t.n(1_000_000, 400)
	d := newDrain(t, nil)
	raw := rawSender(t, t.broker40, fmt.Sprintf(rabbitmq40.prefix, d.database)+"."+tagTopic)
	const sender, alike = "pipelined go-amqp sender", "the same for 10,000 rows"
	hundred := t.row("drain, 100,000 rows of 1 kB", "1/s", sender, atLeast(0.7))
	million1 := t.row("drain, 1,000,000 rows", "1/s", alike, atLeast(0.95))
	memory := t.row("memory, 1,000,000 rows draining, RssAnon", "MiB", "", below(64))
	d.drain(t, small, tagTopic) // plans and caches
	for range t.rounds {
		hundred.add(d.drain(t, large, tagTopic), raw.mustThroughput(t, t.n(40_000, 400)))
	}
	for range min(t.rounds, 2) { // minutes each
		before := d.drain(t, small, tagTopic)
		stop := watchMemory(t, d.relay)
		whole := d.drain(t, million, tagTopic)
		memory.add(stop(), 0)
		million1.add(whole, (before+d.drain(t, small, tagTopic))/2)
	}
	if os.Getenv("KOJI_RELAY_BENCH_HUGE") == "1" {
		huge := t.row("drain, 10,000,000 rows", "1/s", alike, atLeast(0.9))
		before := d.drain(t, small, tagTopic)
		huge.add(d.drain(t, t.n(10_000_000, 500), tagTopic), before)
	}
	drainBesideHub(t, d)
	drainInOrder(t, d)
	d.relay.stop(t)
}

// drainBesideHub: a hub hands over to an address that is being drained.
func drainBesideHub(t *table, d *drain) {
	p50 := t.row("hand-over to an address that is drained, p50", "µs", "the same without a drain", atMost(3, 0))
	p99 := t.row("hand-over to an address that is drained, p99", "µs", "", below(15_000))
	n, backlog := t.n(300, 5), t.n(60_000, 300)
	for range t.rounds {
		quiet, _ := pluginHandOver(t, d.relay.socket, n)
		d.command(t, "pause")
		d.fill(t, backlog, "NULL", tagTopic)
		target := d.arrived.Load() + int64(backlog)
		d.command(t, "resume")
		busy50, busy99 := pluginHandOver(t, d.relay.socket, n)
		if t.scale >= 1 && d.arrived.Load() >= target {
			t.Error("the drain was over before the hand-overs: this row shows nothing")
		}
		p50.add(busy50, quiet)
		p99.add(busy99, 0)
		d.await(t, target+int64(n)) // and those of the warm-up
	}
}

// drainInOrder: with preserve_order a message is sent when the one before it is settled, unless it is known
// to be of another address.
func drainInOrder(t *table, d *drain) {
	n := t.n(10_000, 200)
	ordered := newDrain(t, settings{"queue.preserve_order": "on"})
	plain := t.row("drain with preserve_order", "1/s", "without it", atLeast(0.3))
	topics := t.row("drain with preserve_order, two topics alternating", "1/s", "one topic", atLeast(0.5))
	for range t.rounds {
		one := ordered.drain(t, n, ledgerTopics[0])
		plain.add(one, d.drain(t, n, ledgerTopics[0]))
		topics.add(ordered.drain(t, n, ledgerTopics[0], ledgerTopics[1]), one)
	}
	ordered.relay.stop(t)
}

// drain is one relay with its database and the count of what arrived.
type drain struct {
	relay    *relay
	server   *server
	database string
	history  bool // the relay keeps one
	arrived  *atomic.Int64
}

func newDrain(t *table, more settings) *drain {
	part := newPart()
	d := &drain{server: t.postgres, database: part, history: more["history.keep"] != "0",
		arrived: countArrivals(t, t.broker40, rabbitmq40.sources(part, ledgerTopics)...)}
	d.relay = startRelay(t, forBroker(rabbitmq40, part, t.broker40).with(newDatabase(t, t.postgres, part),
		settings{"queue.batch_size": strconv.Itoa(benchBatchSize)}, more), t.broker40)
	return d
}

// drain fills the queue while the drain is paused, and gives the messages a second from its resumption until
// all arrived.
func (d *drain) drain(t testing.TB, rows int, topics ...string) float64 {
	t.Helper()
	d.command(t, "pause")
	d.fill(t, rows, "NULL", topics...)
	target := d.arrived.Load() + int64(rows)
	d.command(t, "resume")
	began := time.Now()
	d.await(t, target)
	return float64(rows) / time.Since(began).Seconds()
}

// await waits until so many messages have arrived in all.
func (d *drain) await(t testing.TB, target int64) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(40 * time.Minute)
	for d.arrived.Load() < target {
		select {
		case <-tick.C:
		case <-d.relay.ended:
			t.Fatal("the relay ended")
		case <-limit:
			t.Fatalf("%d messages did not arrive", target-d.arrived.Load())
		}
	}
}

func (d *drain) command(t testing.TB, args ...string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, append(args, "--config", d.relay.conf)...).CombinedOutput(); err != nil {
		t.Fatalf("koji-relay %v: %v\n%s", args, err, out)
	}
}

// fill adds rows with bodies of the common size, 0.9 kB, as puts leave them: with their commits, and as
// queued in the history where there is one. Topics alternate.
func (d *drain) fill(t testing.TB, rows int, nextAttempt string, topics ...string) {
	t.Helper()
	db := d.connect(t)
	defer db.Close(context.Background())
	if d.history {
		_, err := db.Exec(context.Background(),
			`SELECT koji_relay.history_add_day((now() AT TIME ZONE 'UTC')::date)`)
		if err != nil {
			t.Fatalf("begin a day of the history: %v", err)
		}
	}
	_, err := db.Exec(context.Background(), fmt.Sprintf(`
		WITH n AS (
			SELECT nextval('proton_queue_id_seq') AS id, gen_random_uuid() AS message_id, gen_random_uuid() AS commit,
				($2::text[])[1 + n %% cardinality($2)] AS topic
			FROM generate_series(1, $1) AS n
		), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, commit, address, size,
				callback, next_attempt)
			SELECT message_id, id, now(), now(), commit, topic, 1300, 'postTag', %s FROM n ORDER BY id
		), h AS (
			INSERT INTO koji_relay.history_message (at, settled, message_id, commit, event, size, fate, via,
				callback, address, package, build, tag, username, broker, reason, content)
			SELECT now(), now(), message_id, commit, 0, 1300, 'queued', 'socket', 'postTag', topic, 'bash',
				'bash-5.2-1', 'f40-updates', '', '', 'no broker', convert_to(repeat('0', 300), 'UTF8') FROM n
			WHERE $3
		), o AS (
			INSERT INTO koji_relay.history_open (message_id, handed) SELECT message_id, now() FROM n WHERE $3
		) INSERT INTO proton_queue (id, address, props, body)
		SELECT id, topic, '{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", "release": "1"}',
			json_build_object('n', id, 'build', repeat('0123456789', 85)) FROM n
		ORDER BY id`, nextAttempt), rows, topics, d.history)
	if err != nil {
		t.Fatalf("fill the queue: %v", err)
	}
}

func (d *drain) connect(t testing.TB) *pgx.Conn {
	t.Helper()
	db, err := pgx.Connect(within(t, 10*time.Second), d.server.connString(d.database))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// outboxes: what hubs with delivery = outbox left waiting, and what one commit costs on a quiet day.
func outboxes(t *table) {
	d := newDrain(t, nil)
	waiting := t.row("outbox, 20,000 commits of one event waiting", "1/s", "drain of as many from the queue",
		atLeast(0.5))
	n := t.n(20_000, 200)
	d.drain(t, n, tagTopic)
	for range t.rounds {
		d.relay.signal(t, syscall.SIGSTOP)
		d.fillOutbox(t, n)
		target := d.arrived.Load() + int64(n)
		began := time.Now()
		d.relay.signal(t, syscall.SIGCONT)
		d.await(t, target)
		waiting.add(float64(n)/time.Since(began).Seconds(), d.drain(t, n, tagTopic))
	}
	outboxLatency(t, d)
	d.relay.stop(t)
}

// fillOutbox inserts commits of one event.
func (d *drain) fillOutbox(t testing.TB, commits int) {
	t.Helper()
	db := d.connect(t)
	defer db.Close(context.Background())
	_, err := db.Exec(context.Background(), `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
		SELECT gen_random_uuid(), 0, 'postTag', json_build_object('tag', json_build_object('name', 'f40-updates'),
			'build', json_build_object('name', 'bash', 'version', '5.2', 'release', n::text,
				'extra', repeat('0123456789', 85)),
			'user', json_build_object('name', 'kojira'))
		FROM generate_series(1, $1) AS n`, commits)
	if err != nil {
		t.Fatalf("fill the outbox: %v", err)
	}
}

// outboxLatency: from a hub's COMMIT to the message at a subscriber, one commit after the other.
func outboxLatency(t *table, d *drain) {
	r := t.row("outbox, from COMMIT to the subscriber, p50", "µs", "NOTIFY to another session, and a raw send",
		atMost(3, 1000))
	raw := rawSender(t, t.broker40, fmt.Sprintf(rabbitmq40.prefix, "bench")+"."+tagTopic)
	part := d.database
	box := subscribe(t, t.broker40, rabbitmq40, rabbitmq40.sources(part, ledgerTopics)...)
	hub := &outboxHub{ledger: newLedger(d.server.connString(part)), poke: d.relay.pokeSocket()}
	n := t.n(200, 5)
	for range t.rounds {
		var took []float64
		for range n {
			id := hub.commit(t, 1)
			began := time.Now()
			box.waitFor(t, 30*time.Second, messageID(id, 0))
			took = append(took, float64(time.Since(began).Nanoseconds())/1000)
		}
		r.add(median(took), median(notifyTimes(t, d, n))+median(raw.times(t, n)))
	}
}

// notifyTimes is what PostgreSQL needs to tell another session that something was committed, in microseconds.
func notifyTimes(t testing.TB, d *drain, n int) (us []float64) {
	tell, hear := d.connect(t), d.connect(t)
	defer tell.Close(context.Background())
	defer hear.Close(context.Background())
	ctx := within(t, time.Minute)
	if _, err := hear.Exec(ctx, "LISTEN bench"); err != nil {
		t.Fatal(err)
	}
	for range n {
		began := time.Now()
		if _, err := tell.Exec(ctx, "NOTIFY bench"); err != nil {
			t.Fatal(err)
		}
		if _, err := hear.WaitForNotification(ctx); err != nil {
			t.Fatal(err)
		}
		us = append(us, float64(time.Since(began).Nanoseconds())/1000)
	}
	return us
}
