package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The suite: the same cases on each broker that Koji sites run. Each broker is one server for all of its
// cases, which run one after the other since some of them take it down; the brokers run side by side.

func TestRabbitMQ310(t *testing.T)     { suite(t, rabbitmq310) }
func TestRabbitMQ40(t *testing.T)      { suite(t, rabbitmq40) }
func TestActiveMQClassic(t *testing.T) { suite(t, activemqClassic) }
func TestArtemis(t *testing.T)         { suite(t, artemis) }

func suite(t *testing.T, b brokerKind) {
	t.Parallel()
	s := startShared(t, b)
	s.awaitBroker(t)
	defer logOnFailure(t, s)
	for _, c := range []struct {
		name  string
		run   func(*testing.T, brokerKind, *server)
		where bool // does this broker have what the case is about?
	}{
		{"receivers see every byte that a plain sender sends", receiversSeeAll, true},
		{"golden messages arrive to the byte", goldenArrives, true},
		{"wire form is protonmsg's plus message-id and creation-time", wireForm, true},
		{"message options reach the wire", messageOptions, true},
		{"wrong password is refused and not replaced by anonymous", wrongPassword, true},
		{"TLS with a client certificate", tlsWithCertificate, true},
		{"configuration of docs/brokers.md works", documentedConfiguration, true},
		{"certificate for another name is refused", tlsOtherName, true},
		{"certificate of an unknown authority is refused", tlsUnknownAuthority, true},
		{"wrong prefix is reported with the remedy", wrongPrefix, b.wrongPrefix != ""},
		{"selector on application-properties finds its messages", selector, b.selectors},
		{"message that is too large takes no other down", tooLarge, b.maxMessage > 0},
		{"large message arrives whole", large, b.maxMessage == 0},
		{"messages of several frames are settled beside others", severalFrames, true},
		{"topic that nobody subscribed to slows nothing", unboundTopic, true},
		{"memory alarm costs the hub one hand-off timeout at most", alarm, b.rabbit()},
		{"full address costs the hub one hand-off timeout at most", fullAddress, b.full != nil},
		{"frozen broker costs the hub one hand-off timeout", frozen, true},
		{"durable subscriber that was away gets everything", durableSubscriber, true},
		{"broker killed under load loses nothing", killedUnderLoad, true},
	} {
		if c.where {
			t.Run(c.name, func(t *testing.T) { c.run(t, b, s) })
		}
	}
}

func goldenArrives(t *testing.T, b brokerKind, s *server) {
	for run, limit := range map[string]string{"extra0": "0", "extra500": "500"} {
		g := loadGolden(t, run)
		part := newPart()
		sources := b.sources(part, g.topics())
		amqpBox := subscribe(t, s, b, sources...)
		protonBox := subscribeProton(t, s, b, sources...)
		r := startRelay(t, forBroker(b, part, s).with(settings{"message.extra_limit": limit}), s)
		got := r.postGolden(t, g)
		if got.Sent+got.Queued != len(g.messages) || got.Dead != 0 {
			t.Errorf("%s: the relay says sent %d, queued %d, dead %d for %d messages", run, got.Sent, got.Queued,
				got.Dead, len(g.messages))
		}
		for _, box := range []*inbox{amqpBox, protonBox} {
			box.waitFor(t, 30*time.Second, g.ids()...)
			g.compare(t, b, part, box)
		}
		if code := r.stop(t); code != 0 {
			t.Errorf("%s: the relay ended with %d", run, code)
		}
	}
}

// Sections of an AMQP message by their descriptor.
const (
	headerSection     = 0x70
	propertiesSection = 0x73
	propsSection      = 0x74 // application-properties
	dataSection       = 0x75
	valueSection      = 0x77
)

// section gives the bytes of one section in hexadecimal, "" where it is absent.
func (d delivery) section(descriptor int) string {
	for _, s := range d.Sections {
		if code, _ := s[0].(float64); int(code) == descriptor {
			text, _ := s[1].(string)
			return text
		}
	}
	return ""
}

func wireForm(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribeProton(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s), s)
	began := time.Now()
	body, ids := tagCommit(1)
	r.mustPost(t, body)
	box.waitFor(t, 20*time.Second, ids...)
	d := box.byID()[ids[0]][0]
	if d.Durable || d.Priority != 4 || d.TTL != 0 {
		t.Errorf("header: durable %v, priority %d, ttl %v; want false, 4, none", d.Durable, d.Priority, d.TTL)
	}
	if age := time.UnixMilli(int64(d.CreationTime * 1000)).Sub(began); age < -time.Minute || age > time.Minute {
		t.Errorf("creation-time is %v away from now", age)
	}
	// The section holds one value, which is a string, in the form with a 4-byte length.
	text := *d.Body
	want := fmt.Sprintf("005377b1%08x%x", len(text), text)
	if len(text) < 256 {
		want = fmt.Sprintf("005377a1%02x%x", len(text), text)
	}
	if got := d.section(valueSection); got != want {
		t.Errorf("body section is %s, not %s", got, want)
	}
	if d.section(dataSection) != "" {
		t.Error("there is a data section beside the value")
	}
}

func messageOptions(t *testing.T, b brokerKind, s *server) {
	part := newPart()
	box := subscribeProton(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s).with(settings{
		"message.durable": "on", "message.ttl": "3600.5", "message.priority": "7", "message.body_section": "data",
	}), s)
	body, ids := tagCommit(1)
	r.mustPost(t, body)
	box.waitFor(t, 20*time.Second, ids...)
	d := box.byID()[ids[0]][0]
	// A broker may count the time that the message lay there, or round up to seconds.
	if !d.Durable || d.Priority != 7 || d.TTL < 3500 || d.TTL > 3601 {
		t.Errorf("header: durable %v, priority %d, ttl %v; want true, 7, 3600.5", d.Durable, d.Priority, d.TTL)
	}
	if data := d.section(dataSection); !strings.HasPrefix(data, "005375") || d.section(valueSection) != "" {
		t.Errorf("sections are %v; want the body as data", d.Sections)
	}
}

func wrongPassword(t *testing.T, b brokerKind, s *server) {
	const wrong = "not-the-Secret"
	part := newPart()
	box := subscribe(t, s, b, b.sources(part, []string{tagTopic})...)
	r := startRelay(t, forBroker(b, part, s).with(settings{
		"broker.urls": fmt.Sprintf("amqp://%s:%s@%s", user, wrong, s.addr()),
	}))
	down := r.await(t, "broker down", map[string]string{"broker": s.addr()})
	body, ids := tagCommit(1)
	if a := r.mustPost(t, body); a.Queued != 1 {
		t.Errorf("the relay says sent %d, queued %d; want queued 1", a.Sent, a.Queued)
	}
	if len(box.byID()) != 0 {
		t.Error("a message arrived although the password was wrong")
	}
	if cause := down.text("cause"); !strings.Contains(cause, "PLAIN") {
		t.Errorf("the cause does not name the mechanism: %s", cause)
	}
	if strings.Contains(r.log.text(), wrong) {
		t.Errorf("the log shows the password:\n%s", r.log.text())
	}
	r.stop(t)

	// With the right one, what was queued goes out.
	r.configure(t, forBroker(b, part, s))
	r.start(t)
	box.waitFor(t, 20*time.Second, ids...)
}

// tlsSettings is the configuration for the broker's TLS port. The topics are those of the plain one.
func tlsSettings(t *testing.T, b brokerKind, part string, s *server, host string) settings {
	a := certificates(t)
	set := forBroker(b, part, s).with(settings{
		"broker.urls":   fmt.Sprintf("amqps://%s:%d", host, s.tlsPort),
		"broker.cacert": a.caPath,
		"broker.cert":   a.clientPath,
	})
	if b.tlsPrefix != "" {
		set["broker.topic_prefix"] = fmt.Sprintf(b.tlsPrefix, part)
		delete(set, "broker.dialect")
	}
	return set
}

func tlsWithCertificate(t *testing.T, b brokerKind, s *server) {
	a := certificates(t)
	for name, files := range map[string]settings{
		"certificate and key in one file": {"broker.cert": a.clientPath},
		"key in a file of its own":        {"broker.cert": a.clientCertPath, "broker.key": a.clientKeyPath},
	} {
		part := newPart()
		box := subscribe(t, s, b, b.sources(part, []string{tagTopic})...)
		r := startRelay(t, tlsSettings(t, b, part, s, "localhost").with(files))
		connected := r.await(t, "broker connected", nil)
		body, ids := tagCommit(3)
		r.mustPost(t, body)
		box.waitFor(t, 20*time.Second, ids...)
		if login := connected.text("login"); !strings.EqualFold(login, b.tlsLogin) {
			t.Errorf("%s: logged in by %s, want %s", name, login, b.tlsLogin)
		}
	}
}

func tlsOtherName(t *testing.T, b brokerKind, s *server) {
	refusesTLS(t, s, tlsSettings(t, b, newPart(), s, "127.0.0.1"), "127.0.0.1")
}

func tlsUnknownAuthority(t *testing.T, b brokerKind, s *server) {
	set := tlsSettings(t, b, newPart(), s, "localhost")
	set["broker.cacert"] = certificates(t).strangerPath
	refusesTLS(t, s, set, "authority")
}

// refusesTLS checks that the relay does not use the broker, and names the reason.
func refusesTLS(t *testing.T, s *server, set settings, reason string) {
	t.Helper()
	r := startRelay(t, set)
	down := r.await(t, "broker down", nil)
	if cause := down.text("cause"); !strings.Contains(cause, "certificate") || !strings.Contains(cause, reason) {
		t.Errorf("the cause does not name the certificate and %q: %s", reason, cause)
	}
	body, _ := tagCommit(1)
	if a := r.mustPost(t, body); a.Queued != 1 {
		t.Errorf("the relay says sent %d, queued %d; want queued 1", a.Sent, a.Queued)
	}
}

func wrongPrefix(t *testing.T, b brokerKind, s *server) {
	r := startRelay(t, forBroker(b, newPart(), s).with(settings{
		"broker.topic_prefix": b.wrongPrefix, "broker.dialect": "auto",
	}))
	down := r.await(t, "broker down", map[string]string{"broker": s.addr()})
	if cause := down.text("cause"); !strings.Contains(cause, "topic_prefix") ||
		!strings.Contains(cause, b.remedy) {
		t.Errorf("the cause does not name topic_prefix and %s: %s", b.remedy, cause)
	}
	body, _ := tagCommit(1)
	if a := r.mustPost(t, body); a.Queued != 1 {
		t.Errorf("the relay says sent %d, queued %d; want queued 1", a.Sent, a.Queued)
	}
}
