package relay

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// wireHex is what the broker got for one message, as hexadecimal.
func wireHex(t *testing.T, adjust func(*Options), m message.Message) string {
	t.Helper()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, adjust, b)
	wantAll(t, w.Send(t.Context(), []message.Message{m}), message.Accepted, message.Done)
	return hex.EncodeToString(b.Received()[0].Payload)
}

func TestWireForm(t *testing.T) {
	t.Parallel()
	text := func(s string) string { return hex.EncodeToString([]byte(s)) }
	created := time.UnixMilli(0x0102030405)
	const (
		header     = "005370" + "d00000000500000001" + "42" // a list with durable = false
		properties = "005373" + "d00000001b0000000a" + "a104" + "69642d31" + "4040404040404040" + "83" +
			"0000000102030405"
		// the list: message-id, eight nulls, creation-time
		body = "005377" + "a108" // one AMQP value section: a string
	)
	m := message.Message{ID: "id-1", Address: "build.tag", Body: `{"a": 1}`, Created: created}
	for _, row := range []struct {
		name   string
		adjust func(*Options)
		prop   message.Prop
		want   string
	}{
		{"text", nil, message.Prop{Key: "type", Value: "Tag"},
			header + properties + "005374" + "d10000000f00000002" + "a104" + text("type") + "a103" + text("Tag") +
				body + text(m.Body)},
		{"small integer", nil, message.Prop{Key: "id", Value: int64(5)},
			header + properties + "005374" + "d10000000a00000002" + "a102" + text("id") + "5505" + body +
				text(m.Body)},
		{"large integer", nil, message.Prop{Key: "id", Value: int64(123456)},
			header + properties + "005374" + "d10000001100000002" + "a102" + text("id") + "81000000000001e240" + body +
				text(m.Body)},
		{"null", nil, message.Prop{Key: "parent", Value: nil},
			header + properties + "005374" + "d10000000d00000002" + "a106" + text("parent") + "40" + body +
				text(m.Body)},
		{"true", nil, message.Prop{Key: "expire", Value: true},
			header + properties + "005374" + "d10000000d00000002" + "a106" + text("expire") + "41" + body +
				text(m.Body)},
		{"float", nil, message.Prop{Key: "weight", Value: 1.5},
			header + properties + "005374" + "d10000001500000002" + "a106" + text("weight") + "823ff8000000000000" +
				body + text(m.Body)},

		{"durable, priority, ttl", func(o *Options) {
			o.Durable, o.Priority, o.TTL = true, 7, 1500*time.Millisecond
		},
			message.Prop{Key: "id", Value: true},
			"005370" + "d00000000c00000003" + "41" + "5007" + "70000005dc" + properties +
				"005374" + "d10000000900000002" + "a102" + text("id") + "41" + body + text(m.Body)},
		{"data", func(o *Options) { o.BodyAsData = true }, message.Prop{Key: "id", Value: true},
			header + properties + "005374" + "d10000000900000002" + "a102" + text("id") + "41" + "005375" + "a008" +
				text(m.Body)},
	} {
		m.Props = []message.Prop{row.prop}
		if got := wireHex(t, row.adjust, m); got != row.want {
			t.Errorf("%s:\n%s, not\n%s", row.name, got, row.want)
		}
	}
}

func TestBodyArrivesUnaltered(t *testing.T) {
	t.Parallel()
	m := sample(1)[0]
	m.Body = `{"nul": "\u0000", "raw": "` + "\x7f" + `é", "n": 1e+16, "m": -0.0}` + strings.Repeat(" ", 100_000)
	if got := wireHex(t, nil, m); !strings.HasSuffix(got, hex.EncodeToString([]byte(m.Body))) {
		t.Error("the body was altered")
	}
}

func TestTTLStaysInItsField(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]time.Duration{
		0: 0, -1: 0, time.Microsecond: time.Millisecond, time.Second: time.Second,
		100 * 24 * time.Hour: (1<<32 - 1) * time.Millisecond,
	} {
		if got := wireTTL(d); got != want {
			t.Errorf("%v gives %v, not %v", d, got, want)
		}
	}
}

func TestTestModeSendsNothing(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.TestMode = true }, b)
	wantAll(t, w.Send(t.Context(), sample(10)), message.Accepted, message.Done)
	wantAll(t, w.SendPatiently(t.Context(), sample(10)), message.Accepted, message.Done)
	if !w.Usable() || b.Stats().Connections != 0 {
		t.Errorf("usable: %v, %d connections", w.Usable(), b.Stats().Connections)
	}
	w.opts.TestModeFail = 100
	for _, o := range w.Send(t.Context(), sample(10)) {
		if o.Next == message.Done || o.State == message.Accepted {
			t.Errorf("outcome %+v", o)
		}
	}
}

func TestBadOptionsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Options{Options: amqpconn.Options{Dialect: "x", SASL: "y"}})
	for _, want := range []string{"urls", "topic_prefix", `dialect = "x"`, `sasl = "y"`, "connect_timeout",
		"handoff_timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	for url, want := range map[string]string{
		"http://u:s3cret@h": `scheme "http"`, "amqp://u:s3cret@": "names no host",
		"amqp://u:s3cret%zz@h": "is not a URL",
	} {
		o := options()
		o.Brokers = []Broker{{URL: url}}
		_, err := New(o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

func TestRandomOrderIsShuffled(t *testing.T) {
	t.Parallel()
	first := map[string]bool{}
	for range 100 {
		o := options()
		o.Shuffle, o.Brokers = true, []Broker{{"amqp://a"}, {"amqp://b"}, {"amqps://[::1]"}}
		r, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		first[r.Status()[0].Name] = true
		for _, b := range r.Status() {
			if b.TLS != strings.HasSuffix(b.Name, ":5671") {
				t.Fatalf("status says TLS %v of %s", b.TLS, b.Name)
			}
		}
	}
	for _, name := range []string{"a:5672", "b:5672", "[::1]:5671"} {
		if !first[name] {
			t.Errorf("%s never comes first; %v do", name, first)
		}
	}
}

// Azure Service Bus and Qpid have one entity, and the topic is the subject of each message.
func TestDialectMayShapeTheMessage(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w, log := logged(t, nil, b)
	w.await(0, Up)
	poll(t, "the dialect has been read for the log", func() bool {
		return strings.Contains(log.String(), "broker connected")
	})
	w.brokers[0].conn.Dialect = &dialect.Dialect{
		Name: "subject",
		Destination: func(prefix, topic string) (dialect.Destination, error) {
			return dialect.Destination{Address: prefix, Subject: "koji." + topic}, nil
		},
	}
	links := b.Stats().Links
	wantAll(t, w.Send(t.Context(), sample(20, "build.tag", "task.open")), message.Accepted, message.Done)
	for i, want := range []string{"koji.build.tag", "koji.task.open"} {
		var m amqp.Message
		if err := m.UnmarshalBinary(b.Received()[i].Payload); err != nil {
			t.Fatal(err)
		}
		if subject := m.Properties.Subject; subject == nil || *subject != want ||
			b.Received()[i].Target != "/topic/koji" {
			t.Errorf("message %d went to %s with %+v, not with subject %s", i, b.Received()[i].Target, m.Properties,
				want)
		}
	}
	if n := b.Stats().Links - links; n > 2 { // one that tries the address, one that sends
		t.Errorf("%d links for one address", n)
	}
}
