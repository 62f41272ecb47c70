package integration

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

var documented = map[string]string{ // heading of docs/brokers.md
	"rabbitmq-3.10":    "RabbitMQ 3",
	"rabbitmq-4.0":     "RabbitMQ 4",
	"rabbitmq-4.3":     "RabbitMQ 4",
	"activemq-6":       "ActiveMQ Classic",
	"activemq-classic": "ActiveMQ Classic",
	"artemis":          "ActiveMQ Artemis",
	"artemis-2.56":     "ActiveMQ Artemis",
}

// documentedSettings is the configuration that docs/brokers.md gives for a broker.
func documentedSettings(t *testing.T, b brokerKind) settings {
	t.Helper()
	text, err := os.ReadFile("../docs/brokers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(text), "\n## "+documented[b.service]+"\n")
	if !found {
		t.Fatalf("docs/brokers.md has no chapter %q", documented[b.service])
	}
	_, block, _ := strings.Cut(chapter, "```ini\n")
	block, _, _ = strings.Cut(block, "```")
	set, section := settings{}, ""
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if m := regexp.MustCompile(`^\[(.*)\]$`).FindStringSubmatch(line); m != nil {
			section = m[1]
		} else if key, value, ok := strings.Cut(line, " = "); ok {
			set[section+"."+key] = value
		}
	}
	if len(set) < 5 {
		t.Fatalf("docs/brokers.md has no configuration for %s: %v", b.service, set)
	}
	return set
}

// documentedConfiguration hands a commit over to a relay that is configured as docs/brokers.md says, but for
// the host and the certificates.
func documentedConfiguration(t *testing.T, b brokerKind, s *server) {
	a := certificates(t)
	set := documentedSettings(t, b).with(settings{
		"broker.urls":   fmt.Sprintf("amqps://localhost:%d", s.tlsPort),
		"broker.cacert": a.caPath,
		"broker.cert":   a.clientPath,
	})
	box := subscribe(t, s, b, b.sources("koji", []string{tagTopic})...)
	r := startRelay(t, set)
	r.await(t, "broker connected", nil)
	body, ids := tagCommit(3)
	r.mustPost(t, body)
	box.waitFor(t, 20*time.Second, ids...)
}
