package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// storeHealth knows whether a put would be kept, by what happened last: a put, or a probe that wrote. A store
// may well be read that cannot be written: a standby, a read-only database, a full disk.
type storeHealth struct {
	store interface {
		putter
		Probe(ctx context.Context) error
	}
	changed func() // called when it began or ceased to work, not under the mutex; may be nil

	mu      sync.Mutex // guards the fields below
	err     error      // of the last write; nil when it was kept
	at      time.Time  // of the last write
	refused int64      // bytes of the last put that found the queue full; 0 since a put was kept
}

const (
	// probeEvery is how often the store is written to while no put shows that it can be.
	probeEvery = 3 * time.Second
	// probeTimeout is how long such a write may take. With probeEvery it is how late an outage may be noticed.
	probeTimeout = 1500 * time.Millisecond
)

// Put implements putter, and notes how it ended.
func (h *storeHealth) Put(ctx context.Context, unsent []message.Unsent,
	bad []message.Undeliverable) (queue.Stored, error) {
	stored, err := h.store.Put(ctx, unsent, bad)
	switch {
	case errors.Is(err, queue.ErrFull):
		var size int64
		for i := range unsent {
			size += int64(unsent[i].Message.Size())
		}
		h.mu.Lock()
		h.refused = size
		h.mu.Unlock()
	case errors.Is(err, context.Canceled): // the caller's doing
	default:
		h.note(err)
		if err == nil {
			h.mu.Lock()
			h.refused = 0
			h.mu.Unlock()
		}
	}
	return stored, err
}

func (h *storeHealth) note(err error) {
	h.mu.Lock()
	changed := (h.err == nil) != (err == nil)
	h.err, h.at = err, time.Now()
	h.mu.Unlock()
	if changed && h.changed != nil {
		h.changed()
	}
}

// wrote reports whether the last write was kept. That says more than whether the queue can be counted, for
// which further tables are read: somebody may have locked one.
func (h *storeHealth) wrote() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.at.IsZero() && h.err == nil
}

// failure says why a put would not be kept; nil when it would. full is true where it would be for want of
// room in the queue, which holds so many bytes.
func (h *storeHealth) failure(held, maxBytes int64) (full bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	full = maxBytes > 0 && (held >= maxBytes || h.refused > 0 && held+h.refused > maxBytes)
	return full, h.err
}

// Run probes the store every probeEvery, unless a put did, until ctx ends; it then returns nil.
func (h *storeHealth) Run(ctx context.Context) error {
	for {
		h.mu.Lock()
		quiet := time.Since(h.at) >= probeEvery/2 || h.err != nil
		h.mu.Unlock()
		if quiet {
			h.runOnce(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(probeEvery):
		}
	}
}

func (h *storeHealth) runOnce(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err := h.store.Probe(bounded)
	if ctx.Err() == nil {
		h.note(err)
	}
}
