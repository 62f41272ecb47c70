// Package retry is how loops of this program try again: they back off, and log each cause of a trouble once.
//
// It promises that delays are never shorter than asked for. It never tries anything itself.
package retry

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Trouble is the memory of one loop that tries again: how often it failed in a row, since when, and by which
// causes. The zero value is a loop that works. It is not safe for concurrent use.
type Trouble struct {
	Limit time.Duration // the longest Delay; 0 = 5 s

	failures int
	since    time.Time // of the first of these failures
	causes   []string  // that were news
}

// maxCauses is how many causes of one trouble are news. A frozen server alternates between two or three; more
// are texts that are new each time. The end names the number of failures.
const maxCauses = 8

// Failed counts a failure. It reports whether the cause is news, and so belongs in the log: a cause is news
// once in a trouble, also when another one comes in between.
func (t *Trouble) Failed(err error) bool { return t.FailedBy(Cause(err)) }

// FailedBy is Failed for a cause that is a text already.
func (t *Trouble) FailedBy(cause string) bool {
	if t.failures == 0 {
		t.since = time.Now()
	}
	t.failures++
	if len(t.causes) >= maxCauses || slices.Contains(t.causes, cause) {
		return false
	}
	t.causes = append(t.causes, cause)
	return true
}

// Over notes success. It gives the failures before it and the time since the first of them: 0 failures are no
// news, more belong in the log.
func (t *Trouble) Over() (failures int, after time.Duration) {
	if t.failures > 0 {
		failures, after = t.failures, time.Since(t.since).Round(time.Millisecond)
	}
	t.failures, t.causes = 0, nil
	return failures, after
}

// Recovered is Over, and logs text with the failures and the time if there were any.
func (t *Trouble) Recovered(log *slog.Logger, text string, args ...any) {
	if failures, after := t.Over(); failures > 0 {
		log.Info(text, append(args, "failures", failures, "after", after)...)
	}
}

// Forget makes the next cause news, whatever it is.
func (t *Trouble) Forget() { t.causes = nil }

// Delay is the time until the next try: 200 ms, doubling with each failure to Limit, and jitter.
func (t *Trouble) Delay() time.Duration {
	return Delay(200*time.Millisecond, t.failures, cmp.Or(t.Limit, 5*time.Second))
}

// ownAddress is our side of a connection in the error of a socket.
var ownAddress = regexp.MustCompile(`\S+:\d+->`)

// Cause is the text of err without our side of a connection: its port is another one each time, which is no
// news.
func Cause(err error) string { return ownAddress.ReplaceAllString(err.Error(), "->") }

// Delay is first for n = 1 and twice as much for each further n, up to limit, and up to a quarter more. It is
// never less: the sum of delays may be a promise.
func Delay(first time.Duration, n int, limit time.Duration) time.Duration {
	// The library's jitter goes both ways: from 1.001 to 1.249 times the delay.
	b := backoff.ExponentialBackOff{InitialInterval: first / 8 * 9, MaxInterval: limit / 8 * 9, Multiplier: 2,
		RandomizationFactor: 0.11}
	d := b.NextBackOff()
	for range min(n, 64) - 1 { // the limit has long been reached
		d = b.NextBackOff()
	}
	return d
}

// Jitter adds up to a quarter.
func Jitter(d time.Duration) time.Duration { return Delay(d, 1, d) }

// Pause waits for d, or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
