package file

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// Find implements history.Store. What is asked for most narrowly leads; the search loads what it gives, and
// filters.
func (s *Store) Find(ctx context.Context, q *history.Query, after history.Ref, n int) ([]history.Ref, error) {
	switch {
	case q.ID != "":
		return s.byID(ctx, q, after)
	case q.Fate == inspect.Queued && q.Build == "" && q.Task == 0:
		return walk(ctx, s.state.View, "open", [][]byte{nil}, q, after, n)
	}
	bucket, prefixes := lead(q)
	var found []history.Ref
	for _, day := range s.daysOf(q, after) {
		some, err := walk(ctx, day.view, bucket, prefixes, q, after, n-len(found))
		if err != nil {
			return nil, fmt.Errorf("search the history of %s in %s: %w", day.name, s.dir, err)
		}
		if found = append(found, some...); len(found) >= n {
			break
		}
	}
	return found, nil
}

// lead chooses the index to walk, and where.
func lead(q *history.Query) (bucket string, prefixes [][]byte) {
	words := func(kind string, list ...string) [][]byte {
		var keys [][]byte
		for _, w := range list {
			keys = append(keys, wordKey(kind, w))
		}
		return keys
	}
	switch {
	case q.Build != "":
		return "index", words("package", q.Package)
	case q.Task != 0:
		return "index", words("task", fmt.Sprint(q.Task))
	case q.Fate != "" && q.Fate != inspect.Accepted:
		return "index", words("fate", string(q.Fate))
	case q.Tags != nil:
		return "index", words(string(history.Tags), q.Tags...)
	case q.User != "":
		return "index", words("user", q.User)
	case q.Addresses != nil:
		return "index", words(string(history.Addresses), q.Addresses...)
	}
	return "row", [][]byte{nil}
}

// daysOf gives the days that q covers, in its order, from that of after on.
func (s *Store) daysOf(q *history.Query, after history.Ref) []dayFile {
	day := func(t time.Time) string { return t.UTC().Format(dayFormat) }
	first, last := firstDay, lastDay
	if !q.Since.IsZero() {
		first = day(q.Since)
	}
	if !q.Until.IsZero() {
		last = day(q.Until)
	}
	if after.ID != "" && q.OldestFirst {
		first = max(first, day(after.Handed))
	} else if after.ID != "" {
		last = min(last, day(after.Handed))
	}
	days := s.files(first, last)
	if !q.OldestFirst {
		slices.Reverse(days)
	}
	return days
}

// walk merges the places behind prefixes, at most n from each, in the order of q.
func walk(ctx context.Context, view func(func(*bbolt.Tx) error) error, bucket string, prefixes [][]byte,
	q *history.Query, after history.Ref, n int) ([]history.Ref, error) {
	var places [][]byte
	err := view(func(tx *bbolt.Tx) error {
		for _, prefix := range prefixes {
			if err := ctx.Err(); err != nil {
				return err
			}
			places = append(places, walkOne(tx.Bucket([]byte(bucket)).Cursor(), prefix, q, after, n)...)
		}
		return nil
	})
	slices.SortFunc(places, bytes.Compare)
	places = slices.CompactFunc(places, bytes.Equal)
	if !q.OldestFirst {
		slices.Reverse(places)
	}
	refs := make([]history.Ref, 0, min(n, len(places)))
	for _, p := range places[:min(n, len(places))] {
		id, _ := uuid.FromBytes(p[8:]) // always 16 bytes
		refs = append(refs, history.Ref{Handed: timeOf(p), ID: id.String()})
	}
	return refs, err
}

const placeSize = 8 + 16

// walkOne gives up to n places behind one prefix, within the times of q and behind after.
func walkOne(c *bbolt.Cursor, prefix []byte, q *history.Query, after history.Ref, n int) [][]byte {
	low, high := []byte{}, binary.BigEndian.AppendUint64(nil, 1<<63) // from low until before high
	if !q.Since.IsZero() {
		low = at(q.Since)
	}
	if !q.Until.IsZero() {
		high = at(q.Until)
	}
	var from []byte
	if after.ID != "" {
		from = place(after.Handed, after.ID)
	}
	var k []byte
	step := c.Next
	if q.OldestFirst {
		if bytes.Compare(from, low) > 0 {
			low = from
		}
		k, _ = c.Seek(append(slices.Clone(prefix), low...))
	} else {
		if from != nil && bytes.Compare(from, high) < 0 {
			high = from
		}
		step = c.Prev
		if k, _ = c.Seek(append(slices.Clone(prefix), high...)); k == nil {
			k, _ = c.Last()
		} else {
			k, _ = c.Prev()
		}
	}
	var places [][]byte
	for ; hasPrefix(k, prefix) && len(places) < n; k, _ = step() {
		p := k[len(prefix) : len(prefix)+placeSize]
		if bytes.Compare(p, low) < 0 || bytes.Compare(p, high) >= 0 {
			break
		}
		if bytes.Equal(p, from) || len(places) > 0 && bytes.Equal(p, places[len(places)-1]) {
			continue // a message that was handed over twice at the same time
		}
		places = append(places, slices.Clone(p))
	}
	return places
}

// byID gives the places of one message.
func (s *Store) byID(ctx context.Context, q *history.Query, after history.Ref) ([]history.Ref, error) {
	if after.ID != "" {
		return nil, nil
	}
	rows, _, err := s.Load(ctx, []string{q.ID}, false)
	var refs []history.Ref
	for i := range rows {
		refs = append(refs, history.Ref{Handed: rows[i].Handed, ID: rows[i].ID})
	}
	return refs, err
}

// Load implements history.Store.
func (s *Store) Load(ctx context.Context, ids []string, content bool) (rows []history.Row,
	steps []history.Step, err error) {
	for _, day := range s.files(firstDay, lastDay) {
		err := day.view(func(tx *bbolt.Tx) error {
			for _, id := range ids {
				r, st, err := loadOne(tx, id, content)
				if err = errors.Join(err, ctx.Err()); err != nil {
					return err
				}
				rows, steps = append(rows, r...), append(steps, st...)
			}
			return nil
		})
		if err != nil {
			return nil, nil, fmt.Errorf("read messages of the history of %s in %s: %w", day.name, s.dir, err)
		}
	}
	slices.SortStableFunc(rows, func(a, b history.Row) int { return a.Handed.Compare(b.Handed) })
	slices.SortStableFunc(steps, func(a, b history.Step) int { return a.Time.Compare(b.Time) })
	return rows, steps, nil
}

func loadOne(tx *bbolt.Tx, id string, content bool) (rows []history.Row, steps []history.Step, err error) {
	key := idKey(id)
	c := tx.Bucket([]byte("id")).Cursor()
	for k, handed := c.Seek(key); hasPrefix(k, key); k, handed = c.Next() {
		where := slices.Concat(handed, key, k[len(key):])
		row, err := readRow(tx.Bucket([]byte("row")).Get(where))
		if err != nil {
			return nil, nil, err
		}
		row.ID, row.Handed = id, timeOf(handed)
		if packed := tx.Bucket([]byte("content")).Get(where); content && packed != nil {
			row.Content = slices.Clone(packed)
		}
		rows = append(rows, row)
	}
	c = tx.Bucket([]byte("step")).Cursor()
	for k, text := c.Seek(key); hasPrefix(k, key); k, text = c.Next() {
		st := history.Step{ID: id}
		if err := json.Unmarshal(text, &st.Step); err != nil {
			return nil, nil, err
		}
		steps = append(steps, st)
	}
	return rows, steps, nil
}
