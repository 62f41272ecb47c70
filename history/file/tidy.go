package file

import (
	"context"
	"errors"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/history"
)

// Tidy implements history.Store. A day is dropped at once: its file has no name any more. Searches that read
// it come to their end, and the disk is free then.
func (s *Store) Tidy(ctx context.Context, keep time.Duration, maxBytes int64) (history.Usage, error) {
	return change(ctx, s, func() (history.Usage, error) { return s.tidy(keep, maxBytes) })
}

func (s *Store) tidy(keep time.Duration, maxBytes int64) (history.Usage, error) {
	files := s.files(firstDay, lastDay)
	var usage history.Usage
	sizes := map[string]int64{}
	for _, f := range files {
		info, err := os.Stat(s.path(f.name))
		if err != nil {
			return usage, err
		}
		sizes[f.name] = info.Size()
		usage.Bytes += info.Size()
	}
	now := time.Now().UTC()
	var errs []error
	for _, f := range files {
		day, err := time.Parse(dayFormat, f.name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		end := day.Add(24 * time.Hour)
		past, old := !end.After(now), end.Before(now.Add(-keep))
		if past && (old || usage.Bytes > maxBytes) {
			errs = append(errs, s.drop(f))
			usage.Bytes -= sizes[f.name]
			usage.Dropped = append(usage.Dropped, f.name)
			continue
		}
		usage.Days++
		if usage.Oldest.IsZero() {
			usage.Oldest = day
		}
	}
	s.mu.Lock()
	s.full = usage.Bytes > maxBytes
	s.mu.Unlock()
	errs = append(errs, s.forget(now.Add(-keep).Truncate(24*time.Hour)))
	return usage, errors.Join(errs...)
}

// drop takes a day away. Nobody waits for the searches that read it.
func (s *Store) drop(f dayFile) error {
	s.mu.Lock()
	delete(s.days, f.name)
	s.mu.Unlock()
	s.dropped.Go(func() { _ = f.db.Close() }) // of a file without a name nothing can be lost
	return os.Remove(s.path(f.name))
}

// forget deletes gaps and hints from before a time.
func (s *Store) forget(before time.Time) error {
	return s.state.Update(func(tx *bbolt.Tx) error {
		var errs []error
		for _, name := range []string{"gap", "open"} {
			b := tx.Bucket([]byte(name))
			var old [][]byte
			c := b.Cursor()
			for k, _ := c.First(); k != nil && timeOf(k).Before(before); k, _ = c.Next() {
				old = append(old, k)
			}
			for _, k := range old {
				errs = append(errs, b.Delete(k))
			}
		}
		return errors.Join(errs...)
	})
}
