package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// brokerKind is one row of the table that the suite runs over. What a subscriber asks for is written down
// here by hand, from the brokers' documentation: it must not come from the code under test.
type brokerKind struct {
	service string
	// topic_prefix as its administrator would write it, with %s for the test's own part
	prefix       string
	settings     map[string]string // what else the configuration needs
	source       string            // where a subscriber finds a topic: prefix part, topic
	capabilities []string          // of a subscriber's source
	declared     bool              // its sources are queues, which a subscriber has to declare
	product      string            // what the broker calls itself
	tlsPrefix    string            // where the TLS port has other topic names than the plain one
	tlsLogin     string            // SASL mechanism with a client certificate
	wrongPrefix  string            // one that the broker cannot serve; "" where it serves all
	remedy       string            // what the report of it must name
	selectors    bool              // JMS selectors
	released     bool              // answers released for a topic that nobody subscribed to
	maxMessage   int               // bytes of the largest message it takes; 0 = more than the tests try
	queue        string            // RabbitMQ: where to read a queue that was declared by other means
	alarmBlocks  bool              // RabbitMQ: publishers are stopped by a memory alarm
	// Artemis: prefixes whose addresses stop or refuse publishers when they are full
	full []string
}

// rabbit reports whether the broker is a RabbitMQ.
func (b brokerKind) rabbit() bool { return b.product == "RabbitMQ" }

var (
	rabbitmq310 = brokerKind{
		service: "rabbitmq-3.10",
		prefix:  "/topic/%s",
		source:  "/topic/%s.%s",
		product: "RabbitMQ",

		tlsLogin:    "EXTERNAL",
		wrongPrefix: "topic://koji",
		remedy:      "/topic/koji",
		maxMessage:  1 << 20,
		queue:       "/amq/queue/%s",
		alarmBlocks: false, // the plugin goes on reading, whatever the broker's log says
	}
	rabbitmq40 = brokerKind{
		service: "rabbitmq-4.0",
		prefix:  "/exchanges/amq.topic/%s",
		source:  "/topic/%s.%s", // the old form is deprecated there, but needs no queue to be declared first
		product: "RabbitMQ",

		tlsLogin:    "EXTERNAL",
		wrongPrefix: "topic://koji",
		remedy:      "/topic/koji",
		released:    true,
		maxMessage:  1 << 20,
		queue:       "/queues/%s",
		alarmBlocks: true,
	}
	activemqClassic = brokerKind{
		service: "activemq-classic",
		prefix:  "topic://%s",
		source:  "topic://%s.%s",
		product: "ActiveMQ",

		tlsLogin:  "ANONYMOUS", // who one is comes from the certificate, which ActiveMQ itself has checked
		selectors: true,
	}
	artemis = brokerKind{
		service:      "artemis",
		prefix:       "%s",
		settings:     map[string]string{"broker.dialect": "artemis"},
		source:       "%s.%s",
		capabilities: []string{"topic"},
		product:      "apache-activemq-artemis",

		tlsPrefix: "topic://%s", // its acceptor has multicastPrefix=topic://
		tlsLogin:  "EXTERNAL",
		selectors: true,
		full:      []string{"blocked.%s", "full.%s"}, // see images/conf/artemis/broker.xml
	}
)

// sources are the addresses at which a subscriber finds the topics of one test.
func (b brokerKind) sources(part string, topics []string) []string {
	var all []string
	for _, topic := range topics {
		all = append(all, fmt.Sprintf(b.source, part, topic))
	}
	return all
}

// topicOf undoes sources.
func (b brokerKind) topicOf(part, source string) string {
	return strings.TrimPrefix(source, strings.TrimSuffix(fmt.Sprintf(b.source, part, "\x00"), "\x00"))
}

var parts atomic.Int64

// newPart is a name that no other test uses, so that tests can share a broker.
func newPart() string { return "koji" + strconv.FormatInt(parts.Add(1), 10) }

// shared are the brokers that whole suites use, each started once.
var shared struct {
	sync.Mutex // guards servers
	servers    map[string]*server
}

// startShared starts the broker without waiting for it, so that several can start at once.
func startShared(t testing.TB, b brokerKind) *server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if s := shared.servers[b.service]; s != nil {
		return s
	}
	s := newServer(t, b.service)
	if shared.servers == nil {
		shared.servers = make(map[string]*server)
	}
	shared.servers[b.service] = s
	return s
}

// startBroker starts a broker of the test's own and waits until it answers.
func startBroker(t testing.TB, b brokerKind) *server {
	t.Helper()
	s := newServer(t, b.service)
	t.Cleanup(func() {
		logOnFailure(t, s)
		s.remove()
	})
	s.awaitBroker(t)
	return s
}

func logOnFailure(t testing.TB, s *server) {
	if t.Failed() {
		lines := strings.Split(strings.TrimSpace(s.machine.logs()), "\n")
		t.Logf("the end of %s's log:\n%s", s.service, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// awaitBroker waits until the broker opens a connection, and notes what it calls itself.
func (s *server) awaitBroker(t testing.TB) {
	t.Helper()
	eventually(t, 4*time.Minute, s.service+" answers", func() error {
		conn, err := s.dial(within(t, 5*time.Second))
		if err != nil {
			return err
		}
		defer conn.Close()
		p := conn.Properties()
		note(t, fmt.Sprint(p["product"]), fmt.Sprint(p["version"]), "AMQP 1.0 open frame")
		return nil
	})
}

// start starts a killed broker again and waits until it answers.
func (s *server) start(t testing.TB) {
	t.Helper()
	s.do(t, "start", s.machine.start)
	s.awaitBroker(t)
}

var noted sync.Map

// note adds one line to the table of the servers used.
func note(t testing.TB, product, version, how string) {
	line := product + "\t" + version + "\t" + how + "\n"
	path := os.Getenv("KOJI_RELAY_SERVERS_TABLE")
	if _, known := noted.LoadOrStore(line, true); known || path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Errorf("note a server: %v", err)
		return
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		t.Errorf("note a server: %v", err)
	}
}
