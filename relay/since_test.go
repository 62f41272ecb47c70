package relay

import (
	"testing"

	"koji-relay/internal/devbroker"
	"koji-relay/internal/message"
)

// An operator reads from it how long the broker has been away, however often it was tried since.
func TestTimeOfAnOutageOutlivesItsAttempts(t *testing.T) {
	t.Parallel()
	b := startBroker(t, devbroker.Options{})
	b.Close()
	failed := make(chan message.Failure, 1000)
	w := startRelay(t, func(o *Options) {
		o.Observer.Failed = func(_ string, failure message.Failure) { failed <- failure }
	}, b)
	<-failed
	began := w.Status()[0].Since
	for range 3 {
		<-failed
		if s := w.Status()[0]; began.IsZero() || !s.Since.Equal(began) {
			t.Errorf("%s since %s, but it has been away since %s", s.State, s.Since, began)
		}
	}
}
