package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A reader that could not register is held nothing for: it tries again within seconds, and each minute
// thereafter.
func TestAnnouncesSoonAgainAfterAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		d := &Daemon{log: slog.New(slog.DiscardHandler)}
		var tries atomic.Int64
		ended := make(chan error)
		go func() {
			ended <- d.keepAnnounced(ctx, func() ([]string, error) {
				if tries.Add(1) <= 4 {
					return nil, errors.New("no answer in time")
				}
				return nil, nil
			})
		}()
		for _, step := range []struct {
			wait time.Duration
			want int64
		}{{20 * time.Second, 5}, {20 * time.Second, 5}, {announceEvery, 6}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if got := tries.Load(); got != step.want {
				t.Errorf("%d tries, want %d", got, step.want)
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
