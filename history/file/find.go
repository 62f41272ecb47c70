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

// Find implements history.Store. Words are looked up in the index, all of them together; the search loads
// what it gives, and filters.
func (s *Store) Find(ctx context.Context, q *history.Query, after history.Ref, n int) ([]history.Ref, error) {
	switch {
	case q.ID != "":
		return s.byID(ctx, q, after)
	case q.Fate == inspect.Queued && q.Build == "" && q.Task == 0:
		return merge(ctx, s.state.View, []walk{{"open", [][]byte{nil}}}, q, after, n)
	}
	walks := walksOf(q)
	var found []history.Ref
	for _, day := range s.daysOf(q, after) {
		some, err := merge(ctx, day.view, walks, q, after, n-len(found))
		if err != nil {
			return nil, fmt.Errorf("search the history of %s in %s: %w", day.name, s.dir, err)
		}
		if found = append(found, some...); len(found) >= n {
			break
		}
	}
	return found, nil
}

// walk is a way through one bucket: the places that stand behind all of its prefixes.
type walk struct {
	bucket   string
	prefixes [][]byte
}

// walksOf chooses what to walk. Together the walks leave nothing out. A condition with one word is a prefix
// of each walk. What else there is is looked at when a message is loaded.
func walksOf(q *history.Query) []walk {
	var all [][]byte // prefixes that every place must have
	also := func(kind, word string) { all = append(all, wordKey(kind, word)) }
	if q.Task != 0 {
		also("task", fmt.Sprint(q.Task))
	}
	if q.Fate != "" && q.Fate != inspect.Accepted && q.Fate != inspect.Queued {
		also("fate", string(q.Fate))
	}
	if q.User != "" {
		also("user", q.User)
	}
	var lists [][][]byte // of each list one prefix
	for _, list := range []struct {
		kind  history.Kind
		words []string
	}{{history.Tags, q.Tags}, {history.Addresses, q.Addresses}} {
		switch len(list.words) {
		case 0:
		case 1:
			also(string(list.kind), list.words[0])
		default:
			var any [][]byte
			for _, w := range list.words {
				any = append(any, wordKey(string(list.kind), w))
			}
			lists = append(lists, any)
		}
	}
	switch {
	case q.Build != "": // a name with two dashes looks like NAME-VERSION-RELEASE
		lists = [][][]byte{{wordKey("build", q.Build), wordKey("package", q.Build)}}
	case len(all) > 0: // narrower than a list
		lists = nil
	case len(lists) == 0:
		return []walk{{"row", [][]byte{nil}}}
	}
	if len(lists) == 0 {
		return []walk{{"index", all}}
	}
	var walks []walk
	for _, prefix := range lists[0] {
		walks = append(walks, walk{"index", append(slices.Clip([][]byte{prefix}), all...)})
	}
	return walks
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

// merge gives the places of several walks, at most n, in the order of q.
func merge(ctx context.Context, view func(func(*bbolt.Tx) error) error, walks []walk, q *history.Query,
	after history.Ref, n int) ([]history.Ref, error) {
	var places [][]byte
	err := view(func(tx *bbolt.Tx) error {
		for _, w := range walks {
			some, err := w.places(ctx, tx, boundsOf(q, after), n)
			if err != nil {
				return err
			}
			places = append(places, some...)
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

// bounds are the times of a search: places from low on and before high, in one direction.
type bounds struct {
	low, high []byte
	forward   bool
	from      []byte // this place itself is none
}

func boundsOf(q *history.Query, after history.Ref) bounds {
	b := bounds{low: []byte{}, high: binary.BigEndian.AppendUint64(nil, 1<<63), forward: q.OldestFirst}
	if !q.Since.IsZero() {
		b.low = at(q.Since)
	}
	if !q.Until.IsZero() {
		b.high = at(q.Until)
	}
	if after.ID == "" {
		return b
	}
	b.from = place(after.Handed, after.ID)
	if b.forward && bytes.Compare(b.from, b.low) > 0 {
		b.low = b.from
	} else if !b.forward && bytes.Compare(b.from, b.high) < 0 {
		b.high = b.from
	}
	return b
}

func (b *bounds) has(place []byte) bool {
	return bytes.Compare(place, b.low) >= 0 && bytes.Compare(place, b.high) < 0
}

// places gives up to n places of a walk. Each cursor in turn goes on to where the last one is, until all are
// at the same place: so the rarest word decides how many steps are made.
func (w *walk) places(ctx context.Context, tx *bbolt.Tx, b bounds, n int) (places [][]byte, err error) {
	cursors := make([]cursor, len(w.prefixes))
	for i, prefix := range w.prefixes {
		cursors[i] = cursor{c: tx.Bucket([]byte(w.bucket)).Cursor(), prefix: prefix, forward: b.forward}
	}
	p := cursors[0].first(b)
	for steps := 1; len(places) < n && p != nil && b.has(p); steps++ {
		if steps%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		next := p
		for i := 1; i < len(cursors) && bytes.Equal(next, p); i++ {
			next = cursors[i].seek(p)
		}
		if !bytes.Equal(next, p) { // one of them is further on
			if next == nil {
				break
			}
			p = cursors[0].seek(next)
			continue
		}
		// A message that was handed over twice at the same time has one place.
		if !bytes.Equal(p, b.from) && (len(places) == 0 || !bytes.Equal(p, places[len(places)-1])) {
			places = append(places, slices.Clone(p))
		}
		p = cursors[0].next()
	}
	return places, nil
}

// cursor walks the places behind one prefix. Its methods give nil where there are no more.
type cursor struct {
	c       *bbolt.Cursor
	prefix  []byte
	forward bool
	now     []byte // the place that was given last
}

// first gives the first place within bounds, or one that is beyond them.
func (c *cursor) first(b bounds) []byte {
	if c.forward {
		return c.seek(b.low)
	}
	k, _ := c.c.Seek(slices.Concat(c.prefix, b.high))
	return c.before(k)
}

// nearby is how many places are walked before a way from the top is shorter.
const nearby = 4

// seek gives the place given, or the first behind it in the direction. It never goes back.
func (c *cursor) seek(place []byte) []byte {
	for range nearby {
		if c.now == nil {
			break
		}
		if order := bytes.Compare(c.now, place); order == 0 || order > 0 == c.forward {
			return c.now
		}
		if c.next() == nil {
			return nil
		}
	}
	wanted := slices.Concat(c.prefix, place)
	k, _ := c.c.Seek(wanted)
	if c.forward || hasPrefix(k, wanted) {
		return c.place(k)
	}
	return c.before(k)
}

// before gives the place before a key, which the cursor is at; nil: it is at the end.
func (c *cursor) before(key []byte) []byte {
	if key == nil {
		key, _ = c.c.Last()
	} else {
		key, _ = c.c.Prev()
	}
	return c.place(key)
}

func (c *cursor) next() []byte {
	var k []byte
	if c.forward {
		k, _ = c.c.Next()
	} else {
		k, _ = c.c.Prev()
	}
	return c.place(k)
}

func (c *cursor) place(key []byte) []byte {
	if c.now = nil; hasPrefix(key, c.prefix) {
		c.now = key[len(c.prefix) : len(c.prefix)+placeSize]
	}
	return c.now
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
			row = history.Row{First: inspect.Step{Time: timeOf(handed), Kind: inspect.Unreadable,
				Reason: damaged("this message", err)}}
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
			st.Step = inspect.Step{Kind: inspect.Unreadable, Reason: damaged("this step", err)}
		}
		steps = append(steps, st)
	}
	return rows, steps, nil
}
