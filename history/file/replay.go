package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// Replays are in state.db: the bucket replay has id -> JSON, the bucket line has id, line -> JSON of
// history.Row. One process has the directory open, so that a replay needs no lease.

func numberKey(numbers ...int64) []byte {
	var key []byte
	for _, n := range numbers {
		key = binary.BigEndian.AppendUint64(key, uint64(n))
	}
	return key
}

// numberOf is the number that a key begins with; 0 where that is none.
func numberOf(key []byte) int64 {
	if len(key) < 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(key))
}

// AddReplay implements history.ReplayStore.
func (s *Store) AddReplay(ctx context.Context, r *inspect.Replay, lines []history.Row) error {
	added := *r
	id, err := change(ctx, s, func() (int64, error) {
		err := s.state.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("replay"))
			n, err := b.NextSequence()
			if err != nil {
				return err
			}
			added.ID = int64(n)
			errs := []error{put(b, numberKey(added.ID), &added)}
			for i := range lines {
				errs = append(errs, put(tx.Bucket([]byte("line")), numberKey(added.ID, int64(i+1)), &lines[i]))
			}
			return errors.Join(errs...)
		})
		return added.ID, err
	})
	if err == nil {
		r.ID = id
	}
	return err
}

// Replays implements history.ReplayStore.
func (s *Store) Replays(context.Context) (all []inspect.Replay, err error) {
	s.mu.RLock()
	claimed := time.Now().Before(s.claimed)
	s.mu.RUnlock()
	err = s.state.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("replay")).ForEach(func(key, text []byte) error {
			r := history.ReadReplay(numberOf(key), text)
			r.Held = claimed && r.State == inspect.ReplayRuns
			all = append(all, r)
			return nil
		})
	})
	return all, err
}

// ClaimReplays implements history.ReplayStore.
func (s *Store) ClaimReplays(ctx context.Context, _ string, lease time.Duration) ([]inspect.Replay, error) {
	s.mu.Lock()
	s.claimed = time.Now().Add(lease)
	s.mu.Unlock()
	all, err := s.Replays(ctx)
	return slices.DeleteFunc(all, func(r inspect.Replay) bool { return r.State != inspect.ReplayRuns }), err
}

// SaveReplay implements history.ReplayStore.
func (s *Store) SaveReplay(ctx context.Context, r *inspect.Replay, _ string) (runs bool, err error) {
	saved := *r
	saved.Held = false // whoever lists them knows
	return s.changeReplay(ctx, r.ID, func(old *inspect.Replay) { *old = saved })
}

// CancelReplay implements history.ReplayStore.
func (s *Store) CancelReplay(ctx context.Context, id int64) (ran bool, err error) {
	return s.changeReplay(ctx, id, func(r *inspect.Replay) {
		r.State, r.Ended = inspect.ReplayCancelled, time.Now()
	})
}

// changeReplay edits a replay that runs, and reports whether it did. The messages of a file and the password
// of a URL go when it ends.
func (s *Store) changeReplay(ctx context.Context, id int64, edit func(*inspect.Replay)) (bool, error) {
	ran, err := change(ctx, s, func() (ran bool, err error) {
		err = s.state.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("replay"))
			text := b.Get(numberKey(id))
			if text == nil {
				return nil
			}
			r := history.ReadReplay(id, text)
			if ran = r.State == inspect.ReplayRuns || r.State == inspect.ReplayUnreadable; !ran {
				return nil
			}
			edit(&r)
			if r.State != inspect.ReplayRuns {
				r.URL = history.MaskURL(r.URL)
				if err := deleteLines(tx.Bucket([]byte("line")), id); err != nil {
					return err
				}
			}
			return put(b, numberKey(id), &r)
		})
		return ran, err
	})
	if err != nil {
		err = fmt.Errorf("change replay %d in %s: %w", id, s.dir, err)
	}
	return ran, err
}

func deleteLines(b *bbolt.Bucket, replay int64) error {
	var keys [][]byte
	c := b.Cursor()
	for k, _ := c.Seek(numberKey(replay)); hasPrefix(k, numberKey(replay)); k, _ = c.Next() {
		keys = append(keys, k)
	}
	var errs []error
	for _, k := range keys {
		errs = append(errs, b.Delete(k))
	}
	return errors.Join(errs...)
}

// Lines implements history.ReplayStore.
func (s *Store) Lines(_ context.Context, replay int64, after, n int) (lines []history.Row, last int,
	err error) {
	err = s.state.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte("line")).Cursor()
		k, text := c.Seek(numberKey(replay, int64(after+1)))
		for ; hasPrefix(k, numberKey(replay)) && len(lines) < n; k, text = c.Next() {
			var r history.Row
			if json.Unmarshal(text, &r) != nil {
				r = history.Row{}
			}
			lines, last = append(lines, r), int(numberOf(k[8:]))
		}
		return nil
	})
	return lines, last, err
}
