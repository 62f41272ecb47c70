package relay

import (
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

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
