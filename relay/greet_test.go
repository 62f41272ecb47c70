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
		{"all young", []broker{{phase: Up, connectedAt: young}, {phase: Up, connectedAt: young}}, false,
			[]int{0, 1}},
		{"the first just returned", []broker{{phase: Up, connectedAt: young}, {phase: Up, connectedAt: old}}, false,
			[]int{1, 0}},
		{"the first has lasted", []broker{{phase: Up, connectedAt: old}, {phase: Up, connectedAt: old}}, false,
			[]int{0, 1}},
		{"down", []broker{{phase: Down}, {phase: Up, connectedAt: old}, {phase: Connecting}}, false, []int{1}},
		{"stalled", []broker{
			{phase: Up, connectedAt: old, breaker: breaker{open: true, probeAt: young.Add(time.Hour)}},
			{phase: Up, connectedAt: old},
		}, false, []int{1}},
		{"probe due", []broker{{phase: Up, connectedAt: old, breaker: breaker{open: true, probeAt: young}},
			{phase: Up, connectedAt: old}}, false, []int{0, 1}},
		{"patient callers use what is up first",
			[]broker{{phase: Up, connectedAt: old, breaker: breaker{open: true}}, {phase: Up, connectedAt: old}}, true,
			[]int{1, 0}},
		{"patient callers need no due time",
			[]broker{{phase: Up, connectedAt: old, breaker: breaker{open: true, probeAt: young.Add(time.Hour)}}}, true,
			[]int{0}},
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
