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
	// HandedBack is set for a minute after events were neither sent nor stored, or until a commit is taken whole
	// while the queue can be used.
	HandedBack HandedBack `json:"handed_back,omitzero"`
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

// HandedBack counts events that the hub has to keep.
type HandedBack struct {
	Events int64     `json:"events"`
	Last   time.Time `json:"last"`
}

// onlyFor is for how long the socket is known not to have served the hub. One commit proves nothing: the
// relay may have been restarted just then.
func (h *HandOver) onlyFor() time.Duration { return h.OnlyOutbox.Until.Sub(h.OnlyOutbox.Since) }

// handOver keeps a HandOver. Its zero value is ready; it is safe for concurrent use.
type handOver struct {
	mu sync.Mutex // guards the fields below
	HandOver
	whole time.Time // when a commit of the socket was taken whole
}

// taken takes note of a commit at a time.
func (h *handOver) taken(via string, c *message.Commit, handedBack int, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if handedBack > 0 {
		h.HandedBack.Events += int64(handedBack)
		h.HandedBack.Last = at
	} else if via != inspect.ViaOutbox {
		h.whole = at
	}
	if via != inspect.ViaOutbox {
		h.Socket++
		h.LastSocket = at
	} else {
		h.Outbox++
		h.LastOutbox = at
	}
	only := &h.OnlyOutbox
	if via != inspect.ViaOutbox || c.Fallback == "" {
		*only = HandOver{}.OnlyOutbox
		return
	}
	h.Fallback++
	if only.Since.IsZero() {
		only.Since = at
	}
	only.Until, only.Why = at, inspect.Line(c.Fallback, 200)
}

// handedBackFor is how long events that were handed back are worth a word, unless a commit is taken before.
const handedBackFor = time.Minute

// now gives what holds at a time; stores says that what no broker takes is stored.
func (h *handOver) now(at time.Time, stores bool) HandOver {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := h.HandedBack.Last
	if at.Sub(last) > handedBackFor || stores && !h.whole.Before(last) {
		h.HandedBack = HandedBack{}
	}
	return h.HandOver
}
