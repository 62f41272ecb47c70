package message

import "slices"

// Failure says, from a bounded set, why a message was not sent or a broker not reached: the words of
// docs/metrics.md.
type Failure string

// The failures. Empty is none.
const (
	FailedConnect     Failure = "connect"     // no connection: name, route, refusal, silence
	FailedTLS         Failure = "tls"         // certificates, versions
	FailedSASL        Failure = "sasl"        // user, password, mechanism
	FailedLink        Failure = "link"        // the broker refused the address
	FailedLost        Failure = "lost"        // the connection broke before the answer
	FailedTimeout     Failure = "timeout"     // no answer in time
	FailedAbandoned   Failure = "abandoned"   // a connection that could not be ended
	FailedRejected    Failure = "rejected"    // the broker's outcome
	FailedReleased    Failure = "released"    // the broker's outcome
	FailedModified    Failure = "modified"    // the broker's outcome
	FailedTooLarge    Failure = "too_large"   // above the link's max-message-size
	FailedUnencodable Failure = "unencodable" // a value that AMQP cannot carry, or no message at all
	FailedExpired     Failure = "expired"     // older than max_age; of dead letters only
	FailedOther       Failure = "other"
)

// Failures are all of them.
func Failures() []Failure {
	return []Failure{
		FailedConnect, FailedTLS, FailedSASL, FailedLink, FailedLost, FailedTimeout, FailedAbandoned,
		FailedRejected, FailedReleased, FailedModified, FailedTooLarge, FailedUnencodable, FailedExpired,
		FailedOther,
	}
}

// Bounded is f, or FailedOther for a word that is none of them.
func (f Failure) Bounded() Failure {
	if slices.Contains(Failures(), f) {
		return f
	}
	return FailedOther
}

// Failed gives the failure that the outcome names, or else the one that its state tells by itself.
func (o Outcome) Failed() Failure {
	if o.Failure != "" {
		return o.Failure
	}
	switch o.State {
	case NotSent:
		return FailedConnect
	case Unknown:
		return FailedTimeout
	case Rejected:
		return FailedRejected
	case Released:
		return FailedReleased
	case Modified:
		return FailedModified
	}
	return FailedOther
}
