package devbroker

import (
	"bytes"
	"time"

	"koji-relay/internal/devbroker/wire"
)

// Outcome is the delivery state that the broker answers with.
type Outcome int

// The terminal delivery states (AMQP 1.0, part 3, section 3.4).
const (
	Accept Outcome = iota
	Reject
	Release
	Modify
)

// When says at what moment the outcome is told to the sender.
type When int

const (
	AtOnce When = iota
	// Held: when the test calls SettleHeld.
	Held
	// Never. Unless Taken is set the message is not routed either.
	Never
)

// Fault is something that goes wrong on a connection.
type Fault int

const (
	NoFault Fault = iota
	// DropConnection resets the TCP connection: no close frame, no FIN.
	DropConnection
	// CloseConnection sends a close frame with the cause.
	CloseConnection
	// EndSession ends the session with the cause.
	EndSession
	// DetachLink closes the link with the cause.
	DetachLink
	// FreezeConnection stops reading and writing, heartbeats included, until Thaw. TCP stays up.
	FreezeConnection
	// StopReading leaves the connection's heartbeats and settlements alone and reads no more, until Thaw: what
	// RabbitMQ 3 does to publishers while an alarm is on.
	StopReading
	// HalfClose shuts the broker's direction of the TCP connection (FIN) and goes on reading.
	HalfClose
	// WithdrawCredit takes the link's credit back until the next Script for its address. The message that
	// brought it on is settled as usual, after that.
	WithdrawCredit
	// KillBroker does what Stop does, without waiting.
	KillBroker
)

// Verdict is what the broker does with one message. The zero Verdict accepts.
type Verdict struct {
	Outcome Outcome
	Cause   Cause // of Reject, and of the Fault
	// DeliveryFailed and UndeliverableHere are the fields of Modify.
	DeliveryFailed    bool
	UndeliverableHere bool
	When              When
	Delay             time.Duration // before an outcome that is told AtOnce
	// Fault happens in place of the settlement (WithdrawCredit: before it).
	Fault Fault
	// Taken routes the message to the subscribers although its sender does not learn so: Never, or a Fault.
	Taken bool
	// Lost throws the message away although its sender is told that it was accepted: a broker that lies.
	Lost bool
	// Say is what the broker sends on the message's session before its outcome, knowing its delivery-id:
	// whatever a test wants it to say.
	Say func(delivery uint32) []Performative
}

// Performative is one for Verdict.Say: its code, and its list of values as package wire encodes them.
type Performative struct {
	Code uint64
	List []any
}

// Behaviour scripts what happens to links and messages of an address. The zero Behaviour is a good broker.
type Behaviour struct {
	// Verdict is for every message, or for those that the next three fields choose. The rest is accepted.
	Verdict
	Skip       int    // leave out so many messages first
	Times      int    // then apply to so many; 0 = all
	Containing string // only messages whose encoded bytes contain this (a poison message)
	// Judge decides in place of all of the above when set. It is called by one goroutine for each
	// connection, concurrently, and must not block.
	Judge func(Received) Verdict
	// AtFrame makes Fault happen when that transfer frame (counted from 1) of a message arrives that is
	// not its last: a message cut in the middle. Skip, Times and Containing are not looked at.
	AtFrame int

	// Refuse is how an attach to the address is refused, with RefuseCause.
	Refuse      Refusal
	RefuseCause Cause
	// NoCredit gives senders no credit (and takes it back from those that have some); Credit is how much
	// they get, 0 = Options.Credit.
	NoCredit bool
	Credit   uint32
	// MaxMessageSize is announced at attach; 0 = Options.MaxMessageSize.
	MaxMessageSize uint64
}

// Refusal is a way to refuse a link.
type Refusal int

const (
	NoRefusal Refusal = iota
	// RefuseLink answers the attach with a null terminus and then detaches with the cause, as the
	// specification wants it.
	RefuseLink
	// RefuseSession ends the whole session with the cause, as RabbitMQ does.
	RefuseSession
)

// Stage is a moment in the life of a connection.
type Stage int

const (
	NoStage     Stage = iota
	StageAccept       // before the first byte, TLS included
	StageSASL         // before the outcome of the authentication
	StageOpen         // before the answer to open
	StageBegin        // before the answer to begin
	StageAttach       // before the answer to attach
)

// ConnBehaviour scripts what happens to new connections.
type ConnBehaviour struct {
	// StallAt freezes the connection there, until Thaw.
	StallAt Stage
	// RefuseSASL fails every authentication.
	RefuseSASL bool
	// RefuseOpen, when set, is the cause with which the broker closes at once after open.
	RefuseOpen Cause
}

// script is a Behaviour in force, and how far it has come.
type script struct {
	pattern string
	Behaviour
	seen int
}

// Script sets the behaviour for links and messages whose address matches the pattern: a whole address, a
// routing key that covers every spelling of it ("koji.build.tag"), or either with wildcards; "#" is all. The
// last script that matches an address counts; scripting a pattern again replaces it and starts its counters
// anew; the zero Behaviour takes it away. Credit changes at once on open links. Safe for concurrent use; when
// it returns, the next message that arrives is judged by it.
func (b *Broker) Script(pattern string, behaviour Behaviour) {
	b.mu.Lock()
	kept := b.scripts[:0:0]
	for _, s := range b.scripts {
		if s.pattern != pattern {
			kept = append(kept, s)
		}
	}
	b.scripts = append(kept, &script{pattern: pattern, Behaviour: behaviour})
	b.mu.Unlock()
	b.each(func(c *conn) { c.post(func() { c.reviseCredit(pattern) }) })
}

// ScriptConnections sets what happens to connections that arrive from now on.
func (b *Broker) ScriptConnections(behaviour ConnBehaviour) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.connScript = behaviour
}

func (b *Broker) connBehaviour() ConnBehaviour {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connScript
}

// scriptLocked is the script in force for an address, or nil. Broker.mu is held.
func (b *Broker) scriptLocked(a address) *script {
	for i := len(b.scripts) - 1; i >= 0; i-- {
		if a.matches(b.scripts[i].pattern) {
			return b.scripts[i]
		}
	}
	return nil
}

// behaviour is the behaviour in force for an address, without counting anything.
func (b *Broker) behaviour(a address) Behaviour {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.scriptLocked(a); s != nil {
		return s.Behaviour
	}
	return Behaviour{}
}

// judge counts a complete message against its address's script and says what becomes of it.
func (b *Broker) judge(a address, r Received) Verdict {
	b.mu.Lock()
	s := b.scriptLocked(a)
	if s == nil || s.AtFrame > 0 {
		b.mu.Unlock()
		return Verdict{}
	}
	judge, verdict := s.Judge, Verdict{}
	if judge == nil && (s.Containing == "" || bytes.Contains(r.Payload, []byte(s.Containing))) {
		s.seen++
		if s.seen > s.Skip && (s.Times == 0 || s.seen <= s.Skip+s.Times) {
			verdict = s.Verdict
		}
	}
	b.mu.Unlock()
	if judge != nil {
		return judge(r)
	}
	return verdict
}

// Cause is an AMQP error: a condition such as "amqp:resource-limit-exceeded" and a description for a person.
// The zero Cause is no error.
type Cause struct {
	Condition   string
	Description string
}

func (c Cause) encode() any {
	if c == (Cause{}) {
		return nil
	}
	var description any
	if c.Description != "" {
		description = c.Description
	}
	return wire.Described{Descriptor: uint64(wire.CodeError),
		Value: []any{wire.Symbol(c.Condition), description}}
}
