package devbroker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
)

func TestConnectionDropsAfterTheScriptedMessage(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.DropConnection}, Skip: 2})
	c := dial(t, b, nil)
	s, err := session(t, c).NewSender(soon(t), "koji.build.tag", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if state := outcome(t, s, text("1", "body")); !accepted(state) {
			t.Fatal(state)
		}
	}
	receipt, err := s.SendWithReceipt(soon(t), text("3", "body"), nil)
	if err == nil {
		_, err = receipt.Wait(soon(t))
	}
	if err == nil {
		t.Fatal("third message was settled")
	}
	<-c.Done()
	if n := b.Stats().Messages; n != 3 {
		t.Errorf("%d messages", n)
	}
}

func TestFrozenBrokerAnswersNothingUntilThawed(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	s := sender(t, b, "koji.build.tag")
	b.Freeze()
	receipt, err := s.SendWithReceipt(soon(t), text("1", "body"), nil)
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := receipt.Wait(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("frozen broker: %v", err)
	}
	if _, err := amqp.Dial(brief, b.URL(), nil); err == nil {
		t.Error("frozen broker lets clients in")
	}
	b.Thaw()
	if state, err := receipt.Wait(soon(t)); err != nil || !accepted(state) {
		t.Errorf("thawed broker: %v %v", state, err)
	}
}

func TestNoCreditHoldsSendersUntilItIsGiven(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	s := sender(t, b, "koji.build.tag")
	outcome(t, s, text("1", "body"))
	b.Script("koji.#", devbroker.Behaviour{NoCredit: true})
	late := sender(t, b, "koji.build.untag")
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := late.SendWithReceipt(brief, text("2", "body"), nil); err == nil {
		t.Fatal("sent without credit")
	}
	b.Script("koji.#", devbroker.Behaviour{})
	if state := outcome(t, late, text("3", "body")); !accepted(state) {
		t.Error(state)
	}
}

func TestHeartbeatsKeepAnIdleClientConnected(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	c := dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous(), IdleTimeout: 100 * time.Millisecond})
	select {
	case <-c.Done():
		t.Fatalf("connection ended: %v", c.Err())
	case <-time.After(500 * time.Millisecond):
	}
	b.Freeze()
	select {
	case <-c.Done():
	case <-soon(t).Done():
		t.Fatal("frozen broker sends heartbeats")
	}
}
