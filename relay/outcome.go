package relay

import (
	"errors"
	"fmt"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// verdict is what one broker says about a message. Higher ones decide when brokers differ.
type verdict int

const (
	unsent      verdict = iota // never given to the broker
	tooLarge                   // for this broker
	refused                    // for itself: the same again will be refused again
	busy                       // in passing
	unroutable                 // nobody has bound the topic
	blocked                    // its address stands still while others move
	unanswered                 // the broker has not answered
	lost                       // connection, session or link ended before the broker answered
	unencodable                // it has no AMQP form, so no broker was asked
	dropped                    // unroutable, and nobody wants to know
	accepted
)

func (v verdict) String() string {
	return [...]string{"unsent", "too large", "refused", "busy", "unroutable", "blocked", "unanswered", "lost",
		"unencodable", "dropped", "accepted"}[v]
}

// result is a verdict with what a person needs to understand it.
type result struct {
	verdict verdict
	state   message.State
	broker  string
	reason  string
	alone   verdict         // of a lost one: what it would be if nothing else had been under way
	forbids string          // of a lost one: what the broker said, if it is that we may not publish there
	cut     bool            // of a lost one: its connection ended, which can have many causes
	failure message.Failure // for the metrics, where verdict and state do not say it
}

var (
	connectionLost = result{verdict: unsent, reason: "connection lost", failure: message.FailedLost}
	addressBlocked = result{
		verdict: blocked, state: message.Unknown, reason: "no answer for the address, while others get one",
	}
	addressStarved = result{
		verdict: blocked, state: message.Unknown, reason: "no credit for the address: it is full, or not served",
	}
)

const noAnswer = "no answer from the broker"

// rule is one row of the table of answers. Empty conditions match an answer without one; "*" matches any.
type rule struct {
	state     message.State
	condition amqp.ErrCond
	rabbitmq  bool   // holds for RabbitMQ only
	reason    string // of the error's info map; empty matches any
	verdict   verdict
}

// rules: the first that matches decides. They hold for dispositions (state as the broker set it) and, with
// state Rejected, for the error of a refused or detached link as well.
//
// AMQP 1.0 messaging, section 3.4; conditions: transport, section 2.8.
var rules = []rule{
	{message.Accepted, "*", false, "", accepted},

	// RabbitMQ from 3.11.20, 3.12.2 and 4.0: released means that no queue is bound to the topic.
	{message.Released, "*", true, "", unroutable},
	{message.Released, "*", false, "", busy},
	{message.Modified, "*", false, "", busy},

	// RabbitMQ from 4.3 says in the error's info map what a queue has against a message: it is full, or has
	// no leader (a quorum queue or stream that lacks a majority).
	{message.Rejected, "*", true, "maxlen", busy},
	{message.Rejected, "*", true, "unavailable", busy},

	{message.Rejected, amqp.ErrCondMessageSizeExceeded, false, "", tooLarge},
	{message.Rejected, amqp.ErrCondResourceLimitExceeded, false, "", busy},
	{message.Rejected, amqp.ErrCondResourceLocked, false, "", busy},
	{message.Rejected, amqp.ErrCondTransferLimitExceeded, false, "", busy},
	{message.Rejected, amqp.ErrCondConnectionForced, false, "", busy},
	{message.Rejected, amqp.ErrCondDetachForced, false, "", busy},
	{message.Rejected, "com.microsoft:server-busy", false, "", busy},
	{message.Rejected, "com.microsoft:timeout", false, "", busy},
	{message.Rejected, "amqp:server-busy", false, "", busy},
	// RabbitMQ 4.0 to 4.2 give no reason when a queue is full (maximum length, quota).
	{message.Rejected, "", true, "", busy},
	{message.Rejected, "*", false, "", refused},

	// Settled without a terminal state: it says nothing about the message.
	{message.Unknown, "*", false, "", busy},
}

func judge(state message.State, condition amqp.ErrCond, reason string, p dialect.Peer) verdict {
	for _, r := range rules {
		if r.state == state && (r.condition == "*" || r.condition == condition) &&
			(!r.rabbitmq || p.IsRabbitMQ()) &&
			(r.reason == "" || r.reason == reason) {
			return r.verdict
		}
	}
	return refused
}

// judgeError is judge for the error of a refused, detached or ended link or session.
func judgeError(err *amqp.Error, p dialect.Peer) verdict {
	return judge(message.Rejected, err.Condition, infoText(err, "reason"), p)
}

// infoText gives a text of the error's info map.
func infoText(err *amqp.Error, key string) string {
	if v := err.Info[key]; v != nil {
		return inspect.Line(fmt.Sprint(v), 100)
	}
	return ""
}

// judgeDisposition turns a broker's answer into a result.
func judgeDisposition(s amqp.DeliveryState, p dialect.Peer) result {
	a := result{state: message.Unknown, reason: "settled without an outcome"}
	var condition amqp.ErrCond
	var why string
	switch s := s.(type) {
	case *amqp.StateReceived:
		a.reason = "settled as received"
	case *amqp.StateAccepted:
		a.state, a.reason = message.Accepted, ""
	case *amqp.StateReleased:
		a.state, a.reason = message.Released, "released"
		if p.IsRabbitMQ() {
			a.reason = "released: no queue is bound to the topic"
		}
	case *amqp.StateModified:
		a.state, a.reason = message.Modified, "modified"
	case *amqp.StateRejected:
		a.state, a.reason = message.Rejected, "rejected without a reason"
		if s.Error != nil {
			condition, why = s.Error.Condition, infoText(s.Error, "reason")
			a.reason = "rejected: " + failure.Condition(s.Error)
			if queue := infoText(s.Error, "queue"); queue != "" {
				a.reason += fmt.Sprintf(" (queue %s: %s)", queue, why)
			}
		}
	}
	a.verdict = judge(a.state, condition, why, p)
	return a
}

// judgeRefusal turns a refused link into a result for a message that was to go over it.
func judgeRefusal(err error, p dialect.Peer) result {
	a := result{
		verdict: busy, state: message.NotSent, failure: message.FailedLink,
		reason: message.AddressRefused + failure.Text(err),
	}
	var remote *amqp.Error
	if errors.As(err, &remote) {
		a.verdict = judgeError(remote, p)
	}
	var long *amqpconn.AddressTooLongError
	if errors.As(err, &long) {
		a.verdict, a.failure = tooLarge, ""
	}
	return a
}

// failed is why it failed; empty where its state says it.
func (a result) failed() message.Failure {
	if a.failure != "" {
		return a.failure
	}
	switch a.verdict {
	case tooLarge:
		return message.FailedTooLarge
	case unencodable:
		return message.FailedUnencodable
	case lost:
		return message.FailedLost
	case blocked, unanswered:
		return message.FailedTimeout
	}
	return ""
}

// outcome makes the last word on a message from the deciding result. all tells whether every configured
// broker was asked.
func (a result) outcome(all bool) message.Outcome {
	o := message.Outcome{State: a.state, Broker: a.broker, Reason: a.reason, Failure: a.failed()}
	switch a.verdict {
	case accepted, dropped:
		o.Next = message.Done
	case unroutable, busy, blocked:
		o.Next = message.Later
	case refused, unencodable:
		o.Next = message.Count
	case tooLarge:
		// A broker that was not asked may take it.
		o.Next = message.Later
		if all {
			o.Next = message.Dead
		}
	default:
		o.Next = message.Wait
	}
	return o
}

// worse gives the result that decides when a message was tried on several brokers.
func worse(a, b result) result {
	if b.verdict >= a.verdict {
		return b
	}
	return a
}
