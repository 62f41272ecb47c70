package dialect

import (
	"errors"
	"strings"
	"testing"
)

var (
	unknown   = Peer{}
	rabbit310 = Peer{Product: "RabbitMQ", Version: "3.10.8"}
	rabbit40  = Peer{Product: "RabbitMQ", Version: "4.0.5"}
	rabbit43  = Peer{Product: "RabbitMQ", Version: "4.3.0"}
	activemq  = Peer{Product: "ActiveMQ", Version: "6.1.0", TopicPrefix: "topic://"}
	artemis   = Peer{Product: "apache-activemq-artemis", Version: "2.40.0"}
	solace    = Peer{Product: "Solace PubSub+", TopicPrefix: "topic://"}
)

func TestTargets(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		dialect, prefix string
		peer            Peer
		want            string // target of build.tag; with "+topic" for the capability; or a part of the error
	}{
		// protonmsg's rule
		{Auto, "koji", unknown, "topic://koji.build.tag"},
		{Auto, "topic://koji", unknown, "topic://koji.build.tag"},
		{Auto, "/topic/koji", unknown, "/topic/koji.build.tag"},
		{Auto, "topic://VirtualTopic.eng.brew", activemq, "topic://VirtualTopic.eng.brew.build.tag"},
		{Auto, "koji", activemq, "topic://koji.build.tag"},
		{Auto, "topic://koji", solace, "topic://koji.build.tag"},

		{Auto, "/topic/koji", rabbit310, "/topic/koji.build.tag"},
		{Auto, "/exchange/bus/koji", rabbit310, "/exchange/bus/koji.build.tag"},
		{Auto, "/exchanges/bus/koji", rabbit310, "/exchange/bus/koji.build.tag"},
		{Auto, "/topic/koji", rabbit40, "/exchanges/amq.topic/koji.build.tag"},
		{Auto, "/topic/koji", rabbit43, "/exchanges/amq.topic/koji.build.tag"},
		{Auto, "/topic/koji hub", rabbit40, "/exchanges/amq.topic/koji%20hub.build.tag"},
		{Auto, "/exchanges/my%20bus/koji", rabbit40, "/exchanges/my%20bus/koji.build.tag"},
		{Auto, "/exchange/my bus/koji", rabbit40, "/exchanges/my%20bus/koji.build.tag"},
		{Auto, "/exchanges/bus/koji", unknown, "/exchanges/bus/koji.build.tag"},

		{Auto, "topic://koji", artemis, "koji.build.tag+topic"},
		{Auto, "koji", artemis, "koji.build.tag+topic"},
		{Literal, "koji", artemis, "topic://koji.build.tag"},
		{Artemis, "topic://koji", artemis, "koji.build.tag+topic"},
		{Artemis, "koji", unknown, "koji.build.tag+topic"},

		// an explicit value overrides what the broker says
		{Literal, "/topic/koji", rabbit40, "/topic/koji.build.tag"},
		{Literal, "topic://koji", rabbit40, "topic://koji.build.tag"},
		{RabbitMQ, "/topic/koji", unknown, "/exchanges/amq.topic/koji.build.tag"},

		// a prefix that this broker cannot serve
		{Auto, "topic://koji", rabbit310, "set topic_prefix = /topic/koji"},
		{Auto, "koji", rabbit40, "set topic_prefix = /topic/koji"},
		{Auto, "/queue/koji", rabbit40, "write /topic/NAME"},
		{Auto, "/exchanges/bus", rabbit40, "write /topic/NAME"},
		{Auto, "/topic/koji", activemq, "set topic_prefix = topic://koji"},
		{Auto, "/topic/koji", artemis, "set topic_prefix = koji"},
		{"stomp", "koji", unknown, "is not one of"},
	} {
		d, err := Choose(row.dialect, row.prefix, row.peer)
		var got string
		if err == nil {
			var to Destination
			to, err = d.Destination(row.prefix, "build.tag")
			got = to.Address
			for _, c := range d.Capabilities {
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
			t.Errorf("%s %s on %s %s: %s, not %s", row.dialect, row.prefix, row.peer.Product, row.peer.Version, got,
				row.want)
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
	got, err := Target("koji", Auto, "build.tag")
	if got != "topic://koji.build.tag" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := Target("topic://koji", RabbitMQ, "build.tag"); err == nil {
		t.Error("no error for a prefix that the dialect cannot express")
	}
}

func TestSources(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		dialect, prefix string
		peer            Peer
		want            string // of build.# , empty = a queue
	}{
		{Auto, "/topic/koji", rabbit310, "/topic/koji.build.#"},
		{Auto, "/exchange/bus/koji", rabbit310, "/exchange/bus/koji.build.#"},
		{Auto, "/topic/koji", rabbit40, ""},
		{Auto, "koji", activemq, "topic://koji.build.>"},
		{Auto, "koji", artemis, "koji.build.#"},
		{Artemis, "koji", artemis, "koji.build.#"},
		{Auto, "koji", unknown, "topic://koji.build.>"},
		{Auto, "/topic/koji", unknown, "/topic/koji.build.#"},
	} {
		d, err := Choose(row.dialect, row.prefix, row.peer)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if d.Source != nil {
			if got, err = d.Source(row.prefix, "build.#"); err != nil {
				t.Fatal(err)
			}
		}
		if got != row.want {
			t.Errorf("%+v: %q", row, got)
		}
	}
}
