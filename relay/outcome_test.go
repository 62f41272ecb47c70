package relay

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/devbroker/wire"
	"koji-relay/internal/message"
)

func reject(condition string) devbroker.Behaviour {
	if condition == "" {
		return devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Reject}}
	}
	return devbroker.Behaviour{Verdict: devbroker.Verdict{
		Outcome: devbroker.Reject, Cause: devbroker.Cause{Condition: condition, Description: "because"}}}
}

// rabbitReject rejects as RabbitMQ does since 4.3, with an info map.
func rabbitReject(condition, reason string) devbroker.Behaviour {
	return devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Never,
		Say: func(id uint32) []devbroker.Performative {
			return []devbroker.Performative{disposition(id, nil, true, wire.CodeRejected, wire.Described{
				Descriptor: uint64(wire.CodeError), Value: []any{wire.Symbol(condition), "because",
					wire.Pairs{wire.Symbol("queue"), "consumer-1", wire.Symbol("reason"), wire.Symbol(reason)}},
			})}
		}}}
}

func fault(f devbroker.Fault, condition string) devbroker.Behaviour {
	return devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: f,
		Cause: devbroker.Cause{Condition: condition}}}
}

func refuse(r devbroker.Refusal, condition string) devbroker.Behaviour {
	return devbroker.Behaviour{Refuse: r, RefuseCause: devbroker.Cause{Condition: condition}}
}

// Each row is one way in which a broker can answer a lone message, on the only broker there is.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	release := devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Release}}
	table := []struct {
		name      string
		broker    devbroker.Options
		behaviour devbroker.Behaviour
		adjust    func(*Options)
		change    func(*message.Message)
		state     message.State
		next      message.Next
		reason    string
	}{
		{name: "accepted", state: message.Accepted, next: message.Done},

		{name: "rejected for a full queue", behaviour: reject("amqp:resource-limit-exceeded"),
			state: message.Rejected, next: message.Later, reason: "amqp:resource-limit-exceeded: because"},
		{name: "rejected by a busy server", behaviour: reject("com.microsoft:server-busy"),
			state: message.Rejected, next: message.Later},
		{name: "rejected without a reason by RabbitMQ", broker: rabbit4(), behaviour: reject(""),
			state: message.Rejected, next: message.Later, reason: "rejected without a reason"},
		{name: "rejected without a reason by another", behaviour: reject(""),
			state: message.Rejected, next: message.Count},
		{name: "rejected for lack of permission", behaviour: reject("amqp:unauthorized-access"),
			state: message.Rejected, next: message.Count, reason: "amqp:unauthorized-access: because"},
		{name: "rejected with an unknown condition", behaviour: reject("vendor:no"),
			state: message.Rejected, next: message.Count},
		{name: "rejected by a full queue of RabbitMQ 4.3", broker: rabbit4(),
			behaviour: rabbitReject("amqp:resource-limit-exceeded", "maxlen"), state: message.Rejected,
			next: message.Later, reason: "(queue consumer-1: maxlen)"},
		{name: "rejected by a queue of RabbitMQ 4.3 without a leader", broker: rabbit4(),
			behaviour: rabbitReject("amqp:precondition-failed", "unavailable"),
			state:     message.Rejected, next: message.Later, reason: "(queue consumer-1: unavailable)"},
		{name: "rejected by RabbitMQ 4.3 for another reason", broker: rabbit4(),
			behaviour: rabbitReject("amqp:precondition-failed", "schema"), state: message.Rejected,
			next: message.Count},
		{name: "rejected by another with a reason like that",
			behaviour: rabbitReject("amqp:precondition-failed", "unavailable"), state: message.Rejected,
			next: message.Count},
		{name: "rejected for its size", behaviour: reject("amqp:link:message-size-exceeded"),
			state: message.Rejected, next: message.Dead},

		{name: "released by RabbitMQ for lack of a binding", broker: rabbit4(),
			state: message.Released, next: message.Later, reason: "no queue is bound"},
		{name: "released by RabbitMQ, unroutable = drop", broker: rabbit4(),
			adjust: func(o *Options) { o.DropUnroutable = true },
			state:  message.Released, next: message.Done},
		{name: "released news", broker: rabbit4(), change: func(m *message.Message) { m.Address = "pre.build.tag" },
			state: message.Released, next: message.Done},
		{name: "released by another", behaviour: release,
			state: message.Released, next: message.Later},
		{name: "released by another, unroutable = drop", behaviour: release,
			adjust: func(o *Options) { o.DropUnroutable = true },
			state:  message.Released, next: message.Later},
		{name: "modified", behaviour: devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Modify,
			DeliveryFailed: true}},
			state: message.Modified, next: message.Later},

		{name: "link refused", behaviour: refuse(devbroker.RefuseLink, "amqp:unauthorized-access"),
			state: message.NotSent, next: message.Count, reason: "address refused: amqp:unauthorized-access"},
		{name: "link refused with the session", behaviour: refuse(devbroker.RefuseSession, "amqp:not-found"),
			state: message.NotSent, next: message.Count, reason: "address refused: amqp:not-found"},
		{name: "link refused in passing", behaviour: refuse(devbroker.RefuseSession,
			"amqp:resource-limit-exceeded"),
			state: message.NotSent, next: message.Later},

		{name: "link detached with it", behaviour: fault(devbroker.DetachLink, "amqp:not-allowed"),
			state: message.Unknown, next: message.Count},
		{name: "link detached in passing", behaviour: fault(devbroker.DetachLink, "amqp:link:detach-forced"),
			state: message.Unknown, next: message.Later},
		{name: "link detached for its size", behaviour: fault(devbroker.DetachLink,
			"amqp:link:message-size-exceeded"),
			state: message.Unknown, next: message.Dead},
		{name: "session ended", behaviour: fault(devbroker.EndSession, "amqp:internal-error"),
			state: message.Unknown, next: message.Wait,
			reason: "session ended before the broker answered: amqp:internal-error"},
		{name: "connection closed", behaviour: fault(devbroker.CloseConnection, "amqp:connection:framing-error"),
			state: message.Unknown, next: message.Wait, reason: "connection lost before the broker answered"},
		{name: "connection reset", behaviour: fault(devbroker.DropConnection, ""),
			state: message.Unknown, next: message.Wait, reason: "connection lost before the broker answered"},
		{name: "half-closed", behaviour: fault(devbroker.HalfClose, ""),
			state: message.Unknown, next: message.Wait, reason: "connection lost before the broker answered"},
		{name: "frozen", behaviour: fault(devbroker.FreezeConnection, ""), adjust: quick,
			state: message.Unknown, next: message.Wait, reason: "no answer from the broker"},
		{name: "never settled", behaviour: devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Never}},
			adjust: quick, state: message.Unknown, next: message.Wait, reason: "no answer from the broker"},
		{name: "no credit", behaviour: devbroker.Behaviour{NoCredit: true},
			adjust: quick,
			state:  message.Unknown, next: message.Wait, reason: "no answer from the broker"},

		{name: "too large for the link", broker: devbroker.Options{MaxMessageSize: 1000},
			change: func(m *message.Message) { m.Body = strings.Repeat("x", 2000) },
			state:  message.NotSent, next: message.Dead, reason: "larger than the 1000 B"},
		{name: "integer over 63 bits", change: addProp(json.RawMessage("18446744073709551615")),
			state: message.NotSent, next: message.Count,
			reason: "encode property p: 18446744073709551615 has no AMQP form"},
		{name: "lone surrogate", change: addProp(json.RawMessage(`"\ud800"`)),
			state: message.NotSent, next: message.Count, reason: "has no AMQP form"},
		{name: "list", change: addProp([]any{1}),
			state: message.NotSent, next: message.Count, reason: "has no AMQP form"},
		{name: "text that is not UTF-8", change: addProp("\xff"),
			state: message.NotSent, next: message.Count, reason: "not valid UTF-8"},
		{name: "body that is not UTF-8", change: func(m *message.Message) { m.Body = "\xff" },
			state: message.NotSent, next: message.Count, reason: "encode body"},
	}
	states, nexts := make(map[message.State]bool), make(map[message.Next]bool)
	for _, row := range table {
		states[row.state], nexts[row.next] = true, true
	}
	for s := message.NotSent; s <= message.Modified; s++ {
		if !states[s] {
			t.Errorf("no broker's answer is %v", s)
		}
	}
	for n := message.Wait; n <= message.Dead; n++ {
		if !nexts[n] {
			t.Errorf("no answer has %v for its message", n)
		}
	}
	for _, row := range table {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, row.broker)
			w := startRelay(t, row.adjust, b)
			w.await(0, Up)
			// the link is attached, or that takes up the short time
			if row.adjust != nil && row.broker.Product == "" && !row.behaviour.NoCredit {
				wantAll(t, w.SendPatiently(t.Context(), fresh("build.tag")), message.Accepted, message.Done)
			}
			b.Script("#", row.behaviour)
			msgs := sample(1)
			if row.change != nil {
				row.change(&msgs[0])
			}
			o := w.Send(t.Context(), msgs)[0]
			if o.State != row.state || o.Next != row.next {
				t.Errorf("outcome is %v/%v (%s), not %v/%v", o.State, o.Next, o.Reason, row.state, row.next)
			}
			if !strings.Contains(o.Reason, row.reason) {
				t.Errorf("reason is %q, not %q", o.Reason, row.reason)
			}
			b.Script("#", devbroker.Behaviour{})
			b.Thaw()
		})
	}
}

// quick is for rows that end with the hand-over's time.
func quick(o *Options) { o.HandoffTimeout = 2 * time.Second }

func addProp(v any) func(*message.Message) {
	return func(m *message.Message) { m.Props = append(m.Props, message.Prop{Key: "p", Value: v}) }
}

// A message turned away by one broker for any reason is tried on the next.
func TestNextBrokerMayTakeWhatOneTurnsAway(t *testing.T) {
	t.Parallel()
	for name, behaviour := range map[string]devbroker.Behaviour{
		"busy":         reject("amqp:resource-limit-exceeded"),
		"refused":      reject("amqp:not-allowed"),
		"released":     {Verdict: devbroker.Verdict{Outcome: devbroker.Release}},
		"modified":     {Verdict: devbroker.Verdict{Outcome: devbroker.Modify}},
		"too large":    {MaxMessageSize: 10},
		"link refused": refuse(devbroker.RefuseSession, "amqp:not-found"),
		"link ended":   fault(devbroker.DetachLink, "amqp:link:detach-forced"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
			a.Script("koji.task.open", behaviour)
			w := startRelay(t, nil, a, b)
			w.await(0, Up)
			w.await(1, Up)
			outs := w.Send(t.Context(), sample(1, "task.open"))
			wantAll(t, outs, message.Accepted, message.Done)
			if outs[0].Broker != b.Addr() {
				t.Errorf("accepted by %s, not the second broker %s", outs[0].Broker, b.Addr())
			}
		})
	}
}

func TestTooLargeIsDeadOnlyWhenEveryBrokerSaysSo(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{MaxMessageSize: 1000}),
		startBroker(t, devbroker.Options{MaxMessageSize: 1000})
	w := startRelay(t, nil, a, b)
	w.await(0, Up)
	w.await(1, Up)
	msgs := sample(1)
	msgs[0].Body = strings.Repeat("x", 2000)
	wantAll(t, w.Send(t.Context(), msgs), message.NotSent, message.Dead)
	b.Stop()
	w.await(1, Down)
	wantAll(t, w.Send(t.Context(), msgs), message.NotSent, message.Later)
}

// Where brokers differ, the answer that gives the message the most chances decides, and one that may have it
// above all.
func TestTheMostHopefulAnswerDecides(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		first, second, want verdict
	}{
		{tooLarge, refused, refused},
		{refused, busy, busy},
		{busy, unroutable, unroutable},
		{busy, unsent, busy},
		{unanswered, refused, unanswered},
		{unanswered, accepted, accepted},
	} {
		for _, swap := range []bool{false, true} {
			a, b := result{verdict: row.first}, result{verdict: row.second}
			if swap {
				a, b = b, a
			}
			if got := worse(a, b).verdict; got != row.want {
				t.Errorf("%v and %v give %v, not %v", row.first, row.second, got, row.want)
			}
		}
	}
}
