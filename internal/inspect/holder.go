package inspect

import "fmt"

// Holder is who holds a lock by which one process of a fleet does a work for all.
type Holder struct {
	This bool `json:"this,omitempty"` // the relay that was asked
	// Name is the application_name of its session: of a relay "koji-relay HOST/PID".
	Name    string `json:"name,omitempty"`
	Address string `json:"address,omitempty"` // of its host, where we may see it
	PID     int    `json:"server_pid,omitempty"`
}

// String says who it is, for a person.
func (h Holder) String() string {
	switch {
	case h.This:
		return "this relay"
	case h == Holder{}:
		return "nobody at the moment"
	case h.Name == "":
		h.Name = fmt.Sprintf("session %d of the database", h.PID)
	}
	if h.Address != "" {
		return h.Name + " from " + h.Address
	}
	return h.Name
}
