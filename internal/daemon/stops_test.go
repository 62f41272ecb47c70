package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The history may be on a disk that does not answer. The relay ends all the same, and its end is orderly.
func TestALenientPartThatDoesNotStopIsAWarning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log := slog.New(slog.NewTextHandler(&text, nil))
		hangs := make(chan struct{})
		defer close(hangs)
		parts := &stops{log: log}
		stopped := false
		parts.add(part{"queue", time.Second, func(context.Context) error { stopped = true; return nil }})
		parts.add(part{"history store", 5 * time.Second, func(ctx context.Context) error {
			return inTime(ctx, func() error { <-hangs; return nil })
		}}.lenient(log))
		parts.add(startPart("history", 5*time.Second, nil, func(context.Context) error {
			<-hangs
			return nil
		}).lenient(log))
		began := time.Now()
		if err := parts.runAll(t.Context()); err != nil {
			t.Errorf("the stop failed: %v", err)
		}
		if took := time.Since(began); took != 10*time.Second || !stopped {
			t.Errorf("the stop took %v; the other part stopped: %v", took, stopped)
		}
		if n := strings.Count(text.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings:\n%s", n, text.String())
		}
	})
}
