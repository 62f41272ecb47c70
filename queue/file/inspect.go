package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"koji-relay/internal/inspect"
	"koji-relay/queue"
)

// asideReasons bounds the reasons that are told apart: they are few, unless a broker makes up new ones.
const asideReasons = 1000

// Stats implements Inspector.
func (f *Store) Stats(ctx context.Context) (inspect.Statistics, error) {
	return view(ctx, f, "count the queue", func(tx fileTx) (inspect.Statistics, error) {
		st := inspect.Statistics{DeadLettersByReason: map[string]int64{}}
		topics := map[string]*inspect.Topic{}
		var aside int64
		reasons := map[string]int64{}
		err := tx.in("state").ForEach(func(_, text []byte) error {
			var s fileState
			if err := json.Unmarshal(text, &s); err != nil {
				return err
			}
			t := topics[s.Address]
			if t == nil {
				t = &inspect.Topic{Address: s.Address}
				topics[s.Address] = t
			}
			t.Depth++
			t.Bytes += s.Size
			t.Oldest = queue.Earlier(t.Oldest, microTime(s.Put))
			if s.Next != 0 {
				aside++
				if n, known := reasons[s.LastError]; known || len(reasons) < asideReasons {
					reasons[s.LastError] = n + 1
				}
			}
			return nil
		})
		if err != nil {
			return st, err
		}
		for _, address := range slices.Sorted(maps.Keys(topics)) {
			queue.AddTopic(&st, *topics[address], 0, time.Time{})
		}
		st.SetAside = aside
		for reason, n := range reasons {
			if n > st.AsideFor || n == st.AsideFor && reason < st.AsideReason {
				st.AsideReason, st.AsideFor = reason, n
			}
		}
		if k, _ := tx.in("due").Cursor().First(); k != nil {
			st.NextAttempt = microTime(int64(binary.BigEndian.Uint64(k)))
		}
		return st, tx.in("dead").ForEach(func(_, text []byte) error {
			var d fileDead
			if err := json.Unmarshal(text, &d); err != nil {
				return err
			}
			st.DeadLetters++
			st.DeadLettersByReason[d.Reason]++
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
func (f *Store) List(ctx context.Context, box inspect.Box, o inspect.ListOptions,
	each func(queue.Item) error) error {
	left := o.Limit
	if left <= 0 {
		left = math.MaxInt
	}
	type chunk struct {
		items []queue.Item
		last  []byte
	}
	var last []byte
	for left > 0 {
		from, limit := last, min(left, queue.ListChunk)
		c, err := view(ctx, f, "list "+box.Name(), func(tx fileTx) (chunk, error) {
			var c chunk
			var err error
			c.items, c.last, err = tx.list(box, inspect.ListOptions{Address: o.Address, Newest: o.Newest,
				Limit: limit}, from)
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
func (tx fileTx) list(box inspect.Box, o inspect.ListOptions,
	from []byte) (items []queue.Item, last []byte, err error) {
	walk := "state"
	if box == inspect.DeadBox {
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
		var it queue.Item
		if box == inspect.DeadBox {
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

func (tx fileTx) queueItem(seq uint64) (queue.Item, error) {
	s, err := tx.state(seq)
	if err != nil {
		return queue.Item{}, err
	}
	it := queue.Item{Size: s.Size, Attempts: s.Attempts, Tries: s.Tries, NextAttempt: microTime(s.Next),
		Queued: microTime(s.Put), Reason: s.LastError}
	m := &it.Message
	m.ID, m.Commit, m.Event, m.Callback, m.Address, m.Created = s.ID, s.Commit, s.Event, s.Callback, s.Address,
		s.Created
	props, body, err := tx.body(seq)
	it.Props, it.Body = queue.PropsText(props), slices.Clone(body)
	return it, err
}

func (tx fileTx) deadItem(id string) (queue.Item, error) {
	d, err := tx.deadLetter(id)
	if err != nil {
		return queue.Item{}, err
	}
	it := queue.Item{Props: queue.PropsText(d.Props), Body: d.Body, Size: int64(len(d.Body) + 256),
		Attempts: d.Attempts, Queued: microTime(d.Died), Reason: d.Reason, Event: d.Address == nil}
	m := &it.Message
	m.ID, m.Commit, m.Event, m.Callback, m.Created = d.ID, d.Commit, d.Event, d.Callback, d.Created
	if d.Address != nil {
		m.Address = *d.Address
	}
	return it, nil
}

// item finds an item by its id.
func (tx fileTx) item(box inspect.Box, id string) (queue.Item, error) {
	if box == inspect.DeadBox {
		return tx.deadItem(id)
	}
	k := tx.in("id").Get([]byte(id))
	if k == nil {
		return queue.Item{}, queue.ErrNotFound
	}
	return tx.queueItem(seqOf(k))
}

// Holds implements Inspector.
func (f *Store) Holds(ctx context.Context, ids []string) (int, error) {
	return view(ctx, f, "look for messages", func(tx fileTx) (int, error) {
		n := 0
		for _, id := range ids {
			if tx.in("id").Get([]byte(id)) != nil {
				n++
			}
		}
		return n, nil
	})
}

// Show implements Inspector.
func (f *Store) Show(ctx context.Context, box inspect.Box, id string) (queue.Item, error) {
	return view(ctx, f, "show "+id, func(tx fileTx) (queue.Item, error) { return tx.item(box, id) })
}

// Retry implements Inspector.
func (f *Store) Retry(ctx context.Context, box inspect.Box,
	which inspect.Selection) (inspect.Changed, error) {
	return f.change(ctx, "retry in "+box.Name(), box, which, func(tx fileTx, id string) (bool, error) {
		if box == inspect.QueueBox {
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
		r, ok := it.Unsent()
		if !ok {
			return false, nil
		}
		return true, errors.Join(tx.removeDead(id), tx.insert(&r))
	})
}

// Drop implements Inspector.
func (f *Store) Drop(ctx context.Context, box inspect.Box, which inspect.Selection) (inspect.Changed, error) {
	return f.change(ctx, "drop from "+box.Name(), box, which, func(tx fileTx, id string) (bool, error) {
		if box == inspect.DeadBox {
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
		return 0, fileState{}, queue.ErrNotFound
	}
	s, err := tx.state(seqOf(k))
	return seqOf(k), s, err
}

// change calls one for each selected id, some hundreds in a transaction. one reports whether it did
// something.
func (f *Store) change(ctx context.Context, what string, box inspect.Box, which inspect.Selection,
	one func(fileTx, string) (bool, error)) (inspect.Changed, error) {
	ids := which.IDs
	if which.All {
		ids = nil
		err := f.List(ctx, box, inspect.ListOptions{}, func(it queue.Item) error {
			ids = append(ids, it.Message.ID)
			return nil
		})
		if err != nil {
			return inspect.Changed{}, err
		}
	}
	var total inspect.Changed
	for chunk := range slices.Chunk(ids, queue.ListChunk) {
		var part inspect.Changed
		err := f.update(ctx, what, func(tx fileTx) error {
			part = inspect.Changed{}
			for _, id := range chunk {
				did, err := one(tx, id)
				switch {
				case err != nil && !errors.Is(err, queue.ErrNotFound):
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
func (f *Store) Add(ctx context.Context, box inspect.Box, items []queue.Item) (int, error) {
	in := queue.SortItems(box, items)
	stored := 0
	err := f.add(ctx, "add "+inspect.Count(len(items), "item")+" to "+box.Name(), func(tx fileTx) error {
		stored = 0
		for i := range in.Rows {
			if tx.in("id").Get([]byte(in.Rows[i].ID)) == nil {
				stored++
			}
			if err := tx.insert(&in.Rows[i]); err != nil {
				return err
			}
		}
		for i := range in.Dead {
			if tx.in("dead").Get([]byte(in.Dead[i].ID)) == nil {
				stored++
			}
			if err := tx.insertDead(&in.Dead[i]); err != nil {
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

var _ queue.Inspector = (*Store)(nil)
