package queue

import (
	"fmt"
	"strings"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/retry"
)

// Limits are the bounds of a store that may change while it is open.
type Limits struct {
	// MaxBytes bounds the queue, in message.Message.Size; 0 means no bound. It is measured now and then and
	// counted in between, so that several relays together may exceed it by what they put in one interval.
	MaxBytes int64
	// MaxAttempts is the number of failed attempts that look permanent after which a message is a dead letter; 0
	// means never.
	MaxAttempts int
}

// Decide gives what becomes of a message after an outcome, given its counts from before; false where the row
// stays as it is (Wait).
func Decide(e Entry, o message.Outcome, maxAttempts int) (Settlement, bool) {
	if o.Next == message.Done {
		return Settlement{ID: e.Message.ID, Action: Forget}, true
	}
	s := Settlement{ID: e.Message.ID, Attempts: e.Attempts, Tries: e.Tries, Reason: reason(o)}
	switch o.Next {
	case message.Later:
		s.Action = SetAside
		s.Tries++
		s.Delay = laterDelay(s.Tries)
	case message.Count:
		s.Attempts++
		s.Tries++
		s.Action = SetAside
		s.Delay = countDelay(s.Attempts)
		if maxAttempts > 0 && s.Attempts >= maxAttempts {
			s.Action = Bury
		}
	case message.Dead:
		s.Action = Bury
		s.Attempts++
	default:
		return Settlement{}, false
	}
	return s, true
}

// reason is the text kept as last_error: the state, the broker and its words.
func reason(o message.Outcome) string {
	text := o.State.String()
	if o.Broker != "" {
		text += " by " + o.Broker
	}
	if why := o.Why(); why != "" {
		text += ": " + why
	}
	return text
}

// ForAddress reports whether a message was set aside for the sake of its address, given its attempts and what
// reason wrote. ForAddressSQL is the same for PostgreSQL.
func ForAddress(attempts int, reason string) bool {
	return attempts == 0 ||
		strings.HasPrefix(reason, message.NotSent.String()) && strings.Contains(reason, ": "+message.AddressRefused)
}

// ForAddressSQL is ForAddress for rows of koji_relay.delivery.
var ForAddressSQL = fmt.Sprintf("(attempts = 0 OR last_error LIKE '%s%%: %s%%')", message.NotSent,
	message.AddressRefused)

// laterDelay is the time until a message is tried again that was turned away for a passing reason: 5 s,
// doubling to 10 min, so that a binding or room made by the administrator is noticed soon.
func laterDelay(tries int) time.Duration {
	return retry.Delay(5*time.Second, tries, 10*time.Minute)
}

// countDelay is the time until a message is tried again that looks permanently refused: 30 s, doubling to 2
// h. The seven delays between the default eight attempts add up to 63.5 min or more, so that a broker
// misconfigured for an hour costs no message.
func countDelay(attempts int) time.Duration {
	return retry.Delay(30*time.Second, attempts, 2*time.Hour)
}

// PutText names a put in errors.
func PutText(messages, dead int) string {
	switch {
	case dead == 0:
		return "put " + inspect.Count(messages, "message")
	case messages == 0:
		return "put " + inspect.Count(dead, "dead letter")
	}
	return "put " + inspect.Count(messages, "message") + " and " + inspect.Count(dead, "dead letter")
}
