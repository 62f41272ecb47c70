package devbroker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"
	"go.uber.org/goleak"

	"koji-relay/internal/devbroker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a broker until the test ends.
func start(t *testing.T, opts devbroker.Options) *devbroker.Broker {
	t.Helper()
	b, err := devbroker.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// soon is a deadline for everything that ought to take milliseconds.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, b *devbroker.Broker, opts *amqp.ConnOptions) *amqp.Conn {
	t.Helper()
	if opts == nil {
		opts = &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()}
	}
	c, err := amqp.Dial(soon(t), b.URL(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func session(t *testing.T, c *amqp.Conn) *amqp.Session {
	t.Helper()
	s, err := c.NewSession(soon(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sender(t *testing.T, b *devbroker.Broker, address string) *amqp.Sender {
	t.Helper()
	l, err := session(t, dial(t, b, nil)).NewSender(soon(t), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func receiver(t *testing.T, b *devbroker.Broker, address string, opts *amqp.ReceiverOptions) *amqp.Receiver {
	t.Helper()
	l, err := session(t, dial(t, b, nil)).NewReceiver(soon(t), address, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func text(id, body string) *amqp.Message {
	return &amqp.Message{Properties: &amqp.MessageProperties{MessageID: id}, Value: body}
}

// outcome sends and waits for the delivery state.
func outcome(t *testing.T, s *amqp.Sender, m *amqp.Message) amqp.DeliveryState {
	t.Helper()
	receipt, err := s.SendWithReceipt(soon(t), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	state, err := receipt.Wait(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func accepted(state amqp.DeliveryState) bool {
	_, ok := state.(*amqp.StateAccepted)
	return ok
}

func receive(t *testing.T, r *amqp.Receiver) *amqp.Message {
	t.Helper()
	m, err := r.Receive(soon(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AcceptMessage(soon(t), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMessageReachesEverySubscriptionThatMatches(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	exact := receiver(t, b, "topic://koji.build.tag", nil)
	star := receiver(t, b, "/topic/koji.*.tag", nil)
	hash := receiver(t, b, "/exchange/amq.topic/koji.#", nil)
	other := receiver(t, b, "koji.build.untag", nil)
	for i, spelling := range []string{
		"topic://koji.build.tag", "/topic/koji.build.tag", "/exchanges/amq.topic/koji.build%2Etag",
		"koji.build.tag",
	} {
		id := fmt.Sprint("m", i)
		if state := outcome(t, sender(t, b, spelling), text(id, "body")); !accepted(state) {
			t.Fatalf("%s: %T", spelling, state)
		}
		for _, r := range []*amqp.Receiver{exact, star, hash} {
			if m := receive(t, r); m.Properties.MessageID != id || m.Value != "body" {
				t.Fatalf("%s: received %v", spelling, m)
			}
		}
	}
	if m := other.Prefetched(); m != nil {
		t.Fatalf("build.untag received %v", m)
	}
}

func TestScriptedOutcomesReachTheSender(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	s := sender(t, b, "topic://koji.build.tag")
	for _, c := range []struct {
		verdict devbroker.Verdict
		want    string
	}{
		{devbroker.Verdict{}, "*encoding.StateAccepted"},
		{devbroker.Verdict{Outcome: devbroker.Reject}, "*encoding.StateRejected"},
		{devbroker.Verdict{Outcome: devbroker.Release}, "*encoding.StateReleased"},
		{devbroker.Verdict{Outcome: devbroker.Modify, DeliveryFailed: true}, "*encoding.StateModified"},
		{devbroker.Verdict{Delay: time.Millisecond}, "*encoding.StateAccepted"},
	} {
		b.Script("koji.build.tag", devbroker.Behaviour{Verdict: c.verdict})
		if state := outcome(t, s, text("x", "body")); fmt.Sprintf("%T", state) != c.want {
			t.Errorf("%+v: %T", c.verdict, state)
		}
	}
	cause := devbroker.Cause{Condition: "amqp:resource-limit-exceeded", Description: "full"}
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Outcome: devbroker.Reject, Cause: cause}})
	state, ok := outcome(t, s, text("x", "body")).(*amqp.StateRejected)
	if !ok || state.Error == nil || string(state.Error.Condition) != cause.Condition ||
		state.Error.Description != "full" {
		t.Errorf("rejected with %+v", state)
	}
}

func TestMessageInManyFramesArrivesWhole(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{MaxFrameSize: 512, IncomingWindow: 10})
	r := receiver(t, b, "big", nil)
	body := strings.Repeat("0123456789abcdef", 64<<10)
	outcome(t, sender(t, b, "big"), text("1", body))
	if m := receive(t, r); m.Value != body {
		t.Error("body differs")
	}
}

func TestHeldMessageIsSettledByTheTrigger(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{When: devbroker.Held}})
	s := sender(t, b, "koji.build.tag")
	receipt, err := s.SendWithReceipt(soon(t), text("1", "body"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReceived(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	b.SettleHeld()
	if state, err := receipt.Wait(soon(t)); err != nil || !accepted(state) {
		t.Fatal(state, err)
	}
}

func TestKilledBrokerKeepsItsQueuesAndItsPort(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Queues: map[string][]string{"all": {"koji.#"}}})
	s := sender(t, b, "koji.build.tag")
	outcome(t, s, text("1", "body"))
	addr := b.Addr()
	b.Stop()
	if _, err := s.SendWithReceipt(soon(t), text("2", "body"), nil); err == nil {
		t.Error("send to a killed broker works")
	}
	if c, err := amqp.Dial(soon(t), b.URL(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()}); err == nil {
		c.Close()
		t.Error("a killed broker lets clients in")
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	if b.Addr() != addr {
		t.Errorf("address %s became %s", addr, b.Addr())
	}
	if m := receive(t, receiver(t, b, "queue://all", nil)); m.Properties.MessageID != "1" {
		t.Errorf("received %v", m)
	}
}

func TestPlainChecksThePassword(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Users: map[string]string{"koji": "s3cret"}, Mechanisms: []string{"PLAIN"}})
	dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypePlain("koji", "s3cret")})
	if info := b.Connections(); len(info) != 1 || info[0].User != "koji" || info[0].Mechanism != "PLAIN" {
		t.Errorf("connections %+v", info)
	}
	_, err := amqp.Dial(soon(t), b.URL(), &amqp.ConnOptions{SASLType: amqp.SASLTypePlain("koji", "wrong")})
	if err == nil {
		t.Error("wrong password let in")
	}
}

func TestRefusedLinkGetsTheCause(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	cause := devbroker.Cause{Condition: "amqp:not-found", Description: "no such node"}
	b.Script("topic://#", devbroker.Behaviour{Refuse: devbroker.RefuseLink, RefuseCause: cause})
	s := session(t, dial(t, b, nil))
	_, err := s.NewSender(soon(t), "topic://koji.build.tag", nil)
	var refused *amqp.Error
	if !errors.As(err, &refused) || string(refused.Condition) != cause.Condition {
		t.Fatalf("refused with %v", err)
	}
	if _, err := s.NewSender(soon(t), "/topic/koji.build.tag", nil); err != nil {
		t.Fatalf("other spelling: %v", err)
	}
	b.Script("topic://#", devbroker.Behaviour{Refuse: devbroker.RefuseSession, RefuseCause: cause})
	_, err = s.NewSender(soon(t), "topic://koji.build.tag", nil)
	var ended *amqp.SessionError
	if !errors.As(err, &ended) || ended.RemoteErr == nil ||
		string(ended.RemoteErr.Condition) != cause.Condition {
		t.Fatalf("refused with %v", err)
	}
}
