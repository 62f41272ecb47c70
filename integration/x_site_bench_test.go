package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/jackc/pgx/v5"
)

// startSite starts the servers and the relays that several parts share. The relays reach containers by their
// own address: the engine's proxy on a published port adds about 0.1 ms to each round trip, to both sides of
// a comparison, and hides ratios.
func (t *table) startSite() {
	t.postgres = newServer(t, postgresService)
	t.broker40, t.broker310 = newServer(t, rabbitmq40.service), newServer(t, rabbitmq310.service)
	for _, s := range []*server{t.postgres, t.broker40, t.broker310} {
		t.Cleanup(s.remove)
		s.reachDirectly(t)
	}
	t.postgres.awaitPostgres(t)
	t.broker40.awaitBroker(t)
	t.broker310.awaitBroker(t)
	// The image's limit of 1 MiB is for the tests of what a broker does not take. RabbitMQ's own is 16 MiB.
	t.broker40.exec(t, runScript, "ctl", "eval", "persistent_term:put(max_message_size, 16777216).")
	countArrivals(t, t.broker40, rabbitmq40.sources("bench", ledgerTopics)...)
	countArrivals(t, t.broker310, rabbitmq310.sources("bench", ledgerTopics)...)
	t.up = startRelay(t, forBroker(rabbitmq40, "bench", t.broker40).with(t.database()), t.broker40)
	t.refused = startRelay(t, settings{"broker.urls": "amqp://127.0.0.1:1 amqp://127.0.0.1:2",
		"broker.topic_prefix": "/topic/bench"}.with(t.database()))
	t.silent = startRelay(t, settings{"broker.urls": silentBroker(t) + " " + silentBroker(t),
		"broker.topic_prefix": "/topic/bench"}.with(t.database()))
	pluginHandOver(t, t.silent.socket, 1) // handoff_timeout is spent here, once
}

// database is a queue of a relay's own on the table's PostgreSQL.
func (t *table) database() settings {
	set := newDatabase(t, t.postgres, "bench"+strconv.FormatInt(parts.Add(1), 10))
	if t.scale < 1 {
		// Whether it is soon enough is not what a small run is about.
		set["queue.store_timeout"], set["plugin.timeout"] = "30", "60"
	}
	return set
}

// reachDirectly makes the tests reach a container by its own address, not by the port that the engine
// publishes for it.
func (s *server) reachDirectly(t testing.TB) {
	m, ok := s.machine.(*dockerMachine)
	if !ok {
		return // a process on this machine: there is nothing in between
	}
	ip, err := m.container.ContainerIP(within(t, 10*time.Second))
	if err != nil {
		t.Fatalf("find the address of %s: %v", s.service, err)
	}
	s.host, s.port = ip, 5672
	if strings.HasPrefix(s.service, "postgres") {
		s.port = 5432
	}
}

// plainSender is what sending costs without a relay.
type plainSender struct{ *amqp.Sender }

func rawSender(t testing.TB, s *server, target string) plainSender {
	ctx := within(t, 10*time.Second)
	conn, err := amqp.Dial(ctx, "amqp://"+s.addr(), s.dialOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	sender, err := session.NewSender(ctx, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plainSender{sender}
}

// tagMessage is a message as the relay sends it for a commit of tagCommit.
func tagMessage() *amqp.Message {
	return &amqp.Message{
		Value: strings.Repeat("x", 800),
		ApplicationProperties: map[string]any{
			"type": "Tag", "tag": "f40-updates", "name": "package", "version": "1.2.3",
			"release": "4.fc40", "user": "builder",
		},
	}
}

// times sends n messages, each after the settlement of the one before, and gives what each took in
// microseconds.
func (s plainSender) times(t testing.TB, n int) (us []float64) {
	for range n {
		began := time.Now()
		if err := s.Send(within(t, 10*time.Second), tagMessage(), nil); err != nil {
			t.Fatal(err)
		}
		us = append(us, float64(time.Since(began).Nanoseconds())/1000)
	}
	return us
}

// throughput sends n messages without waiting for settlements in between, and gives messages a second.
func (s plainSender) throughput(n int) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const window = 400 // as many as four commits of 100
	receipts := make(chan amqp.SendReceipt, window)
	settled := make(chan error, 1) // nobody may wait for it
	began := time.Now()
	go func() {
		var failed error
		for r := range receipts {
			if _, err := r.Wait(ctx); err != nil {
				failed = err
			}
		}
		settled <- failed
	}()
	for range n {
		r, err := s.SendWithReceipt(ctx, tagMessage(), nil)
		if err != nil {
			return 0, err
		}
		receipts <- r
	}
	close(receipts)
	err := <-settled
	return float64(n) / time.Since(began).Seconds(), err
}

// mustThroughput is throughput that must work.
func (s plainSender) mustThroughput(t testing.TB, n int) float64 {
	rate, err := s.throughput(n)
	if err != nil {
		t.Fatal(err)
	}
	return rate
}

// inserter is what storing costs without a relay: an INSERT with its COMMIT into a table like Koji's.
type inserter struct{ *pgx.Conn }

var plainTable atomic.Bool

func newInserter(t testing.TB, s *server) inserter {
	ctx := within(t, 10*time.Second)
	db, err := pgx.Connect(ctx, s.connString("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(context.Background()) })
	_, err = db.Exec(ctx, `CREATE TABLE IF NOT EXISTS plain (id serial PRIMARY KEY,
		created_ts timestamptz DEFAULT now(), address text, props json, body json)`)
	if err != nil && !plainTable.Load() {
		t.Fatal(err)
	}
	plainTable.Store(true)
	return inserter{db}
}

// times inserts n rows and gives what each took in microseconds.
func (i inserter) times(t testing.TB, n int) (us []float64) {
	body := `{"x": "` + strings.Repeat("x", 800) + `"}`
	for range n {
		began := time.Now()
		_, err := i.Exec(context.Background(),
			`INSERT INTO plain (address, props, body) VALUES ('build.tag', '{"type": "Tag"}', $1)`, body)
		if err != nil {
			t.Error(err)
			return us
		}
		us = append(us, float64(time.Since(began).Nanoseconds())/1000)
	}
	return us
}

// silentBroker takes connections and never says a word. It gives its URL.
func silentBroker(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range held {
			c.Close()
		}
	})
	return "amqp://" + l.Addr().String()
}

// countArrivals subscribes and counts what comes.
func countArrivals(t testing.TB, s *server, sources ...string) *atomic.Int64 {
	ctx := within(t, 10*time.Second)
	conn, err := amqp.Dial(ctx, "amqp://"+s.addr(), s.dialOptions())
	if err != nil {
		t.Fatal(err)
	}
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var arrived atomic.Int64
	settled := amqp.SenderSettleModeSettled // nothing to answer
	for _, source := range sources {
		receiver, err := session.NewReceiver(ctx, source,
			&amqp.ReceiverOptions{Credit: 1000, RequestedSenderSettleMode: &settled})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, err := receiver.Receive(context.Background(), nil); err != nil {
					return // the connection is closed
				}
				arrived.Add(1)
			}
		}()
	}
	t.Cleanup(func() { conn.Close() })
	return &arrived
}

// anonymousMiB is the process's own memory, without the files that it has mapped.
func anonymousMiB(t testing.TB, r *relay) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.process.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1024
		}
	}
	t.Fatal("no RssAnon in /proc")
	return 0
}

// watchMemory samples the relay's own memory until stop, which gives the most that it had, in MiB.
func watchMemory(t testing.TB, r *relay) (stop func() float64) {
	ctx, cancel := context.WithCancel(context.Background())
	peak := make(chan float64, 1) // nobody may wait for it
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var most float64
		for {
			most = max(most, anonymousMiB(t, r))
			select {
			case <-tick.C:
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

// processorSeconds is the processor time that a process has used.
func processorSeconds(t testing.TB, pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("read /proc: %v, %v", err1, err2)
	}
	return (user + system) / 100 // the kernel's ticks
}
