package inspect

import "time"

// Arrival is a message as a subscriber received it.
type Arrival struct {
	Received  time.Time      `json:"received"`
	Broker    string         `json:"broker"`  // host:port
	Address   string         `json:"address"` // topic without prefix where the broker tells it, else the pattern
	MessageID string         `json:"message_id"`
	Created   *time.Time     `json:"created"`
	Durable   bool           `json:"durable"`
	Priority  uint8          `json:"priority"`
	TTL       float64        `json:"ttl"` // seconds; 0 = none
	Props     map[string]any `json:"props"`
	Section   string         `json:"section"` // of the body: value, data, sequence or none
	Body      string         `json:"body"`
}

// TestSent is what became of a test message.
type TestSent struct {
	MessageID string `json:"message_id"`
	Address   string `json:"address"`
	// Outcome is the broker's word, or ours: accepted, rejected, released, modified, not sent, unknown.
	Outcome         string  `json:"outcome"`
	Broker          string  `json:"broker,omitempty"` // which answered
	Reason          string  `json:"reason,omitempty"` // why it was not accepted
	AcceptedSeconds float64 `json:"accepted_seconds"`
	Received        bool    `json:"received"`
	ReceivedSeconds float64 `json:"received_seconds,omitempty"` // from sending to receiving
	NotSubscribed   string  `json:"not_subscribed,omitempty"`   // why nothing could be received
}

// OK reports whether the message went as far as it could be followed.
func (t *TestSent) OK() bool { return t.Outcome == "accepted" && (t.Received || t.NotSubscribed != "") }
