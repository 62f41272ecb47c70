package admin

import (
	"sync"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// HandOver says by which way the hub's commits have come since the start.
type HandOver struct {
	Path       string    `json:"path,omitempty"` // of the socket
	Socket     int64     `json:"socket"`         // commits
	LastSocket time.Time `json:"last_socket,omitzero"`
	Outbox     int64     `json:"outbox"` // commits; a large one counts for each of its pieces
	LastOutbox time.Time `json:"last_outbox,omitzero"`
	// Fallback counts commits of Outbox that the hub's plugin meant for the socket.
	Fallback int64 `json:"fallback"`
	// OnlyOutbox is set while all commits are such: the first one was taken at Since, the last one at Until, and
	// none came by another way after Since. Why is what the plugin said of the socket the last time.
	OnlyOutbox struct {
		Since time.Time `json:"since,omitzero"`
		Until time.Time `json:"until,omitzero"`
		Why   string    `json:"why,omitempty"`
	} `json:"only_outbox,omitzero"`
}

// onlyFor is for how long the socket is known not to have served the hub. One commit proves nothing: the relay
// may have been restarted just then.
func (h *HandOver) onlyFor() time.Duration { return h.OnlyOutbox.Until.Sub(h.OnlyOutbox.Since) }

// handOver keeps a HandOver. Its zero value is ready; it is safe for concurrent use.
type handOver struct {
	mu sync.Mutex
	HandOver
}

// taken takes note of a commit at a time.
func (h *handOver) taken(via string, c *message.Commit, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	only := &h.OnlyOutbox
	switch {
	case via != inspect.ViaOutbox:
		h.Socket++
		h.LastSocket = at
	case c.Fallback == "":
		h.Outbox++
		h.LastOutbox = at
	default:
		h.Outbox++
		h.LastOutbox = at
		h.Fallback++
		if only.Since.IsZero() {
			only.Since = at
		}
		only.Until, only.Why = at, inspect.Line(c.Fallback, 200)
		return
	}
	h.OnlyOutbox = HandOver{}.OnlyOutbox
}

func (h *handOver) now() HandOver {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.HandOver
}
