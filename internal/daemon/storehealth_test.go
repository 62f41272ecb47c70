package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"koji-relay/internal/message"
	"koji-relay/queue"
)

// fickleStore is a store that tests break and mend.
type fickleStore struct {
	mu         sync.Mutex
	put, probe error
	probes     int
}

func (s *fickleStore) Put(context.Context, []message.Unsent, []message.Undeliverable) (queue.Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return queue.Stored{}, s.put
}

func (s *fickleStore) Probe(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probes++
	return s.probe
}

func (s *fickleStore) become(put, probe error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put, s.probe = put, probe
}

func TestStoreThatCannotBeWrittenIsNoticedWithinFiveSecondsAndSoIsItsReturn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		readOnly := errors.New("cannot execute INSERT in a read-only transaction")
		store := &fickleStore{}
		changes := 0
		h := &storeHealth{store: store, changed: func() { changes++ }}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- h.Run(ctx) }()
		within := func(want error) {
			t.Helper()
			time.Sleep(5 * time.Second) // of the bubble
			synctest.Wait()
			if _, err := h.failure(0, 0); err != want {
				t.Errorf("after 5 s the store's failure is %v, want %v", err, want)
			}
		}
		within(nil)
		if !h.wrote() {
			t.Error("a write that was kept is not known")
		}
		store.become(readOnly, readOnly)
		within(readOnly)
		if h.wrote() {
			t.Error("a write that failed passes for one that was kept")
		}
		store.become(nil, nil)
		within(nil)
		if changes != 2 {
			t.Errorf("told of %d changes, want 2", changes)
		}
		// A put tells sooner than the probe.
		store.become(readOnly, readOnly)
		h.Put(ctx, nil, nil)
		if _, err := h.failure(0, 0); err != readOnly {
			t.Errorf("after a put that failed: %v", err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run gave %v", err)
		}
	})
}

func TestPutsSpareTheProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &fickleStore{}
		h := &storeHealth{store: store}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go h.Run(ctx)
		synctest.Wait()
		for range 100 {
			h.Put(ctx, nil, nil)
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if store.probes > 1 {
			t.Errorf("%d probes beside puts that were kept, want the first alone", store.probes)
		}
	})
}

func TestFullQueueIsFullUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	store := &fickleStore{put: fmt.Errorf("put: %w", queue.ErrFull)}
	h := &storeHealth{store: store}
	m := message.Message{Address: "build.tag", Body: "{}"}
	size := int64(m.Size())
	h.Put(t.Context(), []message.Unsent{{Message: m}}, nil)
	if full, err := h.failure(1000-size+1, 1000); !full || err != nil {
		t.Errorf("a queue without room for the last put: full %v, %v", full, err)
	}
	if full, _ := h.failure(1000-size, 1000); full {
		t.Error("a queue with room for the last put is full")
	}
	store.become(nil, nil)
	h.Put(t.Context(), nil, nil)
	if full, _ := h.failure(999, 1000); full {
		t.Error("full after a put that was kept")
	}
}

func TestPutThatItsCallerGaveUpSaysNothingOfTheStore(t *testing.T) {
	t.Parallel()
	h := &storeHealth{store: &fickleStore{put: context.Canceled}}
	h.Put(t.Context(), nil, nil)
	if _, err := h.failure(0, 0); err != nil {
		t.Errorf("the store is said to fail: %v", err)
	}
}
