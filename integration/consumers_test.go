package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
	path := filepath.Join(scratch, "consumer")
	if out, err := exec.Command("go", "build", "-o", path, "koji-relay/examples/consumers/go").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the Go example: %w\n%s", err, out)
	}
	return path, nil
})

// consumer is one running example.
type consumer struct {
	name           string
	process        *exec.Cmd
	ended          chan struct{}
	stdout, stderr *journal
}

// startConsumer starts an example and waits until it has subscribed.
func startConsumer(t testing.TB, name string, command []string, args ...string) *consumer {
	t.Helper()
	cmd := exec.Command(command[0], append(command[1:len(command):len(command)], args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &consumer{name, cmd, make(chan struct{}), newJournal(), newJournal()}
	err = startOnOwnThread(cmd, c.ended, func() {
		var reading sync.WaitGroup
		reading.Go(func() { c.stderr.read(stderr) })
		c.stdout.read(stdout)
		reading.Wait()
	})
	if err != nil {
		t.Fatalf("start the %s example: %v", name, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-c.ended
		if t.Failed() {
			t.Logf("the %s example printed %d lines, and said:\n%s", name, len(c.printed()), c.stderr.tail(40))
		}
	})
	c.awaitSubscribed(t, 1)
	return c
}

// awaitSubscribed waits until the example has said n times that it subscribed.
func (c *consumer) awaitSubscribed(t testing.TB, n int) {
	t.Helper()
	eventually(t, 30*time.Second, "the "+c.name+" example subscribes", func() error {
		if said := c.stderr.text(); strings.Count(said, "subscribed to ") < n {
			return fmt.Errorf("it said %q", said)
		}
		return nil
	})
}

func (c *consumer) printed() []string {
	c.stdout.mu.Lock()
	defer c.stdout.mu.Unlock()
	return slices.Clone(c.stdout.lines)
}

func (c *consumer) awaitPrinted(t testing.TB, n int) {
	t.Helper()
	eventually(t, 30*time.Second, "the "+c.name+" example prints "+strconv.Itoa(n)+" messages", func() error {
		if lines := c.printed(); len(lines) < n {
			return fmt.Errorf("it printed %d", len(lines))
		}
		return nil
	})
}

// awaitEnd waits until the example ended by itself, as it does when --count is reached.
func (c *consumer) awaitEnd(t testing.TB) {
	t.Helper()
	select {
	case <-c.ended:
		if code := c.process.ProcessState.ExitCode(); code != 0 {
			t.Errorf("the %s example ended with %d", c.name, code)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the %s example has not ended after %d messages", c.name, len(c.printed()))
	}
}

// compare checks that the example printed each of the messages once, whole, and nothing else.
func (c *consumer) compare(t testing.TB, b subscription, part, address string, messages []goldenMessage) {
	t.Helper()
	want := make(map[string]goldenMessage)
	for _, m := range messages {
		want[m.id()] = m
	}
	for _, line := range c.printed() {
		var got struct {
			ID      string `json:"message_id"`
			Address string
			Props   map[string]json.RawMessage
			Body    string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Errorf("%s: %v: %.200s", c.name, err, line)
			continue
		}
		m, expected := want[got.ID]
		if !expected {
			t.Errorf("%s printed what was not sent, or was printed before: %.200s", c.name, line)
			continue
		}
		delete(want, got.ID)
		var props []prop
		for _, p := range m.Props {
			value, there := got.Props[p.Key]
			if there && (p.Type == "null") == (string(value) == "null") {
				props = append(props, prop{p.Key, p.Type, value})
			}
		}
		topic := part + "." + m.Address
		if b.silent {
			topic = address
		}
		// ActiveMQ gives addresses with the topic:// in front that one sends to.
		if strings.TrimPrefix(got.Address, "topic://") != topic || got.Body != m.Body ||
			len(got.Props) != len(m.Props) || !slices.Equal(sortedProps(props), sortedProps(m.Props)) {
			t.Errorf("%s printed\n%.400s\nfor\n%s %v %.200s", c.name, line, m.Address, sortedProps(m.Props), m.Body)
			return // one says it all
		}
	}
	if len(want) > 0 {
		t.Errorf("%s did not print %d of %d messages", c.name, len(want), len(messages))
	}
}

// cutter is a way to a broker that can be cut.
type cutter struct {
	listener net.Listener
	mu       sync.Mutex // guards conns
	conns    []net.Conn
}

func newCutter(t testing.TB, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l}
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				copying.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.cut()
		copying.Wait()
	})
	return c
}

// cut ends every connection there is; new ones are possible.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// subscription is how the examples subscribe on one broker; docs/consumers.md has the same addresses, for koji.
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
	b := subscription{brokerKind: activemqClassic, silent: true, queue: "queue://Consumer.NAME.VirtualTopic.%s.>"}
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
			t.Run("print each message once through a cut and a resend", func(t *testing.T) { consumersPrintOnce(t, b, s, commands) })
			for name, command := range commands {
				t.Run(name+" example misses nothing while it is away", func(t *testing.T) { consumerComesBack(t, b, s, name, command) })
			}
			if v := virtual(); v.service == b.service {
				t.Run("virtual topic keeps what comes meanwhile", func(t *testing.T) { consumerComesBack(t, v, s, "go", commands["go"]) })
			}
		})
	}
}

// consumersPrintOnce: all examples subscribe with a wildcard and lose their connection half-way. Then the whole run is
// handed over once more, which gives each message a second time under its message-id, and one last commit.
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
			"--user", user, "--password-file", passwordFile, "--json", "--count", strconv.Itoa(len(g.messages) + len(ids)),
		})...))
	}
	r := startRelay(t, forBroker(b.brokerKind, part, s).with(settings{"message.extra_limit": "500"}), s)

	half := len(g.commits) / 2
	first := r.postGolden(t, golden{commits: g.commits[:half]}).Sent
	for _, c := range running {
		c.awaitPrinted(t, first)
	}
	way.cut()
	for _, c := range running {
		c.awaitSubscribed(t, 2)
	}
	rest := r.postGolden(t, golden{commits: g.commits[half:]}).Sent
	again := r.postGolden(t, g).Sent
	if first == 0 || first+rest != len(g.messages) || again != len(g.messages) {
		t.Fatalf("the relay sent %d and %d messages, then %d again; there are %d", first, rest, again, len(g.messages))
	}
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

// consumerComesBack: an example with a durable subscription (on RabbitMQ a queue) takes some of what is sent and ends;
// the next one gets what was not acknowledged and what came meanwhile. Both log in with a certificate.
func consumerComesBack(t *testing.T, b subscription, s *server, name string, command []string) {
	g := loadGolden(t, "extra0")
	part, a := newPart(), certificates(t)
	args := []string{
		"--url", fmt.Sprintf("amqps://localhost:%d", s.tlsPort), "--sasl", strings.ToLower(b.tlsLogin),
		"--cacert", a.caPath, "--cert", a.clientCertPath, "--key", a.clientKeyPath, "--json",
	}
	address := fmt.Sprintf(cmp.Or(b.queue, b.wildcard), part)
	switch {
	case b.rabbit():
		declareQueue(t, s, part, []string{"#"})
	case b.queue == "":
		args = append(args, "--durable", "durable-"+part)
	}
	args = slices.Concat(args, b.flags, []string{"--address", address})
	const taken, sent = 3, 10
	before := startConsumer(t, name, command, append(args, "--count", strconv.Itoa(taken))...)
	sendPlainly(t, s, b.brokerKind, part, golden{messages: g.messages[:sent/2]})
	before.awaitEnd(t)
	before.compare(t, b, part, address, g.messages[:taken])
	sendPlainly(t, s, b.brokerKind, part, golden{messages: g.messages[sent/2 : sent]})
	after := startConsumer(t, name, command, append(args, "--count", strconv.Itoa(sent-taken))...)
	after.awaitEnd(t)
	after.compare(t, b, part, address, g.messages[taken:sent])
}
