package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
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
	err = s.state.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("replay")).ForEach(func(_, text []byte) error {
			var r inspect.Replay
			err := json.Unmarshal(text, &r)
			all = append(all, r)
			return err
		})
	})
	return all, err
}

// ClaimReplay implements history.ReplayStore.
func (s *Store) ClaimReplay(ctx context.Context, _ string, _ time.Duration) (*inspect.Replay, error) {
	all, err := s.Replays(ctx)
	for i := range all {
		if all[i].State == inspect.ReplayRuns {
			return &all[i], err
		}
	}
	return nil, err
}

// SaveReplay implements history.ReplayStore.
func (s *Store) SaveReplay(ctx context.Context, r *inspect.Replay, _ string, _ time.Duration) (runs bool,
	err error) {
	saved := *r
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
			var r inspect.Replay
			if err := json.Unmarshal(text, &r); err != nil {
				return err
			}
			if ran = r.State == inspect.ReplayRuns; !ran {
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
func (s *Store) Lines(_ context.Context, replay int64, after, n int) (lines []history.Row, err error) {
	err = s.state.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket([]byte("line")).Cursor()
		k, text := c.Seek(numberKey(replay, int64(after+1)))
		for ; hasPrefix(k, numberKey(replay)) && len(lines) < n; k, text = c.Next() {
			var r history.Row
			if err := json.Unmarshal(text, &r); err != nil {
				return err
			}
			lines = append(lines, r)
		}
		return nil
	})
	return lines, err
}
