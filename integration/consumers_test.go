package integration

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The programs of examples/consumers, which consumer teams copy, as processes of their own.

// consumers are the commands that run them.
func consumers(t testing.TB) map[string][]string {
	t.Helper()
	node := "../examples/consumers/node"
	if _, err := exec.LookPath("node"); err != nil {
		skipOrFail(t, "there is no node; run .ci/node as root")
	}
	if _, err := os.Stat(node + "/node_modules/rhea"); err != nil {
		skipOrFail(t, "the Node example has no rhea; run npm ci in %s", node)
	}
	path, err := goConsumer()
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]string{
		"go":     {path},
		"python": {protonPython(t), "../examples/consumers/python/consumer.py"},
		"node":   {"node", node + "/consumer.js"},
	}
}

var goConsumer = sync.OnceValues(func() (string, error) {
	return build("consumer", "koji-relay/examples/consumers/go")
})

// subscription is how the examples subscribe on one broker; docs/consumers.md has the same addresses, for
// koji.
type subscription struct {
	brokerKind
	wildcard string   // everything below a prefix
	flags    []string // with every address
	silent   bool     // does not tell a subscriber the topic of a message
	queue    string   // one that keeps what comes while nobody reads it; else --durable does
}

var subscriptions = []subscription{
	{brokerKind: rabbitmq310, wildcard: "/topic/%s.#", silent: true, queue: "/amq/queue/%s"},
	{brokerKind: rabbitmq40, wildcard: "/topic/%s.#", queue: "/queues/%s"},
	{brokerKind: activemqClassic, wildcard: "topic://%s.>"},
	{brokerKind: artemis, wildcard: "%s.#", silent: true, flags: []string{"--topic"}},
}

// virtual is ActiveMQ's other way of keeping what comes: each team reads a queue of its own.
func virtual() subscription {
	b := subscription{brokerKind: activemqClassic, silent: true,
		queue: "queue://Consumer.NAME.VirtualTopic.%s.>"}
	b.source = "topic://VirtualTopic.%s.%s"
	return b
}

func TestConsumersGuideHasTheAddressesOfTheExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/consumers.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range append(subscriptions, virtual()) {
		for _, address := range []string{b.wildcard, b.queue} {
			name := "koji" // the prefix, or the name of a queue on RabbitMQ
			if b.rabbit() && address == b.queue {
				name = "NAME"
			}
			if address != "" && !strings.Contains(string(text), "`"+fmt.Sprintf(address, name)+"`") {
				t.Errorf("docs/consumers.md does not name %s for %s", fmt.Sprintf(address, name), b.service)
			}
		}
	}
}

func TestConsumerExamples(t *testing.T) {
	t.Parallel()
	commands := consumers(t)
	for _, b := range subscriptions {
		t.Run(b.service, func(t *testing.T) {
			t.Parallel()
			s := startBroker(t, b.brokerKind)
			t.Run("print each message once through a cut and a resend",
				func(t *testing.T) { consumersPrintOnce(t, b, s, commands) })
			t.Run("miss nothing while they are away", func(t *testing.T) { consumersComeBack(t, b, s, commands) })
			if b.service == activemqClassic.service {
				t.Run("say why they cannot log in", func(t *testing.T) { consumersAreRefused(t, b, s, commands) })
			}
			if v := virtual(); v.service == b.service {
				t.Run("miss nothing of a virtual topic", func(t *testing.T) { consumersComeBack(t, v, s, commands) })
			}
		})
	}
}

// consumersPrintOnce: all examples subscribe with a wildcard and lose their connection half-way. Then the
// whole run is handed over once more, which gives each message a second time under its message-id, and one
// last commit.
func consumersPrintOnce(t *testing.T, b subscription, s *server, commands map[string][]string) {
	g := loadGolden(t, "extra500")
	part := newPart()
	address := fmt.Sprintf(b.wildcard, part)
	way := newCutter(t, s.addr())
	passwordFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	last, ids := tagCommit(1)
	var running []*consumer
	for name, command := range commands {
		running = append(running, startConsumer(t, name, command, slices.Concat(b.flags, []string{
			"--url", "amqp://" + way.listener.Addr().String(), "--address", address,
			"--user", user, "--password-file", passwordFile, "--json", "--count",
			strconv.Itoa(len(g.messages) + len(ids)),
		})...))
	}
	subscribed := 1
	if b.service == rabbitmq40.service { // its administrator ends connections with a word of goodbye
		s.exec(t, runScript, "ctl", "close_all_connections", "maintenance")
		subscribed++
		for _, c := range running {
			c.awaitSubscribed(t, subscribed)
		}
	}
	everything := subscribe(t, s, b.brokerKind, address)
	r := startRelay(t, forBroker(b.brokerKind, part, s).with(settings{"message.extra_limit": "500"}), s)

	taken := func(a answer) int { return a.Sent + a.Queued }
	half := len(g.commits) / 2
	first := taken(r.postGolden(t, golden{commits: g.commits[:half]}))
	for _, c := range running {
		c.awaitPrinted(t, first)
	}
	way.cut()
	for _, c := range running {
		c.awaitSubscribed(t, subscribed+1)
	}
	rest, again := taken(r.postGolden(t, golden{commits: g.commits[half:]})), taken(r.postGolden(t, g))
	if first == 0 || first+rest != len(g.messages) || again != len(g.messages) {
		t.Fatalf("the relay took %d and %d messages, then %d again; there are %d", first, rest, again,
			len(g.messages))
	}
	eventually(t, 30*time.Second, "each message comes twice to a subscriber that takes everything",
		func() error {
			deliveries := everything.byID()
			for _, id := range g.ids() {
				if n := len(deliveries[id]); n < 2 {
					return fmt.Errorf("%s came %d times", id, n)
				}
			}
			return nil
		})
	r.mustPost(t, last)
	for _, c := range running {
		c.awaitEnd(t)
		lines := c.printed()
		if n := len(lines); n == 0 || !strings.Contains(lines[n-1], ids[0]) {
			t.Errorf("the last message that %s printed is not the last one sent", c.name)
			continue
		}
		c.dropLast()
		c.compare(t, b, part, address, g.messages)
	}
}

// dropLast takes the last line away.
func (c *consumer) dropLast() {
	c.stdout.mu.Lock()
	defer c.stdout.mu.Unlock()
	c.stdout.lines = c.stdout.lines[:len(c.stdout.lines)-1]
}

// consumersComeBack: an example with a durable subscription (on RabbitMQ a queue) takes some of what is sent
// and ends; the next one gets what was not acknowledged and what came meanwhile. All log in with a
// certificate.
func consumersComeBack(t *testing.T, b subscription, s *server, commands map[string][]string) {
	g, a := loadGolden(t, "extra0"), certificates(t)
	const taken, sent = 3, 10
	type reader struct {
		part, address string
		args          []string
		*consumer
	}
	var readers []*reader
	for name := range commands {
		r := &reader{part: newPart()}
		r.address = fmt.Sprintf(cmp.Or(b.queue, b.wildcard), r.part)
		r.args = slices.Concat(b.flags, []string{
			"--url", fmt.Sprintf("amqps://localhost:%d", s.tlsPort), "--sasl", strings.ToLower(b.tlsLogin),
			"--address", r.address, "--cacert", a.caPath, "--cert", a.clientCertPath, "--key", a.clientKeyPath,
			"--json", "--count",
		})
		switch {
		case b.rabbit():
			declareQueue(t, s, r.part, []string{"#"})
		case b.queue == "":
			r.args = append([]string{"--durable", "durable-" + r.part}, r.args...)
		}
		r.consumer = launchConsumer(t, name, commands[name], append(r.args, strconv.Itoa(taken))...)
		readers = append(readers, r)
	}
	for _, r := range readers {
		r.awaitSubscribed(t, 1)
		sendPlainly(t, s, b.brokerKind, r.part, golden{messages: g.messages[:sent/2]})
	}
	for _, r := range readers {
		r.awaitEnd(t)
		r.compare(t, b, r.part, r.address, g.messages[:taken])
		sendPlainly(t, s, b.brokerKind, r.part, golden{messages: g.messages[sent/2 : sent]})
		r.consumer = launchConsumer(t, r.name, commands[r.name], append(r.args, strconv.Itoa(sent-taken))...)
	}
	for _, r := range readers {
		r.awaitEnd(t)
		r.compare(t, b, r.part, r.address, g.messages[taken:sent])
	}
}

// consumersAreRefused: a wrong password is told, and tried again until it is right.
func consumersAreRefused(t *testing.T, b subscription, s *server, commands map[string][]string) {
	part := newPart()
	passwordFile := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		if err := os.WriteFile(passwordFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong")
	var running []*consumer
	for name, command := range commands {
		running = append(running, launchConsumer(t, name, command, "--url", "amqp://"+s.addr(),
			"--address", fmt.Sprintf(b.wildcard, part), "--user", user, "--password-file", passwordFile))
	}
	for _, c := range running {
		eventually(t, 30*time.Second, "the "+c.name+" example says what is wrong", func() error {
			said := c.stderr.text()
			if !strings.Contains(said, "disconnected: ") || !strings.Contains(strings.ToLower(said), "auth") {
				return fmt.Errorf("it said %q", said)
			}
			return nil
		})
	}
	write(password)
	for _, c := range running {
		c.awaitSubscribed(t, 1)
	}
}
