package devbroker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-amqp"

	"koji-relay/internal/devbroker"
)

// notYet is long enough for an answer that would be wrong to arrive.
func notYet(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// send sends without waiting for the outcome.
func send(t *testing.T, s *amqp.Sender, body string) *amqp.SendReceipt {
	t.Helper()
	receipt, err := s.SendWithReceipt(soon(t), text(body, body), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &receipt
}

// struck sends a message that does not get an answer, and gives the error. The driver may notice before it
// has returned from sending.
func struck(t *testing.T, s *amqp.Sender, body string) error {
	t.Helper()
	receipt, err := s.SendWithReceipt(soon(t), text(body, body), nil)
	if err == nil {
		_, err = receipt.Wait(soon(t))
	}
	return err
}

func TestFaultsStrikeAtTheScriptedMessage(t *testing.T) {
	t.Parallel()
	cause := devbroker.Cause{Condition: "amqp:internal-error", Description: "as scripted"}
	remote := func(e *amqp.Error) bool { return e != nil && string(e.Condition) == cause.Condition }
	for name, c := range map[string]struct {
		fault devbroker.Fault
		is    func(error) bool
	}{
		"drop": {devbroker.DropConnection, func(err error) bool {
			var e *amqp.ConnError
			return errors.As(err, &e) && e.RemoteErr == nil
		}},
		"close": {devbroker.CloseConnection, func(err error) bool {
			var e *amqp.ConnError
			return errors.As(err, &e) && remote(e.RemoteErr)
		}},
		"end": {devbroker.EndSession, func(err error) bool {
			var e *amqp.SessionError
			return errors.As(err, &e) && remote(e.RemoteErr)
		}},
		"detach": {devbroker.DetachLink, func(err error) bool {
			var e *amqp.LinkError
			return errors.As(err, &e) && remote(e.RemoteErr)
		}},
		"half-close": {devbroker.HalfClose, func(err error) bool {
			var e *amqp.ConnError
			return errors.As(err, &e) && e.RemoteErr == nil
		}},
		"kill": {devbroker.KillBroker, func(err error) bool {
			var e *amqp.ConnError
			return errors.As(err, &e)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, devbroker.Options{})
			b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: c.fault, Cause: cause}, Skip: 2})
			s := sender(t, b, "koji.build.tag")
			for range 2 {
				if state := outcome(t, s, text("1", "body")); !accepted(state) {
					t.Fatal(state)
				}
			}
			err := struck(t, s, "3")
			if !c.is(err) {
				t.Fatalf("third message: %T %v", err, err)
			}
			if got := b.Received(); len(got) != 3 || got[2].ID != "3" || got[2].Verdict.Fault != c.fault {
				t.Errorf("received %+v", got)
			}
		})
	}
}

func TestPoisonMessageStrikesAloneAndMayBeTaken(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{Queues: map[string][]string{"all": {"#"}}})
	b.Script("#", devbroker.Behaviour{
		Verdict: devbroker.Verdict{Fault: devbroker.DropConnection, Taken: true}, Containing: "poison",
	})
	s := sender(t, b, "koji.build.tag")
	if state := outcome(t, s, text("1", "good")); !accepted(state) {
		t.Fatal(state)
	}
	if err := struck(t, s, "some poison"); err == nil {
		t.Fatal("poison was settled")
	}
	if n := b.Depth("all"); n != 2 {
		t.Errorf("%d messages in the queue", n)
	}
}

func TestJudgeSeesTheMessage(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("#", devbroker.Behaviour{Judge: func(r devbroker.Received) devbroker.Verdict {
		if r.ID == "2" && r.Key == "koji.build.tag" && r.Target == "topic://koji.build.tag" {
			return devbroker.Verdict{Outcome: devbroker.Reject}
		}
		return devbroker.Verdict{}
	}})
	s := sender(t, b, "topic://koji.build.tag")
	if a, r := outcome(t, s, text("1", "x")), outcome(t, s, text("2", "x")); !accepted(a) || accepted(r) {
		t.Error(a, r)
	}
}

func TestConnectionDropsInTheMiddleOfAMessage(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{MaxFrameSize: 1024})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.DropConnection}, AtFrame: 3})
	s := sender(t, b, "koji.build.tag")
	if state := outcome(t, s, text("1", "short")); !accepted(state) {
		t.Fatal(state)
	}
	receipt, err := s.SendWithReceipt(soon(t), text("2", strings.Repeat("x", 10000)), nil)
	if err == nil {
		_, err = receipt.Wait(soon(t))
	}
	if err == nil || b.Stats().Messages != 1 {
		t.Errorf("%v, %d messages", err, b.Stats().Messages)
	}
}

func TestFrozenBrokerAnswersNothingUntilThawed(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	s := sender(t, b, "koji.build.tag")
	b.Freeze()
	receipt := send(t, s, "1")
	if _, err := receipt.Wait(notYet(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("frozen broker: %v", err)
	}
	if _, err := amqp.Dial(notYet(t), b.URL(), nil); err == nil {
		t.Error("frozen broker lets clients in")
	}
	if n := b.Stats().Messages; n != 0 {
		t.Errorf("frozen broker read %d messages", n)
	}
	b.Thaw()
	if state, err := receipt.Wait(soon(t)); err != nil || !accepted(state) {
		t.Errorf("thawed broker: %v %v", state, err)
	}
}

func TestFrozenConnectionLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("koji.build.tag", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.FreezeConnection},
		Times: 1})
	s := sender(t, b, "koji.build.tag")
	frozen := send(t, s, "1")
	if err := b.WaitReceived(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	behind := send(t, s, "2")
	if state := outcome(t, sender(t, b, "koji.build.tag"), text("3", "x")); !accepted(state) {
		t.Error(state)
	}
	if _, err := behind.Wait(notYet(t)); err == nil {
		t.Error("message on the frozen connection was settled")
	}
	b.Thaw()
	if state, err := behind.Wait(soon(t)); err != nil || !accepted(state) {
		t.Error(state, err)
	}
	if _, err := frozen.Wait(notYet(t)); err == nil {
		t.Error("the message that froze the connection was settled")
	}
}

func TestConnectionThatReadsNoMoreStillBeats(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	c := dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous(), IdleTimeout: 600 * time.Millisecond})
	s, err := session(t, c).NewSender(soon(t), "koji.build.tag", nil)
	if err != nil {
		t.Fatal(err)
	}
	outcome(t, s, text("1", "x"))
	b.Inflict("koji.#", devbroker.StopReading, devbroker.Cause{})
	// The fault is posted: a message sent before it arrives may still be read.
	var unread *amqp.SendReceipt
	for blocked := false; !blocked; {
		unread = send(t, s, "2")
		_, err := unread.Wait(notYet(t))
		blocked = errors.Is(err, context.DeadlineExceeded)
	}
	select {
	case <-c.Done():
		t.Fatalf("connection ended: %v", c.Err())
	case <-time.After(2 * time.Second):
	}
	b.Thaw()
	if state, err := unread.Wait(soon(t)); err != nil || !accepted(state) {
		t.Error(state, err)
	}
}

func TestNoCreditHoldsSendersUntilItIsGiven(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("koji.#", devbroker.Behaviour{NoCredit: true})
	s := sender(t, b, "koji.build.tag")
	if _, err := s.SendWithReceipt(notYet(t), text("2", "body"), nil); err == nil {
		t.Fatal("sent without credit")
	}
	b.Script("koji.#", devbroker.Behaviour{})
	if state := outcome(t, s, text("3", "body")); !accepted(state) {
		t.Error(state)
	}
}

func TestCreditIsWithdrawnMidway(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	b.Script("#", devbroker.Behaviour{Verdict: devbroker.Verdict{Fault: devbroker.WithdrawCredit}, Skip: 1})
	s := sender(t, b, "koji.build.tag")
	outcome(t, s, text("1", "x"))
	if state := outcome(t, s, text("2", "x")); !accepted(state) {
		t.Errorf("the last message: %v", state)
	}
	if _, err := s.SendWithReceipt(notYet(t), text("3", "x"), nil); err == nil {
		t.Error("sent without credit")
	}
	b.Script("koji.repo.init", devbroker.Behaviour{}) // another address: no change here
	if _, err := s.SendWithReceipt(notYet(t), text("4", "x"), nil); err == nil {
		t.Error("sent without credit")
	}
	b.Script("#", devbroker.Behaviour{})
	if state := outcome(t, s, text("5", "x")); !accepted(state) {
		t.Error(state)
	}
}

func TestHeartbeatsKeepAnIdleClientConnected(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	c := dial(t, b, &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous(), IdleTimeout: 600 * time.Millisecond})
	select {
	case <-c.Done():
		t.Fatalf("connection ended: %v", c.Err())
	case <-time.After(2 * time.Second):
	}
	b.Freeze()
	select {
	case <-c.Done():
	case <-soon(t).Done():
		t.Fatal("frozen broker sends heartbeats")
	}
}

func TestSilentClientIsCutOff(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{IdleTimeout: 50 * time.Millisecond, AllowBare: true})
	nc, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	// Header and an open with container-id "c", then nothing.
	if _, err := nc.Write([]byte(
		"AMQP\x00\x01\x00\x00\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c")); err != nil {
		t.Fatal(err)
	}
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, nc); err != nil {
		t.Errorf("read to the end: %v", err)
	}
	if s := b.Stats(); s.Opened != 1 {
		t.Errorf("%+v", s)
	}
}

func TestFaultsCanBeInflictedAtAnyTime(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	cause := devbroker.Cause{Condition: "amqp:resource-deleted", Description: "x"}
	hit, spared := sender(t, b, "koji.build.tag"), sender(t, b, "koji.build.untag")

	b.Inflict("koji.build.tag", devbroker.DetachLink, cause)
	for gone := false; !gone; {
		receipt, err := hit.SendWithReceipt(soon(t), text("1", "x"), nil)
		if err == nil {
			_, err = receipt.Wait(soon(t))
		}
		var e *amqp.LinkError
		if gone = err != nil; gone && (!errors.As(err, &e) || string(e.RemoteErr.Condition) != cause.Condition) {
			t.Fatalf("%T %v", err, err)
		}
	}
	if state := outcome(t, spared, text("2", "x")); !accepted(state) {
		t.Error(state)
	}

	c := dial(t, b, nil)
	b.Inflict("", devbroker.CloseConnection, cause)
	<-c.Done()
	var e *amqp.ConnError
	if err := c.Err(); !errors.As(err, &e) || e.RemoteErr == nil ||
		string(e.RemoteErr.Condition) != cause.Condition {
		t.Errorf("%T %v", err, err)
	}

	b.Freeze() // a drop reaches frozen connections, too
	nc, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := b.Wait(soon(t), func(s devbroker.Stats) bool { return s.Connections == 4 }); err != nil {
		t.Fatal(err)
	}
	b.Inflict("", devbroker.DropConnection, devbroker.Cause{})
	if err := b.Wait(soon(t), func(s devbroker.Stats) bool { return s.Live == 0 }); err != nil {
		t.Error(err)
	}
}

func TestNewConnectionsStallWhereScripted(t *testing.T) {
	t.Parallel()
	for name, stage := range map[string]devbroker.Stage{
		"accept": devbroker.StageAccept, "sasl": devbroker.StageSASL, "open": devbroker.StageOpen,
		"begin": devbroker.StageBegin, "attach": devbroker.StageAttach,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, devbroker.Options{})
			b.ScriptConnections(devbroker.ConnBehaviour{StallAt: stage})
			got := devbroker.NoStage
			c, err := amqp.Dial(notYet(t), b.URL(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()})
			switch {
			case err != nil && b.Stats().Opened == 1:
				got = devbroker.StageOpen
			case err != nil && stage == devbroker.StageAccept:
				got = devbroker.StageAccept // looks like the next from here
			case err != nil:
				got = devbroker.StageSASL
			default:
				t.Cleanup(func() { c.Close() })
				s, err := c.NewSession(notYet(t), nil)
				if err != nil {
					got = devbroker.StageBegin
				} else if _, err = s.NewSender(notYet(t), "a", nil); err != nil {
					got = devbroker.StageAttach
				}
			}
			if got != stage && !(stage == devbroker.StageOpen && got == devbroker.StageSASL) {
				t.Errorf("stalled at %d", got)
			}
		})
	}
}

func TestConnectionIsRefusedAtEveryDoor(t *testing.T) {
	t.Parallel()
	b := start(t, devbroker.Options{})
	try := func() error {
		c, err := amqp.Dial(soon(t), b.URL(), &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.NewSession(soon(t), nil)
		return err
	}
	kept := sender(t, b, "a")
	b.Refuse()
	var refused *net.OpError
	if err := try(); !errors.As(err, &refused) {
		t.Errorf("closed listener: %T %v", err, err)
	}
	if state := outcome(t, kept, text("1", "x")); !accepted(state) {
		t.Error(state)
	}
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	b.ScriptConnections(devbroker.ConnBehaviour{RefuseSASL: true})
	if err := try(); err == nil || !strings.Contains(err.Error(), "SASL") {
		t.Errorf("refused SASL: %v", err)
	}
	b.ScriptConnections(devbroker.ConnBehaviour{RefuseOpen: devbroker.Cause{Condition: "amqp:not-allowed",
		Description: "vhost"}})
	var closed *amqp.ConnError
	if err := try(); !errors.As(err, &closed) || closed.RemoteErr == nil ||
		closed.RemoteErr.Condition != "amqp:not-allowed" {
		t.Errorf("refused open: %T %v", err, err)
	}
	b.ScriptConnections(devbroker.ConnBehaviour{})
	if err := try(); err != nil {
		t.Error(err)
	}
}
