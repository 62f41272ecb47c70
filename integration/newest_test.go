package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The newest servers that can be had, beside those of the suite, run a short core of the suite. Where one of
// them could not be had, .ci/test leaves its subtest out and says so.

var (
	// rabbitmq43 takes no addresses of version 1, unless its administrator permits them.
	rabbitmq43 = brokerKind{
		service:  "rabbitmq-4.3",
		prefix:   "/topic/%s", // what an administrator had for RabbitMQ 3
		source:   "/queues/%s.%s",
		declared: true,
		product:  "RabbitMQ",
		tlsLogin: "EXTERNAL",
		queue:    "/queues/%s",
		released: true,
	}
	activemq6 = brokerKind{
		service:   "activemq-6",
		prefix:    "topic://%s",
		source:    "topic://%s.%s",
		product:   "ActiveMQ",
		tlsLogin:  "ANONYMOUS",
		selectors: true,
	}
	artemis256 = artemis.as("artemis-2.56")
)

// as is the same kind of broker in another version.
func (b brokerKind) as(service string) brokerKind {
	b.service = service
	return b
}

func TestNewest(t *testing.T) {
	t.Parallel()
	for _, b := range []brokerKind{rabbitmq43, activemq6, artemis256} {
		t.Run(b.service, func(t *testing.T) {
			t.Parallel()
			s := startBroker(t, b)
			if b.rabbit() {
				s.exec(t, runScript, "ctl", "await_startup")
				t.Run("addresses of version 1 are refused", func(t *testing.T) { refusesOldAddresses(t, b, s) })
				t.Run("the new form of the prefix works", func(t *testing.T) {
					b := b
					b.prefix = "/exchanges/amq.topic/%s"
					goldenReaches(t, b, s)
				})
			}
			for _, c := range []struct {
				name string
				run  func(*testing.T, brokerKind, *server)
			}{
				{"golden messages arrive to the byte", goldenReaches},
				{"TLS with a client certificate", tlsWithCertificate},
				{"configuration of docs/brokers.md works", documentedConfiguration},
				{"broker killed under load loses nothing", killedUnderLoad},
			} {
				t.Run(c.name, func(t *testing.T) { c.run(t, b, s) })
			}
			if !b.rabbit() {
				t.Run("examples in JMS and STOMP", func(t *testing.T) { otherConsumersPrint(t, b, s) })
			}
		})
	}
}

// goldenReaches is goldenArrives for one subscriber.
func goldenReaches(t *testing.T, b brokerKind, s *server) {
	g := loadGolden(t, "extra500")
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, g.topics())...)
	r := startRelay(t, forBroker(b, part, s).with(settings{"message.extra_limit": "500"}), s)
	got := r.postGolden(t, g)
	if got.Sent+got.Queued != len(g.messages) || got.Dead != 0 {
		t.Errorf("the relay says sent %d, queued %d, dead %d for %d messages", got.Sent, got.Queued, got.Dead,
			len(g.messages))
	}
	box.waitFor(t, 4*time.Minute, g.ids()...) // a broker that has just started may be slow
	g.compare(t, b, part, box)
}

// refusesOldAddresses makes sure that the broker is one that the dialect is needed for.
func refusesOldAddresses(t *testing.T, b brokerKind, s *server) {
	ctx := within(t, 30*time.Second)
	conn, err := s.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf(b.prefix, newPart()) + "." + tagTopic
	if _, err := session.NewSender(ctx, address, nil); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("a sender attached to %s: want a refusal that names the address, got %v", address, err)
	}
}

// declareSources declares the queues that a subscriber reads, each bound to the key that it is named for.
func declareSources(t testing.TB, s *server, addresses []string) {
	t.Helper()
	var queues []string
	for _, address := range addresses {
		queues = append(queues, strings.TrimPrefix(address, "/queues/"))
	}
	bindQueues(t, s, queues, func(queue string) []string { return []string{queue} })
}
