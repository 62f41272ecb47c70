package admin

import (
	"sync"
	"time"
)

// Fate is what became of one message, for the list of the last ones. It has no body.
type Fate struct {
	Time      time.Time `json:"time"`
	Commit    string    `json:"commit,omitempty"`
	Event     int       `json:"event"`
	Callback  string    `json:"callback,omitempty"`
	Address   string    `json:"address,omitempty"`
	MessageID string    `json:"message_id,omitempty"`
	Fate      FateKind  `json:"fate"`
	Broker    string    `json:"broker,omitempty"`
	Reason    string    `json:"reason,omitempty"` // for a person; no secret, no body
}

// FateKind says what became of a message.
type FateKind string

// The kinds of fate.
const (
	Sent     FateKind = "sent"      // accepted by a broker at hand-over
	Queued   FateKind = "queued"    // stored, to be sent later
	Drained  FateKind = "drained"   // accepted by a broker, from the queue
	Dropped  FateKind = "dropped"   // given up as configured (unroutable = drop)
	Expired  FateKind = "expired"   // given up after max_age
	Dead     FateKind = "dead"      // set aside as a dead letter
	NotTaken FateKind = "not_taken" // handed back to the hub
)

// Recent remembers the last messages. It is safe for concurrent use.
type Recent struct {
	mu    sync.Mutex
	ring  []Fate // guarded by mu, as is next
	next  uint64 // number of fates ever added
	limit uint64
}

// NewRecent makes a list of the last limit messages.
func NewRecent(limit int) *Recent {
	return &Recent{ring: make([]Fate, limit), limit: uint64(limit)}
}

// Add takes note of a fate and forgets the oldest. It does not allocate.
func (r *Recent) Add(f Fate) {
	r.mu.Lock()
	r.ring[r.next%r.limit] = f
	r.next++
	r.mu.Unlock()
}

// Last gives what is remembered, newest first.
func (r *Recent) Last() []Fate {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(r.next, r.limit)
	last := make([]Fate, n)
	for i := range last {
		last[i] = r.ring[(r.next-1-uint64(i))%r.limit]
	}
	return last
}
