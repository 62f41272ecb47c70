package integration

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/jackc/pgx/v5"
)

// BenchmarkBacklogDrain drains the backlog of an outage to a real RabbitMQ, from a real PostgreSQL, and compares its rate with
// that of 10,000 rows, drained by the same relay from the same server immediately before and after: alone, behind 100,000
// messages that wait for their next attempt, and while another session holds an old snapshot open. Messages are
// counted where they arrive. KOJI_RELAY_BENCH_ROWS is the size of the backlog.
func BenchmarkBacklogDrain(b *testing.B) {
	for b.Loop() {
		measureDrain(b)
	}
}

const (
	smallBacklog   = 10_000
	waitingRows    = 100_000
	benchBatchSize = 1000 // of the example configuration
)

func measureDrain(b *testing.B) {
	rows, err := strconv.Atoi(cmp.Or(os.Getenv("KOJI_RELAY_BENCH_ROWS"), "50000"))
	if err != nil {
		b.Fatal(err)
	}
	broker, database := startBroker(b, rabbitmq40), startPostgres(b)
	d := &drainBench{arrived: countArrivals(b, broker, rabbitmq40.sources("drain", []string{tagTopic})[0]), server: database}
	fmt.Printf("\n%-34s %12s %12s %8s %14s   aim 0.9, 64 MiB\n", "messages a second, drained", "10,000", strconv.Itoa(rows), "ratio", "RssAnon")
	for _, state := range []struct {
		name    string
		prepare func()
	}{
		{"alone", func() {}},
		{"behind 100,000 waiting", func() { d.fill(b, waitingRows, "now() + interval '1 hour'") }},
		{"with an old snapshot", func() { d.hold(b) }},
	} {
		d.database = "drain_" + strconv.FormatInt(parts.Add(1), 10)
		d.relay = startRelay(b, forBroker(rabbitmq40, "drain", broker).with(newDatabase(b, database, d.database),
			settings{"queue.batch_size": strconv.Itoa(benchBatchSize)}), broker)
		d.drain(b, smallBacklog) // plans and caches
		state.prepare()
		before := d.drain(b, smallBacklog)
		stop := d.watchMemory(b)
		whole := d.drain(b, rows)
		peak := stop()
		after := d.drain(b, smallBacklog)
		small := (before + after) / 2
		fmt.Printf("%-34s %12.0f %12.0f %8.2f %10.1f MiB\n", state.name, small, whole, whole/small, peak)
		d.relay.kill(b)
	}
}

// drainBench is one relay with its database and the count of what arrived.
type drainBench struct {
	relay    *relay
	server   *server
	database string
	arrived  *atomic.Int64
}

// drain fills the queue while the drain is paused, and gives the messages a second from its resumption until all arrived.
func (d *drainBench) drain(b *testing.B, rows int) float64 {
	b.Helper()
	d.command(b, "pause")
	d.fill(b, rows, "NULL")
	target := d.arrived.Load() + int64(rows)
	d.command(b, "resume")
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Minute)
	for d.arrived.Load() < target {
		select {
		case <-tick.C:
		case <-d.relay.ended:
			b.Fatal("the relay ended")
		case <-limit:
			b.Fatalf("%d of %d messages did not arrive", target-d.arrived.Load(), rows)
		}
	}
	return float64(rows) / time.Since(began).Seconds()
}

func (d *drainBench) command(b *testing.B, args ...string) {
	b.Helper()
	path, err := binary()
	if err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command(path, append(args, "--config", d.relay.conf)...).CombinedOutput(); err != nil {
		b.Fatalf("koji-relay %v: %v\n%s", args, err, out)
	}
}

// fill adds rows with bodies of the common size, 0.9 kB, as puts leave them.
func (d *drainBench) fill(b *testing.B, rows int, nextAttempt string) {
	b.Helper()
	db := d.connect(b)
	defer db.Close(context.Background())
	_, err := db.Exec(context.Background(), fmt.Sprintf(`
		WITH n AS (SELECT nextval('proton_queue_id_seq') AS id FROM generate_series(1, %d)), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size, callback, next_attempt)
			SELECT gen_random_uuid(), id, now(), now(), '%s', 1300, 'postTag', %s FROM n ORDER BY id
		) INSERT INTO proton_queue (id, address, props, body)
		SELECT id, '%[2]s', '{"type": "Tag", "tag": "f40-updates", "name": "bash", "version": "5.2", "release": "1", "user": "kojira"}',
			json_build_object('n', id, 'build', repeat('0123456789', 85)) FROM n ORDER BY id`, rows, tagTopic, nextAttempt))
	if err != nil {
		b.Fatalf("fill the queue: %v", err)
	}
}

// hold keeps a snapshot open until the test ends, as a backup does: nothing deleted meanwhile can be cleaned up.
func (d *drainBench) hold(b *testing.B) {
	b.Helper()
	db := d.connect(b)
	b.Cleanup(func() { db.Close(context.Background()) })
	if _, err := db.Exec(context.Background(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM proton_queue"); err != nil {
		b.Fatal(err)
	}
}

func (d *drainBench) connect(b *testing.B) *pgx.Conn {
	b.Helper()
	db, err := pgx.Connect(within(b, 10*time.Second), d.server.connString(d.database))
	if err != nil {
		b.Fatal(err)
	}
	return db
}

// watchMemory samples the relay's own memory until stop, which gives the most that it had, in MiB.
func (d *drainBench) watchMemory(b *testing.B) (stop func() float64) {
	ctx, cancel := context.WithCancel(context.Background())
	peak := make(chan float64, 1) // nobody may wait for it
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		var most float64
		for {
			select {
			case <-tick.C:
				most = max(most, anonymousMiB(b, d.relay))
			case <-d.relay.ended: // drain says so
				peak <- most
				return
			case <-ctx.Done():
				peak <- most
				return
			}
		}
	}()
	return func() float64 {
		cancel()
		return <-peak
	}
}

// countArrivals subscribes and counts what comes.
func countArrivals(b *testing.B, s *server, source string) *atomic.Int64 {
	ctx := within(b, 10*time.Second)
	conn, err := amqp.Dial(ctx, "amqp://"+s.addr(), s.dialOptions())
	if err != nil {
		b.Fatal(err)
	}
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	settled := amqp.SenderSettleModeSettled // nothing to answer
	receiver, err := session.NewReceiver(ctx, source, &amqp.ReceiverOptions{Credit: 1000, RequestedSenderSettleMode: &settled})
	if err != nil {
		b.Fatal(err)
	}
	var arrived atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := receiver.Receive(context.Background(), nil); err != nil {
				return // the connection is closed
			}
			arrived.Add(1)
		}
	}()
	b.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &arrived
}
