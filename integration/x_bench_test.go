package integration

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"github.com/jackc/pgx/v5"
)

// BenchmarkFigures measures what the hub pays, against the least that the same could cost: the same broker, the same
// database, in the same rounds, so that a machine that is slow at the moment is slow for both. It prints the table
// of `make bench`. The load is that of a hub: commits of one tagging from a hub worker's own code, and commits of 100 from
// four workers at once.
func BenchmarkFigures(b *testing.B) {
	for b.Loop() {
		measureFigures(b)
	}
}

// rounds is how often each pair is measured; the median counts.
func rounds(b *testing.B) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("KOJI_RELAY_BENCH_ROUNDS"), "5"))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

const handOvers = 300 // of each round

func measureFigures(b *testing.B) {
	broker := startBroker(b, rabbitmq40)
	database := startPostgres(b)
	countArrivals(b, broker, rabbitmq40.sources("bench", []string{tagTopic})[0])

	up := startRelay(b, forBroker(rabbitmq40, "bench", broker).with(newDatabase(b, database, "bench_up")), broker)
	refused := startRelay(b, settings{"broker.urls": "amqp://127.0.0.1:1 amqp://127.0.0.1:2", "broker.topic_prefix": "/topic/bench"}.
		with(newDatabase(b, database, "bench_refused")))
	silent := startRelay(b, settings{"broker.urls": silentBroker(b) + " " + silentBroker(b), "broker.topic_prefix": "/topic/bench"}.
		with(newDatabase(b, database, "bench_silent")))
	pythonHandOver(b, silent.socket, 1) // handoff_timeout is spent here, once

	raw := rawSender(b, broker, fmt.Sprintf(rabbitmq40.prefix, "bench")+"."+tagTopic)
	insert := rawInsert(b, database)
	var rows [4]comparison
	for range rounds(b) {
		rows[0].add(pythonHandOver(b, up.socket, handOvers), raw.median(b))
		rows[1].add(pythonHandOver(b, refused.socket, handOvers), insert(b))
		rows[2].add(pythonHandOver(b, silent.socket, handOvers), insert(b))
		rows[3].add(relayThroughput(b, up), raw.throughput(b))
	}
	fmt.Printf("\n%-46s %12s %12s %8s   aim\n", "median of "+strconv.Itoa(rounds(b))+" rounds", "koji-relay", "raw", "ratio")
	line := func(name string, p comparison, unit, aim string) {
		mine, theirs := p.medians()
		fmt.Printf("%-46s %9.0f %-2s %9.0f %-2s %8.2f   %s\n", name, mine, unit, theirs, unit, mine/theirs, aim)
	}
	line("hand-over, broker up / send and settle", rows[0], "µs", "2.5 + 0.5 ms")
	line("hand-over, brokers refusing / INSERT, COMMIT", rows[1], "µs", "2.0 + 0.5 ms")
	line("hand-over, brokers silent / INSERT, COMMIT", rows[2], "µs", "2.0 + 0.5 ms")
	line("messages a second, 4 x 100 / pipelined sender", rows[3], "/s", "0.8")
	fmt.Printf("%-46s %9.1f MiB\n", "anonymous resident memory of the relay", anonymousMiB(b, up))
}

// comparison collects the two sides of one comparison, round by round.
type comparison struct{ mine, theirs []float64 }

func (p *comparison) add(mine, theirs float64) {
	p.mine, p.theirs = append(p.mine, mine), append(p.theirs, theirs)
}

func (p *comparison) medians() (mine, theirs float64) { return median(p.mine), median(p.theirs) }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// pythonHandOver gives the median of n hand-overs by the hub plugin's code, in microseconds.
func pythonHandOver(b *testing.B, socket string, n int) float64 {
	python := cmp.Or(os.Getenv("KOJI_RELAY_PYTHON"), "../.cache/venv/bin/python")
	cmd := exec.Command(python, "../hubplugin/tests/handover.py", socket, strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("hand over with the plugin: %v", err)
	}
	us, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return us
}

// plainSender is what sending costs without a relay.
type plainSender struct{ *amqp.Sender }

func rawSender(b *testing.B, s *server, target string) plainSender {
	ctx := within(b, 10*time.Second)
	conn, err := amqp.Dial(ctx, "amqp://"+s.addr(), s.dialOptions())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	sender, err := session.NewSender(ctx, target, nil)
	if err != nil {
		b.Fatal(err)
	}
	return plainSender{sender}
}

func tagMessage() *amqp.Message {
	return &amqp.Message{
		Value: strings.Repeat("x", 800),
		ApplicationProperties: map[string]any{
			"type": "Tag", "tag": "f40-updates", "name": "package", "version": "1.2.3", "release": "4.fc40", "user": "builder",
		},
	}
}

// median is the time of one send with its settlement, in microseconds.
func (s plainSender) median(b *testing.B) float64 {
	var times []float64
	for range handOvers {
		start := time.Now()
		if err := s.Send(within(b, 10*time.Second), tagMessage(), nil); err != nil {
			b.Fatal(err)
		}
		times = append(times, float64(time.Since(start).Microseconds()))
	}
	return median(times)
}

const throughputMessages = 20_000

// throughput sends without waiting for settlements in between, and gives messages a second.
func (s plainSender) throughput(b *testing.B) float64 {
	ctx := within(b, time.Minute)
	const window = 400 // as many as four commits of 100
	receipts := make(chan amqp.SendReceipt, window)
	start := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		for r := range receipts {
			if _, err := r.Wait(ctx); err != nil {
				b.Error(err)
			}
		}
	})
	for range throughputMessages {
		r, err := s.SendWithReceipt(ctx, tagMessage(), nil)
		if err != nil {
			b.Fatal(err)
		}
		receipts <- r
	}
	close(receipts)
	wg.Wait()
	return throughputMessages / time.Since(start).Seconds()
}

// relayThroughput hands over commits of 100 messages from four clients, and gives messages a second.
func relayThroughput(b *testing.B, r *relay) float64 {
	const clients, messages = 4, 100
	start := time.Now()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range throughputMessages / clients / messages {
				body, _ := tagCommit(messages)
				if a, err := r.post(context.Background(), body); err != nil || a.Sent != messages {
					b.Errorf("answer %+v, %v; want %d sent", a, err, messages)
				}
			}
		})
	}
	wg.Wait()
	return throughputMessages / time.Since(start).Seconds()
}

// rawInsert gives a function that measures one INSERT with its COMMIT into a table like Koji's, in microseconds.
func rawInsert(b *testing.B, s *server) func(*testing.B) float64 {
	ctx := within(b, 10*time.Second)
	db, err := pgx.Connect(ctx, s.connString("postgres"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close(context.Background()) })
	_, err = db.Exec(ctx, `CREATE TABLE plain (id serial PRIMARY KEY, created_ts timestamptz DEFAULT now(), address text, props json, body json)`)
	if err != nil {
		b.Fatal(err)
	}
	body := `{"x": "` + strings.Repeat("x", 800) + `"}`
	return func(b *testing.B) float64 {
		var times []float64
		for range handOvers {
			start := time.Now()
			_, err := db.Exec(context.Background(), `INSERT INTO plain (address, props, body) VALUES ('build.tag', '{"type": "Tag"}', $1)`, body)
			if err != nil {
				b.Fatal(err)
			}
			times = append(times, float64(time.Since(start).Microseconds()))
		}
		return median(times)
	}
}

// silentBroker takes connections and never says a word. It gives its URL.
func silentBroker(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
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
	b.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range held {
			c.Close()
		}
	})
	return "amqp://" + l.Addr().String()
}

// anonymousMiB is the process's own memory, without the files that it has mapped.
func anonymousMiB(b *testing.B, r *relay) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.process.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatal("no RssAnon in /proc")
	return 0
}
