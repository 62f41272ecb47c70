package integration

import (
	"encoding/json"
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

// otherConsumer is an example that speaks something else than plain AMQP 1.0, on one broker.
type otherConsumer struct {
	name string
	args []string
	// selector: it gets the messages whose type is Tag, by a selector of the broker.
	selector bool
}

const tagSelector = "type = 'Tag' AND tag LIKE '%'"

// javaConsumer compiles the Java example and gives its class path.
var javaConsumer = sync.OnceValues(func() (string, error) {
	classes, jars := filepath.Join(scratch, "jms"), "../.cache/jms/*"
	if out, err := exec.Command("javac", "-d", classes, "-cp", jars,
		"../examples/consumers/jms/Consumer.java").CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the Java example: %w\n%s", err, out)
	}
	return classes + ":" + jars, nil
})

// otherConsumers are the examples that a broker can serve, subscribed to everything below the part, in groups
// that read at the same time.
func otherConsumers(t *testing.T, b brokerKind, s *server, part, passwordFile string) [][]otherConsumer {
	t.Helper()
	login := []string{"--user", user, "--password-file", passwordFile}
	host, other := "127.0.0.1", strconv.Itoa(s.otherPort)
	java := func(args ...string) []string {
		classPath, err := javaConsumer()
		if err != nil {
			skipOrFail(t, "the Java example cannot be compiled; run .ci/java: %v", err)
		}
		return append(append([]string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classPath,
			"Consumer"}, login...), args...)
	}
	stomp := func(destination string, headers ...string) []string {
		args := append([]string{protonPython(t), "../examples/consumers/python/stomp_consumer.py", "--host", host,
			"--port", other, "--destination", destination}, login...)
		for _, h := range headers {
			args = append(args, "--header", h)
		}
		return args
	}
	native, amqp := "tcp://"+host+":"+other, "amqp://"+s.addr()
	if b.rabbit() {
		all := []otherConsumer{
			{"AMQP 0-9-1", append([]string{protonPython(t), "../examples/consumers/python/amqp091_consumer.py",
				"--host", host, "--port", strconv.Itoa(s.port), "--queue", part, "--key", part + ".#"}, login...), false},
		}
		if b.service != rabbitmq310.service { // which does not show a STOMP reader the message-id
			all = append(all, otherConsumer{"STOMP, durable", stomp("/topic/"+part+".#", "x-queue-name:stomp-"+part,
				"durable:true", "auto-delete:false"), false})
		}
		return [][]otherConsumer{all}
	}
	if b.product == artemis.product {
		return [][]otherConsumer{{
			{"JMS, Artemis' client, durable", java("--client", "artemis", "--url", native, "--topic", part+".#",
				"--durable", "jms-"+part), false},
			{"JMS, Qpid's client on Artemis, with a selector", java("--client", "qpid", "--url", amqp, "--topic",
				part+".#", "--selector", tagSelector), true},
			{"STOMP on Artemis", stomp(part+".#", "subscription-type:MULTICAST"), false},
			{"STOMP on Artemis, durable", append(stomp(part+".#", "subscription-type:MULTICAST",
				"durable-subscription-name:stomp"), "--client-id", part), false},
		}}
	}
	openWire := []otherConsumer{
		{"JMS, ActiveMQ's client", java("--client", "activemq", "--url", native, "--topic", part+".>"), false},
		{"JMS, ActiveMQ's client, durable with a selector as Jenkins' plugin", java("--client", "activemq",
			"--url", native, "--topic", part+".>", "--durable", "jenkins-"+part, "--selector", tagSelector), true},
	}
	amqp10 := []otherConsumer{
		{"JMS, Qpid's client with a selector", java("--client", "qpid", "--url", amqp, "--topic", part+".>",
			"--selector", tagSelector), true},
	}
	stomp12 := []otherConsumer{
		{"STOMP on ActiveMQ Classic, with a selector", append(stomp("/topic/"+part+".>", "selector:"+tagSelector),
			"--ack", "auto"), true},
		{"STOMP on ActiveMQ Classic, durable", append(stomp("/topic/"+part+".>", "activemq.subscriptionName:stomp"),
			"--client-id", part, "--ack", "auto"), false},
	}
	if b.service == activemqClassic.service {
		// It can empty a message that readers of two protocols get at once (apache/activemq, pull request 2188).
		return [][]otherConsumer{openWire, amqp10, stomp12}
	}
	return [][]otherConsumer{slices.Concat(openWire, amqp10, stomp12)}
}

// TestOtherConsumers: the examples in JMS, STOMP and AMQP 0-9-1 print each message once, with its properties,
// although the whole run is handed over twice.
func TestOtherConsumers(t *testing.T) {
	t.Parallel()
	for _, b := range []brokerKind{rabbitmq310, rabbitmq40, activemqClassic, artemis} {
		t.Run(b.service, func(t *testing.T) {
			t.Parallel()
			s := startBroker(t, b)
			if b.rabbit() {
				s.exec(t, runScript, "ctl", "await_startup")
			}
			otherConsumersPrint(t, b, s)
		})
	}
}

func otherConsumersPrint(t *testing.T, b brokerKind, s *server) {
	g, part := loadGolden(t, "extra500"), newPart()
	var tags []goldenMessage
	for _, m := range g.messages {
		if strings.HasSuffix(m.Address, "build.tag") {
			tags = append(tags, m)
		}
	}
	passwordFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wanted := func(o otherConsumer) []goldenMessage {
		if o.selector {
			return tags
		}
		return g.messages
	}
	set := forBroker(b, part, s)
	if b.rabbit() { // what a reader of AMQP 0-9-1 needs
		set = set.with(settings{"message.body_section": "data"})
	}
	r := startRelay(t, set.with(settings{"message.extra_limit": "500"}), s)
	for _, group := range otherConsumers(t, b, s, part, passwordFile) {
		var running []*consumer
		for _, o := range group {
			running = append(running, launchConsumer(t, o.name, o.args, "--count", strconv.Itoa(len(wanted(o))+1)))
		}
		for _, c := range running {
			c.awaitSubscribed(t, 1)
		}
		r.postGolden(t, g)
		for i, c := range running {
			c.awaitPrinted(t, len(wanted(group[i])))
		}
		r.postGolden(t, g)
		body, last := tagCommit(1)
		r.mustPost(t, body)
		for i, c := range running {
			c.awaitEnd(t)
			c.comparePrinted(t, b, wanted(group[i]), last[0])
		}
	}
}

// comparePrinted checks that each message was printed once, and the last one at the end.
func (c *consumer) comparePrinted(t *testing.T, b brokerKind, messages []goldenMessage, last string) {
	t.Helper()
	want := make(map[string]goldenMessage)
	for _, m := range messages {
		want[m.id()] = m
	}
	lines := c.printed()
	for i, line := range lines {
		var got struct {
			ID    string `json:"message_id"`
			Props map[string]json.RawMessage
			Body  string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Errorf("%s: %v: %.300s", c.name, err, line)
			return
		}
		if i == len(lines)-1 {
			if got.ID != last {
				t.Errorf("%s: the last message is %s, not %s", c.name, got.ID, last)
			}
			break
		}
		m, expected := want[got.ID]
		if !expected {
			t.Errorf("%s printed what was not sent, or was printed before: %.300s", c.name, line)
			return
		}
		delete(want, got.ID)
		if got.Body != m.Body {
			t.Errorf("%s printed the body %.200q for %.200q", c.name, got.Body, m.Body)
			return
		}
		if b.service == rabbitmq310.service {
			continue // its plugin gives no properties to readers of other protocols
		}
		for _, p := range m.Props {
			if b.rabbit() && strings.HasPrefix(c.name, "STOMP") && p.Type == "boolean" {
				continue // it gives STOMP readers text and numbers only
			}
			if have := plain(got.Props[p.Key]); p.Type != "null" && have != plain(p.Value) {
				t.Errorf("%s: the property %s is %q, not %q: %.300s", c.name, p.Key, have, plain(p.Value), line)
				return
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%s did not print %d of %d messages", c.name, len(want), len(messages))
	}
}

// plain is a JSON value without quotes and case.
func plain(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) != nil {
		text = string(value)
	}
	return strings.ToLower(text)
}

// helperService is a service that uses the Python helper. Its table of handled ids is a file, and it fails at
// the first sight of each message.
const helperService = `
import json, os, sys
sys.path.insert(0, '../examples/consumers/python')
import koji_messages
url, address, table, user, password = sys.argv[1:]
failed = set()
def handled():
    return open(table).read().split() if os.path.exists(table) else []
def consume(topic, headers, body):
    if headers['message-id'] not in failed:
        failed.add(headers['message-id'])
        raise RuntimeError('not now')
    with open(table, 'a') as file:
        file.write(headers['message-id'] + '\n')
    print(json.dumps({'topic': topic, 'message_id': headers['message-id'], 'type': headers['type'],
                      'tag': body['tag']['name']}), flush=True)
koji_messages.time.sleep = lambda seconds: None
koji_messages.run(url, address, consume, seen=lambda i: i in handled(), user=user, password=password,
                  allowed_mechs='PLAIN', allow_insecure_mechs=True)
`

// TestPythonHelper: what a service fails at comes again, and what its table knows is passed over, also after
// a restart of the service.
func TestPythonHelper(t *testing.T) {
	t.Parallel()
	b, part := virtual(), newPart()
	s := startBroker(t, b.brokerKind)
	address := fmt.Sprintf(strings.Replace(b.queue, "NAME", "mbs", 1), part)
	args := []string{"amqp://" + s.addr(), address, filepath.Join(t.TempDir(), "table"), user, password}
	command := []string{protonPython(t), "-c", helperService}
	set := forBroker(b.brokerKind, part, s).with(settings{
		"broker.topic_prefix": "topic://VirtualTopic." + part,
	})
	r := startRelay(t, set, s)
	// The queue exists once somebody reads it.
	box := subscribe(t, s, b.brokerKind, strings.Replace(address, "mbs", "other", 1))
	first := launchConsumer(t, "Python helper", command, args...)
	eventually(t, time.Minute, "the service gets a message", func() error {
		body, _ := tagCommit(1)
		r.mustPost(t, body)
		if len(first.printed()) == 0 {
			return fmt.Errorf("it said %q", first.stderr.tail(5))
		}
		return nil
	})
	body, ids := tagCommit(3)
	r.mustPost(t, body)
	r.mustPost(t, body)
	box.waitFor(t, time.Minute, ids...)
	last, lastID := tagCommit(1)
	r.mustPost(t, last)
	awaitID := func(c *consumer, id string) {
		eventually(t, time.Minute, "the service handles "+id, func() error {
			if printed := strings.Join(c.printed(), "\n"); !strings.Contains(printed, id) {
				return fmt.Errorf("it printed %q and said %q", printed, c.stderr.tail(3))
			}
			return nil
		})
	}
	awaitID(first, lastID[0])
	_ = first.process.Process.Kill()
	<-first.ended
	second := launchConsumer(t, "Python helper", command, args...)
	r.mustPost(t, body)
	last, lastID = tagCommit(1)
	r.mustPost(t, last)
	awaitID(second, lastID[0])
	printed := strings.Join(append(first.printed(), second.printed()...), "\n")
	for _, id := range ids {
		if n := strings.Count(printed, id); n != 1 {
			t.Errorf("the service handled %s %d times", id, n)
		}
	}
	if !strings.Contains(printed, `"type": "Tag"`) || !strings.Contains(first.stderr.text(), "it comes again") {
		t.Errorf("it printed %s and said %s", printed, first.stderr.tail(5))
	}
}
