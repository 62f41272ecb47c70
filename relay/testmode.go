package relay

import (
	"math/rand/v2"

	"koji-relay/internal/message"
)

// pretend is test mode: what would be sent is logged.
func (r *Relay) pretend(msgs []message.Message) []message.Outcome {
	all := make([]message.Outcome, len(msgs))
	for i := range msgs {
		m := &msgs[i]
		if rand.IntN(100) < r.opts.TestModeFail {
			r.log.Info("test mode: pretend to fail", "address", m.Address, "message_id", m.ID, "commit", m.Commit,
				"event", m.Event)
			all[i] = message.Outcome{State: message.NotSent, Next: message.Later, Reason: "test_mode_fail"}
			continue
		}
		r.log.Info("test mode: not sent", "address", m.Address, "message_id", m.ID, "commit", m.Commit, "event",
			m.Event)
		all[i] = message.Outcome{State: message.Accepted, Next: message.Done, Reason: "test_mode"}
	}
	return all
}
