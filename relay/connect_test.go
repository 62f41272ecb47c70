package relay

import (
	"context"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

func TestSilenceAtConnectCostsTheHubNothing(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	b.ScriptConnections(devbroker.ConnBehaviour{StallAt: devbroker.StageSASL})
	const handoff = time.Second
	w := startRelay(t, func(o *Options) { o.HandoffTimeout = handoff }, b)
	w.Send(t.Context(), sample(1)) // may wait for the first connection, once
	began := time.Now()
	for range 100 {
		wantAll(t, w.Send(t.Context(), sample(1)), message.NotSent, message.Wait)
	}
	if took := time.Since(began); took > 20*handoff {
		t.Errorf("100 calls took %v", took)
	}
}

func TestSilentBrokerAtStartCostsTheHubAMoment(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	b.ScriptConnections(devbroker.ConnBehaviour{StallAt: devbroker.StageSASL})
	o := options(b)
	o.ConnectTimeout, o.HandoffTimeout = time.Minute, time.Minute
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	began := time.Now()
	wantAll(t, r.Send(t.Context(), sample(1)), message.NotSent, message.Wait)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the first commit waited %v", took)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConnectGivesUpAtEveryStage(t *testing.T) {
	t.Parallel()
	for stage, name := range map[devbroker.Stage]string{
		devbroker.StageAccept: "accept", devbroker.StageSASL: "sasl", devbroker.StageOpen: "open",
		devbroker.StageBegin: "begin", devbroker.StageAttach: "attach",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t, devbroker.Options{})
			b.ScriptConnections(devbroker.ConnBehaviour{StallAt: stage})
			w := startRelay(t, func(o *Options) { o.ConnectTimeout = 100 * time.Millisecond }, b)
			poll(t, "the first attempt has failed", func() bool {
				return strings.Contains(w.Status()[0].Reason, "connect_timeout")
			})
			b.ScriptConnections(devbroker.ConnBehaviour{})
			w.await(0, Up)
		})
	}
}

func TestIdleTimeoutEndsAFrozenConnection(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, devbroker.Options{}), startBroker(t, devbroker.Options{})
	w := startRelay(t, func(o *Options) { o.IdleTimeout = time.Second }, a, b)
	w.await(0, Up)
	w.await(1, Up)
	a.Freeze()
	poll(t, "the connection is given up", func() bool {
		return strings.Contains(w.Status()[0].Reason, "idle_timeout")
	})
	w.await(1, Up)
	wantAll(t, w.Send(t.Context(), sample(1)), message.Accepted, message.Done)
	a.Thaw()
	w.await(0, Up)
}

func TestEndOfContextIsHeeded(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	w := startRelay(t, nil, b)
	w.await(0, Up)
	b.Script("#", held)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan []message.Outcome, 1)
	go func() { result <- w.SendPatiently(ctx, sample(3)) }()
	waitReceived(t, b, 3)
	cancel()
	wantAll(t, <-result, message.Unknown, message.Wait)
	b.SettleHeld()
}
