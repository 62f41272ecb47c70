package message

import "testing"

func TestReasonDoesNotRepeatTheState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state     State
		reason, w string
	}{
		{Released, "released: no queue is bound to the topic", "no queue is bound to the topic"},
		{Released, "released", ""},
		{Rejected, "rejected: amqp:resource-limit-exceeded", "amqp:resource-limit-exceeded"},
		{Rejected, "rejected without a reason", "without a reason"},
		{NotSent, "no broker is up", "no broker is up"},
		{Unknown, "", ""},
	} {
		if got := (Outcome{State: c.state, Reason: c.reason}).Why(); got != c.w {
			t.Errorf("%v for %q is said as %q, want %q", c.state, c.reason, got, c.w)
		}
	}
}

func TestEveryStateHasItsFailure(t *testing.T) {
	t.Parallel()
	for state, want := range map[State]Failure{
		NotSent: FailedConnect, Unknown: FailedTimeout, Rejected: FailedRejected, Released: FailedReleased,
		Modified: FailedModified, Accepted: FailedOther,
	} {
		if got := (Outcome{State: state}).Failed(); got != want {
			t.Errorf("%v is counted as %s, want %s", state, got, want)
		}
		if got := (Outcome{State: state, Failure: FailedLost}).Failed(); got != FailedLost {
			t.Errorf("%v that names its failure is counted as %s", state, got)
		}
	}
}
