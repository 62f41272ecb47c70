package file

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// filePass is one run over the file. Nothing is committed late in a file, so each pass begins at the
// beginning.
type filePass struct {
	store *Store
	fresh uint64 // seq of the last never-attempted message given
	due   []byte // key of the last message given that had been set aside
	turn  int
}

// BeginDrain implements Store.
func (f *Store) BeginDrain(context.Context) (queue.Pass, error) {
	if !f.drain.TryLock() {
		return nil, queue.ErrBusy
	}
	failpoint.Hit("holding-the-lock")
	return &filePass{store: f}, nil
}

// Held implements Pass.
func (s *filePass) Held() bool { return true }

// End implements Pass.
func (s *filePass) End(bool) { s.store.drain.Unlock() }

// fileBatch is what one read gives; a pass takes over its positions only when the read was waited for.
type fileBatch struct {
	entries []queue.Entry
	fresh   uint64
	due     []byte
}

// Next implements Pass. Messages set aside take turns with the others as in Postgres.
func (s *filePass) Next(ctx context.Context, limits queue.BatchLimits) ([]queue.Entry, error) {
	s.turn++
	first, fresh, due := s.turn%4 == 0, s.fresh, s.due
	b, err := view(ctx, s.store, "read a batch", func(tx fileTx) (fileBatch, error) {
		b := fileBatch{fresh: fresh, due: due}
		for _, dueNow := range []bool{first, !first} {
			read := tx.readFresh
			if dueNow {
				read = tx.readDue
			}
			if err := read(&b, limits); err != nil || len(b.entries) > 0 {
				return b, err
			}
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	s.fresh, s.due = b.fresh, b.due
	return b.entries, nil
}

func (tx fileTx) readFresh(b *fileBatch, limits queue.BatchLimits) error {
	c := tx.in("fresh").Cursor()
	bytes := 0
	for k, size := c.Seek(key(b.fresh + 1)); k != nil; k, size = c.Next() {
		n := int(binary.BigEndian.Uint64(size))
		if len(b.entries) > 0 && (len(b.entries) >= limits.Messages || bytes+n > limits.Bytes) {
			return nil
		}
		bytes += n
		b.fresh = seqOf(k)
		if err := tx.read(b, b.fresh); err != nil {
			return err
		}
	}
	return nil
}

func (tx fileTx) readDue(b *fileBatch, limits queue.BatchLimits) error {
	now := uint64(time.Now().UnixMicro())
	c := tx.in("due").Cursor()
	k, size := c.First()
	if b.due != nil {
		if k, size = c.Seek(b.due); string(k) == string(b.due) {
			k, size = c.Next()
		}
	}
	bytes := 0
	for ; k != nil && binary.BigEndian.Uint64(k) <= now; k, size = c.Next() {
		n := int(binary.BigEndian.Uint64(size))
		if len(b.entries) > 0 && (len(b.entries) >= limits.Messages || bytes+n > limits.Bytes) {
			return nil
		}
		bytes += n
		b.due = append([]byte(nil), k...)
		if err := tx.read(b, seqOf(k)); err != nil {
			return err
		}
	}
	return nil
}

// read appends one message to b.
func (tx fileTx) read(b *fileBatch, seq uint64) error {
	st, err := tx.state(seq)
	if err != nil {
		return fmt.Errorf("read message %d: %w", seq, err)
	}
	e := queue.Entry{Attempts: st.Attempts, Tries: st.Tries}
	m := &e.Message
	m.ID, m.Commit, m.Event, m.Callback, m.Address, m.Created = st.ID, st.Commit, st.Event, st.Callback,
		st.Address, st.Created
	props, body, err := tx.body(seq)
	if err == nil {
		m.Body = string(body)
		m.Props, err = message.DecodeProps(props)
	}
	if err != nil {
		e.Unreadable = err.Error()
	}
	b.entries = append(b.entries, e)
	return nil
}

// Settle implements Store.
func (f *Store) Settle(ctx context.Context, settlements []queue.Settlement) error {
	if len(settlements) == 0 {
		return nil
	}
	return f.update(ctx, "settle "+inspect.Count(len(settlements), "message"), func(tx fileTx) error {
		for _, s := range settlements {
			if err := tx.settle(s); err != nil {
				return err
			}
		}
		failpoint.Hit("before-settle-commit")
		return nil
	})
}

func (tx fileTx) settle(s queue.Settlement) error {
	k := tx.in("id").Get([]byte(s.ID))
	if k == nil {
		return nil
	}
	seq := seqOf(k)
	st, err := tx.state(seq)
	if err != nil {
		return err
	}
	switch s.Action {
	case queue.Forget:
		return tx.remove(seq, st)
	case queue.Bury:
		return tx.bury(seq, st, s.Attempts, s.Reason)
	case queue.SetAside:
		err := tx.leaveWalk(seq, st)
		st.Attempts, st.Tries, st.LastError = s.Attempts, s.Tries, queue.CleanText(s.Reason)
		st.Next = time.Now().Add(s.Delay).UnixMicro()
		return errors.Join(err, tx.putState(seq, st))
	}
	return nil
}

// bury makes a dead letter of a message.
func (tx fileTx) bury(seq uint64, st fileState, attempts int, reason string) error {
	props, body, err := tx.body(seq)
	if err != nil {
		reason += "; " + err.Error()
	}
	return errors.Join(
		tx.replaceDead(fileDead{ID: st.ID, Died: time.Now().UnixMicro(), Created: st.Created, Commit: st.Commit,
			Event: st.Event, Callback: st.Callback, Address: &st.Address, Props: props, Body: body, Attempts: attempts,
			Reason: queue.CleanText(reason)}),
		tx.remove(seq, st))
}

// Expire implements Pass.
func (s *filePass) Expire(ctx context.Context, e queue.Expiry) (queue.Expired, error) {
	done := queue.Expired{Messages: map[string]int{}}
	for more := e.MaxAge > 0; more; {
		var chunk []fileState
		err := s.store.update(ctx, "expire messages", func(tx fileTx) error {
			var err error
			chunk, err = tx.expire(uint64(time.Now().Add(-e.MaxAge).UnixMicro()), e.ToDead)
			return err
		})
		if err != nil {
			return done, err
		}
		for i := range chunk {
			done.Messages[chunk[i].Address]++
			if e.Each != nil {
				e.Each(chunk[i].ID, chunk[i].Created)
			}
		}
		failpoint.Hit("mid-expiry")
		more = len(chunk) == queue.ExpiryChunk
	}
	for more := e.DeadMaxAge > 0; more; {
		n := 0
		err := s.store.update(ctx, "expire dead letters", func(tx fileTx) error {
			var err error
			n, err = tx.expireDead(uint64(time.Now().Add(-e.DeadMaxAge).UnixMicro()))
			return err
		})
		if err != nil {
			return done, err
		}
		done.Dead += n
		more = n == queue.ExpiryChunk
	}
	return done, nil
}

// expire discards up to expiryChunk messages put before the time, and gives what they were.
func (tx fileTx) expire(before uint64, toDead bool) ([]fileState, error) {
	var old []uint64
	c := tx.in("born").Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < before &&
		len(old) < queue.ExpiryChunk; k, _ = c.Next() {
		old = append(old, seqOf(k))
	}
	var gone []fileState
	for _, seq := range old {
		st, err := tx.state(seq)
		if err != nil {
			return nil, err
		}
		if toDead {
			err = tx.bury(seq, st, st.Attempts, expiredReason(st.LastError))
		} else {
			err = tx.remove(seq, st)
		}
		if err != nil {
			return nil, err
		}
		gone = append(gone, st)
	}
	return gone, nil
}

func (tx fileTx) expireDead(before uint64) (int, error) {
	var ids []string
	c := tx.in("died").Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < before &&
		len(ids) < queue.ExpiryChunk; k, _ = c.Next() {
		ids = append(ids, string(k[8:]))
	}
	for _, id := range ids {
		if err := tx.removeDead(id); err != nil {
			return 0, err
		}
	}
	return len(ids), nil
}

// Renew implements Store.
func (f *Store) Renew(ctx context.Context, address string, limit int) (int, error) {
	found, err := view(ctx, f, "look for messages that are set aside", func(tx fileTx) ([]string, error) {
		return tx.aside(address, limit)
	})
	renewed := 0
	for chunk := range slices.Chunk(found, queue.ListChunk) {
		now := time.Now().UnixMicro()
		err = errors.Join(err, f.update(ctx, "renew messages", func(tx fileTx) error {
			for _, id := range chunk {
				seq, s, err := tx.find(id)
				if errors.Is(err, queue.ErrNotFound) || s.Next <= now {
					continue
				}
				err = errors.Join(err, tx.leaveWalk(seq, s))
				s.Attempts, s.Next = 0, now
				if err := errors.Join(err, tx.putState(seq, s)); err != nil {
					return err
				}
			}
			return nil
		}))
		if err != nil {
			return renewed, err
		}
		renewed += len(chunk)
	}
	return renewed, err
}

// aside gives up to limit messages of an address, or of each, that wait for their time for its sake.
func (tx fileTx) aside(address string, limit int) (ids []string, err error) {
	taken := map[string]int{}
	c := tx.in("due").Cursor()
	for k, _ := c.Seek(key(uint64(time.Now().UnixMicro()) + 1)); k != nil; k, _ = c.Next() {
		s, err := tx.state(seqOf(k))
		if err != nil {
			return nil, err
		}
		if address != "" && s.Address != address || taken[s.Address] >= limit ||
			!queue.ForAddress(s.Attempts, s.LastError) {
			continue
		}
		ids = append(ids, s.ID)
		if taken[s.Address]++; taken[address] >= limit { // never of the empty address: there is none
			break
		}
	}
	return ids, nil
}

// Backlog implements Store.
func (f *Store) Backlog(ctx context.Context) (queue.Backlog, error) {
	return view(ctx, f, "look for a backlog", func(tx fileTx) (queue.Backlog, error) {
		k, _ := tx.in("fresh").Cursor().First()
		return queue.Backlog{Queue: k != nil}, nil
	})
}

func expiredReason(last string) string {
	if last == "" {
		last = "never attempted"
	}
	return "older than max_age; last: " + last
}
