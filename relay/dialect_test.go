package relay

import (
	"errors"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

var (
	unknown   = peer{}
	rabbit310 = peer{product: "RabbitMQ", version: "3.10.8"}
	rabbit40  = peer{product: "RabbitMQ", version: "4.0.5"}
	rabbit43  = peer{product: "RabbitMQ", version: "4.3.0"}
	activemq  = peer{product: "ActiveMQ", version: "6.1.0", topicPrefix: "topic://"}
	artemis   = peer{product: "apache-activemq-artemis", version: "2.40.0"}
	solace    = peer{product: "Solace PubSub+", topicPrefix: "topic://"}
)

func TestTargets(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		dialect, prefix string
		peer            peer
		want            string // target of build.tag; with "+topic" for the capability; or a part of the error
	}{
		// protonmsg's rule
		{DialectAuto, "koji", unknown, "topic://koji.build.tag"},
		{DialectAuto, "topic://koji", unknown, "topic://koji.build.tag"},
		{DialectAuto, "/topic/koji", unknown, "/topic/koji.build.tag"},
		{DialectAuto, "topic://VirtualTopic.eng.brew", activemq, "topic://VirtualTopic.eng.brew.build.tag"},
		{DialectAuto, "koji", activemq, "topic://koji.build.tag"},
		{DialectAuto, "topic://koji", solace, "topic://koji.build.tag"},

		{DialectAuto, "/topic/koji", rabbit310, "/topic/koji.build.tag"},
		{DialectAuto, "/exchange/bus/koji", rabbit310, "/exchange/bus/koji.build.tag"},
		{DialectAuto, "/exchanges/bus/koji", rabbit310, "/exchange/bus/koji.build.tag"},
		{DialectAuto, "/topic/koji", rabbit40, "/exchanges/amq.topic/koji.build.tag"},
		{DialectAuto, "/topic/koji", rabbit43, "/exchanges/amq.topic/koji.build.tag"},
		{DialectAuto, "/topic/koji hub", rabbit40, "/exchanges/amq.topic/koji%20hub.build.tag"},
		{DialectAuto, "/exchanges/my%20bus/koji", rabbit40, "/exchanges/my%20bus/koji.build.tag"},
		{DialectAuto, "/exchange/my bus/koji", rabbit40, "/exchanges/my%20bus/koji.build.tag"},
		{DialectAuto, "/exchanges/bus/koji", unknown, "/exchanges/bus/koji.build.tag"},

		{DialectAuto, "topic://koji", artemis, "topic://koji.build.tag+topic"},
		{DialectArtemis, "topic://koji", artemis, "koji.build.tag+topic"},
		{DialectArtemis, "koji", unknown, "koji.build.tag+topic"},

		// an explicit value overrides what the broker says
		{DialectLiteral, "/topic/koji", rabbit40, "/topic/koji.build.tag"},
		{DialectLiteral, "topic://koji", rabbit40, "topic://koji.build.tag"},
		{DialectRabbitMQ, "/topic/koji", unknown, "/exchanges/amq.topic/koji.build.tag"},

		// a prefix that this broker cannot serve
		{DialectAuto, "topic://koji", rabbit310, "set topic_prefix = /topic/koji"},
		{DialectAuto, "koji", rabbit40, "set topic_prefix = /topic/koji"},
		{DialectAuto, "/queue/koji", rabbit40, "write /topic/NAME"},
		{DialectAuto, "/exchanges/bus", rabbit40, "write /topic/NAME"},
		{DialectAuto, "/topic/koji", activemq, "set topic_prefix = topic://koji"},
		{DialectAuto, "/topic/koji", artemis, "set topic_prefix = topic://koji"},
		{"stomp", "koji", unknown, "is not one of"},
	} {
		d, err := chooseDialect(row.dialect, row.prefix, row.peer)
		var got string
		if err == nil {
			got, err = d.target(row.prefix, "build.tag")
			for _, c := range d.capabilities {
				got += "+" + c
			}
		}
		if err != nil {
			got = err.Error()
			var prefix *PrefixError
			if errors.As(err, &prefix) == (row.dialect == "stomp") {
				t.Errorf("%+v: error type %T", row, err)
			}
		}
		if got != row.want && (err == nil || !strings.Contains(got, row.want)) {
			t.Errorf("%s %s on %s %s: %s, not %s", row.dialect, row.prefix, row.peer.product, row.peer.version, got, row.want)
		}
	}
}

func TestAddressIsEscapedForRabbitMQ(t *testing.T) {
	t.Parallel()
	got, err := exchangesTarget("/topic/koji", "import.a/b c:d+é%")
	if want := "/exchanges/amq.topic/koji.import.a%2Fb%20c%3Ad%2B%C3%A9%25"; err != nil || got != want {
		t.Errorf("%s, %v; not %s", got, err, want)
	}
}

func TestTargetWithoutABroker(t *testing.T) {
	t.Parallel()
	got, err := Target("koji", DialectAuto, "build.tag")
	if got != "topic://koji.build.tag" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := Target("topic://koji", DialectRabbitMQ, "build.tag"); err == nil {
		t.Error("no error for a prefix that the dialect cannot express")
	}
}

// A prefix for another broker is found before any message, and its remedy is where an administrator looks.
func TestWrongPrefixIsFoundAtConnect(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "3.10.8"})
	w := startRelay(t, func(o *Options) { o.TopicPrefix = "topic://koji" }, b)
	poll(t, "the prefix is reported", func() bool {
		return strings.Contains(w.Status()[0].Reason, "set topic_prefix = /topic/koji")
	})
	wantAll(t, w.Send(t.Context(), sample(1)), message.NotSent, message.Wait)
}

func TestRefusedSampleIsFoundAtConnect(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	b.Script("#", refuse(devbroker.RefuseSession, "amqp:not-found"))
	w := startRelay(t, nil, b)
	poll(t, "the refusal is reported", func() bool {
		return strings.Contains(w.Status()[0].Reason, "attach to /topic/koji.build.tag") &&
			strings.Contains(w.Status()[0].Reason, "check topic_prefix")
	})
	b.Script("#", devbroker.Behaviour{})
	w.await(0, Up)
}

// pickOrder gives the indices of the brokers that would be used, one after the other.
func pickOrder(r *Relay, patient bool) []int {
	var order []int
	var tried []*broker
	for {
		o, ok := r.pick(tried, patient, false)
		if !ok {
			return order
		}
		for i, b := range r.brokers {
			if b == o.b {
				order = append(order, i)
			}
		}
		tried = append(tried, o.b)
	}
}

func TestEarlierBrokersArePreferredOnceTheyLast(t *testing.T) {
	t.Parallel()
	old, young := time.Now().Add(-seasoned-time.Second), time.Now()
	for _, row := range []struct {
		name    string
		brokers []broker
		patient bool
		want    []int
	}{
		{"all young", []broker{{state: Up, connectedAt: young}, {state: Up, connectedAt: young}}, false, []int{0, 1}},
		{"the first just returned", []broker{{state: Up, connectedAt: young}, {state: Up, connectedAt: old}}, false, []int{1, 0}},
		{"the first has lasted", []broker{{state: Up, connectedAt: old}, {state: Up, connectedAt: old}}, false, []int{0, 1}},
		{"down", []broker{{state: Down}, {state: Up, connectedAt: old}, {state: Connecting}}, false, []int{1}},
		{"stalled", []broker{{state: Stalled, connectedAt: old, trialAt: young.Add(time.Hour)}, {state: Up, connectedAt: old}}, false, []int{1}},
		{"trial due", []broker{{state: Stalled, connectedAt: old, trialAt: young}, {state: Up, connectedAt: old}}, false, []int{0, 1}},
		{"patient callers use what is up first", []broker{{state: Stalled, connectedAt: old}, {state: Up, connectedAt: old}}, true, []int{1, 0}},
		{"patient callers need no due time", []broker{{state: Stalled, connectedAt: old, trialAt: young.Add(time.Hour)}}, true, []int{0}},
	} {
		r := &Relay{}
		for i := range row.brokers {
			b := &row.brokers[i]
			b.r, b.conn = r, &conn{}
			r.brokers = append(r.brokers, b)
		}
		got := pickOrder(r, row.patient)
		if len(got) != len(row.want) {
			t.Errorf("%s: %v, not %v", row.name, got, row.want)
			continue
		}
		for i := range got {
			if got[i] != row.want[i] {
				t.Errorf("%s: %v, not %v", row.name, got, row.want)
			}
		}
	}
}
