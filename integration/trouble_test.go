package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
)

// The cases of the suite in which a broker or a message misbehaves, and those with subscribers of another
// kind.

// selector: Jenkins jobs and others choose messages by their application-properties, types included.
func selector(t *testing.T, b brokerKind, s *server) {
	g := loadGolden(t, "extra0")
	part := newPart()
	with := func(text string) *inbox {
		return attach(t, s, "", b.sources(part, []string{"task.closed"}), func(string) *amqp.ReceiverOptions {
			return &amqp.ReceiverOptions{
				Credit: credit, SourceCapabilities: b.capabilities,
				Filters: []amqp.LinkFilter{amqp.NewSelectorFilter(text)},
			}
		})
	}
	closed := with("type = 'TaskStateChange' AND new = 'CLOSED' AND id > 0")
	none := with("new = 'CLOSED' AND id < 0")
	var want []string
	for _, m := range g.messages {
		if m.Address == "task.closed" {
			want = append(want, m.id())
		}
	}
	if len(want) == 0 {
		t.Fatal("no golden message closes a task")
	}
	r := startRelay(t, forBroker(b, part, s), s)
	r.postGolden(t, g)
	closed.waitFor(t, 20*time.Second, want...)
	if n := len(closed.byID()); n != len(want) {
		t.Errorf("the selector found %d messages, want %d", n, len(want))
	}
	if n := len(none.byID()); n != 0 {
		t.Errorf("the selector that fits nothing found %d messages", n)
	}
}

// patientDisk is for a busy machine, where the disk may take longer than a hub would wait.
var patientDisk = settings{"queue.store_timeout": "20", "plugin.timeout": "60"}

// bigCommit is a commit of three tag events; the body of the middle one has about size bytes.
func bigCommit(size int) (body []byte, ids []string) {
	body, ids = tagCommit(3)
	filler := fmt.Sprintf(`"release": "1.fc39", "extra": {"filler": "%s"}`, strings.Repeat("x", size))
	return bytes.Replace(body, []byte(`"release": "1.fc39", "extra": null`), []byte(filler), 1), ids
}

func tooLarge(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s).with(patientDisk), s)
	body, ids := bigCommit(2 * b.maxMessage)
	a := r.mustPost(t, body)
	if a.Sent+a.Queued+a.Dead != 3 {
		t.Errorf("the relay says sent %d, queued %d, dead %d for 3 events", a.Sent, a.Queued, a.Dead)
	}
	box.waitFor(t, 30*time.Second, ids[0], ids[2])
	for range 5 {
		body, after := tagCommit(1)
		r.mustPost(t, body)
		box.waitFor(t, 30*time.Second, after...)
	}
	if len(box.byID()[ids[1]]) != 0 {
		t.Error("the message that is too large arrived")
	}
}

func large(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s).with(patientDisk), s)
	const size = 4 << 20
	body, ids := bigCommit(size)
	r.mustPost(t, body)
	box.waitFor(t, 30*time.Second, ids...)
	if d := box.byID()[ids[1]][0]; d.Body == nil || len(*d.Body) < size {
		t.Errorf("a body of %d bytes did not arrive whole", size)
	}
}

// severalFrames: a message of several frames goes out while others are sent to another address. RabbitMQ 3
// settles by ranges of delivery-ids, in which it expects one message to be whole before the next begins.
func severalFrames(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{tagTopic, "build.untag"})...)
	// How long it takes is not the question here.
	patient := settings{"relay.handoff_timeout": "20", "plugin.timeout": "60"}
	r := startRelay(t, forBroker(b, part, s).with(patient), s)
	const workers, commits = 4, 25
	var (
		posting sync.WaitGroup
		mu      sync.Mutex // guards all
		all     []string
	)
	for range workers {
		posting.Go(func() {
			for range commits {
				body, ids := bigCommit(300 << 10)
				mu.Lock()
				all = append(all, ids...)
				mu.Unlock()
				body = bytes.Replace(body, []byte("postTag"), []byte("postUntag"), 1)
				a, err := r.post(within(t, 30*time.Second), body)
				if err != nil || a.Sent != len(ids) {
					t.Errorf("sent %d, queued %d (%v) after %v; want sent %d", a.Sent, a.Queued, err, a.Took, len(ids))
					return
				}
			}
		})
	}
	posting.Wait()
	box.waitFor(t, 30*time.Second, all...)
	for id, copies := range box.byID() {
		if len(copies) != 1 {
			t.Errorf("message %s arrived %d times", id, len(copies))
		}
	}
}

func unboundTopic(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{"package.add"})...)
	bound := bytes.ReplaceAll(mustTagCommit(1), []byte("postTag"), []byte("postPackageListChange"))
	bound = bytes.Replace(bound, []byte(`"kwargs": {`),
		[]byte(`"kwargs": {"action": "add", "package": {"name": "pkg"}, `), 1)

	r := startRelay(t, forBroker(b, part, s), s)
	var unbound answer
	for range 40 {
		body, _ := tagCommit(5)
		a := r.mustPost(t, body)
		unbound.Sent += a.Sent
		unbound.Queued += a.Queued
	}
	if b.released && unbound.Queued != 200 || !b.released && unbound.Sent != 200 {
		t.Errorf("of 200 messages that nobody subscribed to, %d were sent and %d queued", unbound.Sent,
			unbound.Queued)
	}
	a := r.mustPost(t, bound)
	if a.Sent != 1 || a.Took > promptly(500*time.Millisecond) {
		t.Errorf("a message to another topic: sent %d after %v", a.Sent, a.Took)
	}
	eventually(t, 20*time.Second, "the other topic's message arrives", func() error {
		if len(box.byID()) == 0 {
			return fmt.Errorf("it has not")
		}
		return nil
	})
	r.stop(t)

	// Dropped on purpose counts as sent.
	r.configure(t, forBroker(b, part, s).with(settings{"broker.unroutable": "drop"}))
	r.start(t)
	r.awaitConnected(t, s)
	body, _ := tagCommit(5)
	if a := r.mustPost(t, body); a.Sent != 5 {
		t.Errorf("unroutable = drop: sent %d, queued %d; want sent 5", a.Sent, a.Queued)
	}
}

func mustTagCommit(n int) []byte {
	body, _ := tagCommit(n)
	return body
}

// alarm: RabbitMQ stops reading from publishers when it is short of memory. From 4.0 on it says so, and the
// relay does before a message is tried.
func alarm(t *testing.T, b brokerKind, s *server) {
	blockedBroker(t, b, s, b.alarmBlocks,
		func(r *relay) {
			s.exec(t, runScript, "ctl", "set_vm_memory_high_watermark", "0.000001")
			eventually(t, 20*time.Second, "the alarm", func() error {
				if alarms := s.exec(t, runScript, "ctl", "eval", "rabbit_alarm:get_alarms()."); !strings.Contains(alarms,
					"memory") {
					return fmt.Errorf("alarms are %s", alarms)
				}
				return nil
			})
			if b.alarmBlocks {
				r.await(t, "broker stalled", map[string]string{"broker": s.addr()})
			}
		},
		func() { s.exec(t, runScript, "ctl", "set_vm_memory_high_watermark", "0.6") })
}

func frozen(t *testing.T, b brokerKind, s *server) {
	blockedBroker(t, b, s, true, func(*relay) { s.freeze(t) }, func() { s.thaw(t) })
}

// blockedBroker checks what the hub sees while the broker is connected and takes nothing, and that everything
// arrives afterwards. stalls: does the block keep the broker from settling?
func blockedBroker(t *testing.T, b brokerKind, s *server, stalls bool, block func(*relay),
	unblock func()) {
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s), s)
	body, all := tagCommit(1)
	r.mustPost(t, body)
	box.waitFor(t, 20*time.Second, all...)

	block(r)
	blocked := true
	defer func() {
		if blocked {
			unblock()
		}
	}()
	ids, _ := postQuickly(t, r, 60, 1)
	all = append(all, ids...)
	if stalls && r.log.count("broker stalled", map[string]string{"broker": s.addr()}) == 0 {
		t.Error("the log does not say that the broker stalled")
	}
	unblock()
	blocked = false
	box.waitFor(t, 90*time.Second, all...)
}

// waited is how long an answer takes only if it waited for the hand-off timeout of 1 s; what is slower than
// usual and quicker than this, a busy machine explains.
const waited = 700 * time.Millisecond

// postQuickly posts commits to a relay whose broker takes nothing: one of them may cost the hand-off timeout,
// and one more is forgiven since the block may come in the middle. It gives the message-ids and how many were
// queued.
func postQuickly(t *testing.T, r *relay, commits, events int) (all []string, queued int) {
	t.Helper()
	var slow []time.Duration
	for range commits {
		body, ids := tagCommit(events)
		a := r.mustPost(t, body)
		all = append(all, ids...)
		queued += a.Queued
		if a.Took > promptly(waited) {
			slow = append(slow, a.Took)
		}
		if a.Took > promptly(1500*time.Millisecond) {
			t.Errorf("an answer took %v", a.Took)
		}
	}
	if len(slow) > 2 {
		t.Errorf("%d of %d answers waited for the broker: %v", len(slow), commits, slow)
	}
	return all, queued
}

// fullAddress: Artemis gives no credit for an address that is full, or rejects what is sent there. The
// subscriber that should empty it is away at first.
func fullAddress(t *testing.T, b brokerKind, s *server) {
	for _, prefix := range b.full {
		b.prefix, b.source = prefix, prefix+".%s"
		part := newPart()
		open := durable(t, b, s, part, tagTopic)
		r := startRelay(t, forBroker(b, part, s).with(settings{"message.durable": "on", "queue.interval": "1"}), s)
		var all []string
		// Full is only what the credit given before has been used up for. That a message is queued can have
		// another cause on a busy machine, so the broker is asked.
		for full := false; !full && len(all) < 6000; {
			ids, queued := postQuickly(t, r, 10, 10)
			all, full = append(all, ids...), queued > 0 && takesNothing(t, s, b.sources(part, []string{tagTopic})[0])
		}
		ids, queued := postQuickly(t, r, 10, 10)
		all = append(all, ids...)
		if queued == 0 {
			t.Errorf("the address took %d messages and was not full", len(all))
		}
		if prefix == b.full[0] {
			r.await(t, "broker stalled", map[string]string{"cause": "it gives no credit for build.tag: the address " +
				"is full or not served, or an alarm (memory, disk) blocks publishers"})
		}
		// Another address of the same broker is served soon, although nothing else happens.
		eventually(t, 20*time.Second, "a message to another address is sent", func() error {
			body, _ := tagCommit(1)
			if a := r.mustPost(t, bytes.Replace(body, []byte("postTag"), []byte("postUntag"), 1)); a.Sent != 1 {
				return fmt.Errorf("the relay says sent %d, queued %d", a.Sent, a.Queued)
			}
			return nil
		})
		open().waitFor(t, 90*time.Second, all...)
	}
}

// takesNothing reports whether the broker gives a sender of ours no credit, or refuses its message.
func takesNothing(t *testing.T, s *server, address string) bool {
	t.Helper()
	conn, err := s.dial(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(within(t, time.Minute), nil)
	if err != nil {
		t.Fatal(err)
	}
	sender, err := session.NewSender(within(t, time.Minute), address,
		&amqp.SenderOptions{TargetCapabilities: []string{"topic"}})
	if err != nil {
		return true // it refuses the link
	}
	return sender.Send(within(t, 10*time.Second), amqp.NewMessage([]byte("are you full?")), nil) != nil
}

// durable makes a subscription that outlives its connection and the broker's process, and gives the function
// that opens it.
func durable(t *testing.T, b brokerKind, s *server, part string, topics ...string) func() *inbox {
	t.Helper()
	if b.rabbit() {
		declareQueue(t, s, part, topics)
		return func() *inbox {
			return attach(t, s, "", []string{fmt.Sprintf(b.queue, part)}, func(string) *amqp.ReceiverOptions {
				return &amqp.ReceiverOptions{Credit: credit}
			})
		}
	}
	open := func(t *testing.T) *inbox {
		return attach(t, s, "durable-"+part, b.sources(part, topics), func(address string) *amqp.ReceiverOptions {
			return &amqp.ReceiverOptions{
				Name: "durable-" + address, Credit: credit, SourceCapabilities: []string{"topic"},
				SourceDurability: amqp.DurabilityUnsettledState, SourceExpiryPolicy: amqp.ExpiryPolicyNever,
			}
		})
	}
	// It exists once it was attached for the first time; a subtest ends that connection.
	t.Run("subscribe", func(t *testing.T) { open(t) })
	return func() *inbox { return open(t) }
}

// declareQueue declares a durable queue on RabbitMQ and binds the topics to it.
func declareQueue(t testing.TB, s *server, name string, topics []string) {
	t.Helper()
	bindQueues(t, s, []string{name}, func(string) []string {
		var keys []string
		for _, topic := range topics {
			keys = append(keys, name+"."+topic)
		}
		return keys
	})
}

// bindQueues declares durable queues on RabbitMQ and binds each to its keys.
func bindQueues(t testing.TB, s *server, names []string, keys func(name string) []string) {
	t.Helper()
	var queues, bindings []string
	for _, name := range names {
		queues = append(queues, fmt.Sprintf(`{"vhost": "/", "name": %q, "durable": true, "auto_delete": false,
			"arguments": {}}`, name))
		for _, key := range keys(name) {
			bindings = append(bindings, fmt.Sprintf(`{"vhost": "/", "source": "amq.topic", "destination": %q,
				"destination_type": "queue", "routing_key": %q, "arguments": {}}`, name, key))
		}
	}
	definitions := fmt.Sprintf(`{"queues": [%s], "bindings": [%s]}`, strings.Join(queues, ", "),
		strings.Join(bindings, ", "))
	s.define(t, names[0], definitions)
}

// define lets RabbitMQ import definitions.
func (s *server) define(t testing.TB, name, definitions string) {
	t.Helper()
	path := "/tmp/" + name + ".json"
	if err := s.machine.write(within(t, time.Minute), path, []byte(definitions)); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
	// In one command, since each starts an Erlang. The broker's port is open a little before it has started.
	// Before 4.3 a binding is buffered for a while: a broker killed soon would come back without it.
	s.exec(t, runScript, "ctl", "eval", fmt.Sprintf(`ok = rabbit:await_startup(node()),
		{ok, Text} = file:read_file(%q),
		ok = rabbit_definitions:import_raw(Text),
		case whereis(mnesia_sup) of undefined -> ok; _ -> mnesia:sync_log() end.`, path))
}

func durableSubscriber(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	open := durable(t, b, s, part, tagTopic)
	r := startRelay(t, forBroker(b, part, s).with(settings{"message.durable": "on"}), s)
	var all []string
	for range 20 {
		body, ids := tagCommit(3)
		r.mustPost(t, body)
		all = append(all, ids...)
	}
	open().waitFor(t, 30*time.Second, all...)
}

func killedUnderLoad(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	open := durable(t, b, s, part, tagTopic)
	set := settings{"message.durable": "on", "queue.interval": "1"}
	r := startRelay(t, forBroker(b, part, s).with(set, patientDisk), s)
	l := startLoad(t, r, 4)
	l.await(t, 100)
	s.kill(t)
	l.await(t, 100)
	s.start(t)
	l.await(t, 100)
	l.stop()
	if l.refused > 0 {
		t.Errorf("%d commits were not answered %d", l.refused, http.StatusOK)
	}
	if l.slowest > promptly(1500*time.Millisecond) {
		t.Errorf("the slowest answer took %v", l.slowest)
	}
	box := open()
	if b.rabbit() {
		defer func() {
			if t.Failed() {
				t.Log(s.exec(t, runScript, "ctl", "list_queues", "name", "messages", "messages_unacknowledged",
					"consumers"))
			}
		}()
	}
	box.waitFor(t, 90*time.Second, l.ids()...)
	logRepeats(t, box)
}

// logRepeats tells how many messages came more than once: allowed, but worth knowing.
func logRepeats(t *testing.T, box *inbox) {
	repeated, total := 0, 0
	for _, deliveries := range box.byID() {
		total++
		if len(deliveries) > 1 {
			repeated++
		}
	}
	t.Logf("%d messages, %d of them came more than once", total, repeated)
}
