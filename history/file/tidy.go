package file

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"koji-relay/history"
)

// Tidy implements history.Store. Dropping a day waits for searches that read it.
func (s *Store) Tidy(ctx context.Context, keep time.Duration, maxBytes int64) (history.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, sizes, err := s.sizes()
	if err != nil {
		return history.Usage{}, err
	}
	var usage history.Usage
	for _, size := range sizes {
		usage.Bytes += size
	}
	now := time.Now().UTC()
	var errs []error
	for _, name := range names {
		day, err := time.Parse(dayFormat, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		end := day.Add(24 * time.Hour)
		past, old := !end.After(now), end.Before(now.Add(-keep))
		if past && (old || usage.Bytes > maxBytes) {
			errs = append(errs, s.drop(name))
			usage.Bytes -= sizes[name]
			usage.Dropped = append(usage.Dropped, name)
			continue
		}
		usage.Days++
		if usage.Oldest.IsZero() {
			usage.Oldest = day
		}
	}
	s.full = usage.Bytes > maxBytes
	errs = append(errs, s.forget(ctx, now.Add(-keep).Truncate(24*time.Hour)))
	return usage, errors.Join(errs...)
}

// sizes gives the days there are, oldest first, and what each takes.
func (s *Store) sizes() (names []string, sizes map[string]int64, err error) {
	sizes = map[string]int64{}
	for name, db := range s.days {
		info, err := os.Stat(db.Path())
		if err != nil {
			return nil, nil, err
		}
		sizes[name] = info.Size()
		names = append(names, name)
	}
	slices.Sort(names)
	return names, sizes, nil
}

func (s *Store) drop(name string) error {
	db := s.days[name]
	path := db.Path() // which it forgets
	delete(s.days, name)
	return errors.Join(db.Close(), os.Remove(path))
}

// forget deletes gaps and hints from before a time.
func (s *Store) forget(ctx context.Context, before time.Time) error {
	return s.update(ctx, s.state, func(tx *bbolt.Tx) error {
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
