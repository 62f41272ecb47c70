package integration

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// inflightMiB is what the relay may have at the most beside its own: max_inflight_bytes and four times
// batch_bytes.
const inflightMiB = 128 + 4*8

// memory: what the relay needs of its own. The rows of load and of draining stand beside their rates.
func memory(t *table) {
	idle := t.row("memory, idle, RssAnon", "MiB", "", below(16))
	bodies := t.row("memory, draining bodies of 8 MB, RssAnon", "MiB", "", below(64+inflightMiB))
	tiny := t.row("memory, a million tiny events in one request, RssAnon", "MiB", "", below(64+inflightMiB))
	for range min(t.rounds, 3) {
		d := newDrain(t, nil)
		idle.add(anonymousMiB(t, d.relay), 0)
		d.command(t, "pause")
		d.fillLarge(t, t.n(20, 2), t.n(8_000_000, 10_000))
		target := d.arrived.Load() + int64(t.n(20, 2))
		stop := watchMemory(t, d.relay)
		d.command(t, "resume")
		d.await(t, target)
		bodies.add(stop(), 0)
		d.relay.stop(t)

		r := startRelay(t, forBroker(rabbitmq40, "tiny", t.broker40).with(t.database()), t.broker40)
		stop = watchMemory(t, r)
		r.post(context.Background(), tinyCommit(t.n(1_000_000, 100))) // refused or taken: it must not cost more
		tiny.add(stop(), 0)
		r.stop(t)
	}
}

// tinyCommit is a commit of n events that make no message, or as many as the largest request holds.
func tinyCommit(n int) []byte {
	var text bytes.Buffer
	fmt.Fprintf(&text, `{"commit":%q,"events":[`, uuid.NewString())
	for i := range n {
		const event = `{"callback":"postTag","kwargs":{}}`
		if text.Len()+2*len(event) > 64<<20 {
			break
		}
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(event)
	}
	text.WriteString("]}")
	return text.Bytes()
}

// fillLarge adds rows with bodies of so many bytes.
func (d *drain) fillLarge(t *table, rows, size int) {
	db := d.connect(t)
	defer db.Close(context.Background())
	_, err := db.Exec(context.Background(), `
		WITH n AS (SELECT nextval('proton_queue_id_seq') AS id FROM generate_series(1, $1::int)), d AS (
			INSERT INTO koji_relay.delivery (message_id, queue_id, created_ts, created, address, size, callback)
			SELECT gen_random_uuid(), id, now(), now(), 'build.tag', $2::int, 'postTag' FROM n ORDER BY id
		) INSERT INTO proton_queue (id, address, props, body)
		SELECT id, 'build.tag', '{"type": "Tag"}', json_build_object('n', repeat('0123456789', $2::int / 10)) FROM n
		ORDER BY id`, rows, size)
	if err != nil {
		t.Fatalf("fill the queue: %v", err)
	}
}

// translation: decoding and translating real commits on one core, against the least that reading them could
// cost.
func translation(t *table) {
	rate := t.row("translation of the golden commits, one core", "MB/s", "json.Valid over the same bytes",
		atLeast(0.7))
	allocations := t.row("translation, allocations for each event", "", "", reported())
	for range t.rounds {
		const benchmarks = "GoldenCommits/protonmsg|GoldenValid"
		cmd := exec.Command("go", "test", "-run", "^$", "-bench", benchmarks, "-benchmem",
			"-cpu", "1", "-benchtime", strconv.Itoa(t.n(300, 1))+"ms", "koji-relay/callbacks")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("benchmarks of callbacks: %v\n%s", err, out)
		}
		figure := func(pattern string) float64 {
			found := regexp.MustCompile(pattern).FindSubmatch(out)
			if found == nil {
				t.Fatalf("benchmarks of callbacks said nothing that matches %s:\n%s", pattern, out)
			}
			value, err := strconv.ParseFloat(string(found[1]), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
		rate.add(figure(`GoldenCommits/protonmsg\S*\s.*\s([\d.]+) MB/s`),
			figure(`GoldenValid\S*\s.*\s([\d.]+) MB/s`))
		allocations.add(figure(`GoldenCommits/protonmsg\S*\s.*\s([\d.]+) allocs/op`)/
			figure(`GoldenCommits/protonmsg\S*\s.*\s([\d.]+) events/op`), 0)
	}
}

// peers are others that publish, on the same broker, for the table side by side in docs/performance.md.
func peers(t *table) {
	const relayUp = "koji-relay, the plugin's hand-over"
	n := t.n(100, 3)
	for _, peer := range []struct{ name, mode string }{
		{"peer: python-proton, a container for each commit as protonmsg", "each"},
		{"peer: python-proton, a connection that is kept", "kept"},
	} {
		r := t.row(peer.name+", p50", "µs", relayUp, reported())
		for range t.rounds {
			theirs, _ := pluginHandOver(t, t.up.socket, n)
			cmd := exec.Command(protonPython(t), "proton_sender.py", "amqp://"+t.broker40.addr(), user, password,
				fmt.Sprintf(rabbitmq40.prefix, "bench")+"."+tagTopic, peer.mode, strconv.Itoa(n))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("proton_sender.py: %v\n%s", err, out)
			}
			us, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				t.Fatalf("proton_sender.py said %q", out)
			}
			r.add(us, theirs)
		}
	}
	passThrough(t)
}

// passThrough is a relay that neither translates nor stores: the body of a request goes to the broker with
// go-amqp.
func passThrough(t *table) {
	r := t.row("peer: pass-through on go-amqp, 4 clients x 100", "1/s", "koji-relay, the same commits",
		reported())
	target := fmt.Sprintf(rabbitmq40.prefix, "bench") + "." + tagTopic
	sender := rawSender(t, t.broker40, target)
	socket := servePassThrough(t, sender)
	messages := t.n(20_000, 800)
	for range t.rounds {
		began := time.Now()
		clientsPost(t, socket, 4, messages/100)
		r.add(float64(messages/100*100)/time.Since(began).Seconds(), t.throughput(t.up, 4, 100, messages))
	}
}
