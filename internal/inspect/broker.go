package inspect

import "time"

// BrokerState says whether a broker can be given messages.
type BrokerState string

// Only an Up broker is given messages. A stalled one is connected, but does not settle: nothing is tried with
// it on the hub's time.
const (
	Up         BrokerState = "up"
	Connecting BrokerState = "connecting"
	Stalled    BrokerState = "stalled"
	Down       BrokerState = "down"
)

// Broker is one broker of [broker] urls. It holds no secret.
type Broker struct {
	Name   string      `json:"name"` // host:port
	State  BrokerState `json:"state"`
	Since  time.Time   `json:"since,omitzero"`   // of State; down and connecting count as one
	Reason string      `json:"reason,omitempty"` // why it is not up
	Active bool        `json:"active"`           // new messages go here
	TLS    bool        `json:"tls"`

	// Untried says that nothing was tried on its connection yet. Of one that is up it means that no message has
	// been answered; of a stalled one that it was another connection that went silent. The next message tells.
	Untried bool `json:"untried,omitempty"`

	// The following are known while it is connected.
	Product        string `json:"product,omitempty"` // as it announced itself, with Version
	Version        string `json:"version,omitempty"`
	Dialect        string `json:"dialect,omitempty"`
	Login          string `json:"sasl,omitempty"`             // mechanism
	Target         string `json:"target,omitempty"`           // an example: where build.tag goes
	MaxMessageSize uint64 `json:"max_message_size,omitempty"` // bytes; 0 = no limit
	Links          int    `json:"links,omitempty"`
	InFlight       int64  `json:"in_flight,omitempty"` // messages that it has and has not answered
	// CertExpires is when the broker's certificate ends, and ClientCertExpires when ours does; zero without TLS.
	CertExpires       time.Time `json:"certificate_expires,omitzero"`
	ClientCertExpires time.Time `json:"client_certificate_expires,omitzero"`
}
