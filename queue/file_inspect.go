package queue

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Stats implements Inspector.
func (f *File) Stats(ctx context.Context) (Stats, error) {
	return view(ctx, f, "count the queue", func(tx fileTx) (Stats, error) {
		st := Stats{DeadReasons: map[string]int64{}}
		topics := map[string]*TopicStats{}
		var aside int64
		err := tx.in("state").ForEach(func(_, text []byte) error {
			var s fileState
			if err := json.Unmarshal(text, &s); err != nil {
				return err
			}
			t := topics[s.Address]
			if t == nil {
				t = &TopicStats{Address: s.Address}
				topics[s.Address] = t
			}
			t.Depth++
			t.Bytes += s.Size
			t.Oldest = earlier(t.Oldest, microTime(s.Put))
			if s.Next != 0 {
				aside++
			}
			return nil
		})
		if err != nil {
			return st, err
		}
		for _, address := range slices.Sorted(maps.Keys(topics)) {
			st.add(*topics[address], 0, time.Time{})
		}
		st.SetAside = aside
		if k, _ := tx.in("due").Cursor().First(); k != nil {
			st.NextAttempt = microTime(int64(binary.BigEndian.Uint64(k)))
		}
		return st, tx.in("dead").ForEach(func(_, text []byte) error {
			var d fileDead
			if err := json.Unmarshal(text, &d); err != nil {
				return err
			}
			st.Dead++
			st.DeadReasons[d.Reason]++
			return nil
		})
	})
}

// microTime is the time kept as n; 0 is none.
func microTime(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// List implements Inspector.
func (f *File) List(ctx context.Context, box Box, o ListOptions, each func(Item) error) error {
	left := o.Limit
	if left <= 0 {
		left = math.MaxInt
	}
	type chunk struct {
		items []Item
		last  []byte
	}
	var last []byte
	for left > 0 {
		from, limit := last, min(left, listChunk)
		c, err := view(ctx, f, "list "+box.String(), func(tx fileTx) (chunk, error) {
			var c chunk
			var err error
			c.items, c.last, err = tx.list(box, ListOptions{Address: o.Address, Newest: o.Newest, Limit: limit}, from)
			return c, err
		})
		if err != nil || len(c.items) == 0 {
			return err
		}
		for _, it := range c.items {
			if err := each(it); err != nil {
				return err
			}
		}
		left -= len(c.items)
		last = c.last
	}
	return nil
}

// list gives up to o.Limit items that come after from in the walk of box, and the key of the last one.
func (tx fileTx) list(box Box, o ListOptions, from []byte) (items []Item, last []byte, err error) {
	walk := "state"
	if box == Dead {
		walk = "died"
	}
	c := tx.in(walk).Cursor()
	first, next := c.First, c.Next
	if o.Newest {
		first, next = c.Last, c.Prev
	}
	k, _ := first()
	if from != nil {
		k, _ = c.Seek(from)
		switch {
		case k == nil && o.Newest:
			k, _ = c.Last() // what from named is gone, and so is all after it
		case string(k) == string(from) || o.Newest:
			k, _ = next()
		}
	}
	for ; k != nil && len(items) < o.Limit; k, _ = next() {
		var it Item
		if box == Dead {
			it, err = tx.deadItem(string(k[8:]))
		} else {
			it, err = tx.queueItem(seqOf(k))
		}
		if err != nil {
			return nil, nil, err
		}
		last = append([]byte(nil), k...)
		if o.Address == "" || it.Message.Address == o.Address {
			it.Props, it.Body = "", nil
			items = append(items, it)
		}
	}
	return items, last, nil
}

func (tx fileTx) queueItem(seq uint64) (Item, error) {
	s, err := tx.state(seq)
	if err != nil {
		return Item{}, err
	}
	it := Item{Size: s.Size, Attempts: s.Attempts, Tries: s.Tries, NextAttempt: microTime(s.Next), Queued: microTime(s.Put), Reason: s.LastError}
	m := &it.Message
	m.ID, m.Commit, m.Event, m.Callback, m.Address, m.Created = s.ID, s.Commit, s.Event, s.Callback, s.Address, s.Created
	props, body, err := tx.body(seq)
	it.Props, it.Body = propsText(props), slices.Clone(body)
	return it, err
}

func (tx fileTx) deadItem(id string) (Item, error) {
	d, err := tx.deadLetter(id)
	if err != nil {
		return Item{}, err
	}
	it := Item{Props: propsText(d.Props), Body: d.Body, Size: int64(len(d.Body) + 256), Attempts: d.Attempts,
		Queued: microTime(d.Died), Reason: d.Reason, Event: d.Address == nil}
	m := &it.Message
	m.ID, m.Commit, m.Event, m.Callback, m.Created = d.ID, d.Commit, d.Event, d.Callback, d.Created
	if d.Address != nil {
		m.Address = *d.Address
	}
	return it, nil
}

// item finds an item by its id.
func (tx fileTx) item(box Box, id string) (Item, error) {
	if box == Dead {
		return tx.deadItem(id)
	}
	k := tx.in("id").Get([]byte(id))
	if k == nil {
		return Item{}, ErrNotFound
	}
	return tx.queueItem(seqOf(k))
}

// Show implements Inspector.
func (f *File) Show(ctx context.Context, box Box, id string) (Item, error) {
	return view(ctx, f, "show "+id, func(tx fileTx) (Item, error) { return tx.item(box, id) })
}

// Retry implements Inspector.
func (f *File) Retry(ctx context.Context, box Box, which Selection) (Changed, error) {
	return f.change(ctx, "retry in "+box.String(), box, which, func(tx fileTx, id string) (bool, error) {
		if box == Queue {
			seq, s, err := tx.find(id)
			if err != nil || s.Next == 0 {
				return err == nil && !which.All, err
			}
			err = tx.leaveWalk(seq, s)
			s.Attempts, s.Next = 0, min(s.Next, time.Now().UnixMicro())
			return true, errors.Join(err, tx.putState(seq, s))
		}
		it, err := tx.deadItem(id)
		if err != nil {
			return false, err
		}
		r, ok := it.unsent()
		if !ok {
			return false, nil
		}
		return true, errors.Join(tx.removeDead(id), tx.insert(&r))
	})
}

// Drop implements Inspector.
func (f *File) Drop(ctx context.Context, box Box, which Selection) (Changed, error) {
	return f.change(ctx, "drop from "+box.String(), box, which, func(tx fileTx, id string) (bool, error) {
		if box == Dead {
			return true, tx.removeDead(id)
		}
		seq, s, err := tx.find(id)
		if err != nil {
			return false, err
		}
		return true, tx.remove(seq, s)
	})
}

func (tx fileTx) find(id string) (uint64, fileState, error) {
	k := tx.in("id").Get([]byte(id))
	if k == nil {
		return 0, fileState{}, ErrNotFound
	}
	s, err := tx.state(seqOf(k))
	return seqOf(k), s, err
}

// change calls one for each selected id, some hundreds in a transaction. one reports whether it did something.
func (f *File) change(ctx context.Context, what string, box Box, which Selection, one func(fileTx, string) (bool, error)) (Changed, error) {
	ids := which.IDs
	if which.All {
		ids = nil
		err := f.List(ctx, box, ListOptions{}, func(it Item) error {
			ids = append(ids, it.Message.ID)
			return nil
		})
		if err != nil {
			return Changed{}, err
		}
	}
	var total Changed
	for chunk := range slices.Chunk(ids, listChunk) {
		var part Changed
		err := f.update(ctx, what, func(tx fileTx) error {
			part = Changed{}
			for _, id := range chunk {
				did, err := one(tx, id)
				switch {
				case err != nil && !errors.Is(err, ErrNotFound):
					return err
				case did && err == nil:
					part.Count++
				case !which.All:
					part.Missing = append(part.Missing, id)
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total.Count += part.Count
		total.Missing = append(total.Missing, part.Missing...)
	}
	return total, nil
}

// Add implements Inspector.
func (f *File) Add(ctx context.Context, box Box, items []Item) (int, error) {
	in := sortItems(box, items)
	stored := 0
	err := f.add(ctx, fmt.Sprintf("add %d items to %s", len(items), box), func(tx fileTx) error {
		stored = 0
		for i := range in.rows {
			if tx.in("id").Get([]byte(in.rows[i].ID)) == nil {
				stored++
			}
			if err := tx.insert(&in.rows[i]); err != nil {
				return err
			}
		}
		for i := range in.dead {
			if tx.in("dead").Get([]byte(in.dead[i].id)) == nil {
				stored++
			}
			if err := tx.insertDead(&in.dead[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return stored, nil
}

var _ Inspector = (*File)(nil)
