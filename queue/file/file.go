// Package file is the queue in one file, for trying out and for hosts without a database.
//
// It promises what package queue does: a put that returned is on disk. It never shares its file with another
// process.
package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// Options says how the file is used.
type Options struct {
	Limits queue.Limits
	// InUseTimeout is how long Open waits for another process to let go of the file; default 1 s.
	InUseTimeout time.Duration
}

// Store is the store in one file, for a host without a database. One process has it open at a time.
//
// Buckets, with seq and times as 8 bytes, big endian, so that byte order is their order:
//
//	message  seq            -> length of props, props, body; never changed
//	state    seq            -> JSON of fileState
//	id       message-id     -> seq
//	fresh    seq            -> size; never attempted
//	due      next, seq      -> size; set aside until next
//	born     put time, seq  -> nothing; for expiry
//	dead     message-id     -> JSON of fileDead
//	died     time, id       -> nothing; for ageing out
//	meta     "bytes"        -> sum of the sizes
type Store struct {
	db      *bbolt.DB
	path    string
	reserve *reserve
	limits  atomic.Pointer[queue.Limits]
	drain   sync.Mutex     // held by a pass
	slots   chan struct{}  // bounds calls that wait for a disk that does not answer
	running sync.WaitGroup // the same calls, for Close
}

type fileState struct {
	ID        string    `json:"id"`
	Commit    string    `json:"commit,omitempty"`
	Event     int       `json:"event,omitempty"`
	Callback  string    `json:"callback,omitempty"`
	Address   string    `json:"address"`
	Created   time.Time `json:"created"`
	Put       int64     `json:"put"` // as in born
	Size      int64     `json:"size"`
	Attempts  int       `json:"attempts,omitempty"`
	Tries     int       `json:"tries,omitempty"`
	Next      int64     `json:"next,omitempty"` // as in due; 0: never attempted
	LastError string    `json:"last_error,omitempty"`
}

type fileDead struct {
	ID       string    `json:"id"`
	Died     int64     `json:"died"`
	Created  time.Time `json:"created"`
	Commit   string    `json:"commit,omitempty"`
	Event    int       `json:"event,omitempty"`
	Callback string    `json:"callback,omitempty"`
	Address  *string   `json:"address,omitempty"`
	Props    []byte    `json:"props,omitempty"`
	Body     []byte    `json:"body"`
	Attempts int       `json:"attempts,omitempty"`
	Reason   string    `json:"reason"`
}

var fileBuckets = []string{"message", "state", "id", "fresh", "due", "born", "dead", "died", "meta"}

// Open opens or creates the file. It returns ErrInUse when another process has it open.
func Open(path string, o Options) (*Store, error) {
	if o.InUseTimeout <= 0 {
		o.InUseTimeout = time.Second
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: o.InUseTimeout,
		// Writing the list of free pages with each commit would cost more the larger the file once was.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bberrors.ErrTimeout):
		return nil, fmt.Errorf(
			"open queue file %s: %w: stop the relay that serves from it, or use the commands that ask it", path,
			queue.ErrInUse)
	case err != nil:
		return nil, fmt.Errorf("open queue file %s: %w", path, err)
	}
	// Puts that come within a millisecond share one fsync.
	db.MaxBatchDelay = time.Millisecond
	f := &Store{db: db, path: path, slots: make(chan struct{}, 64),
		reserve: &reserve{path: path + ".reserve", size: reserveSize, db: db, page: db.Info().PageSize}}
	f.SetLimits(o.Limits)
	if err := prepare(db); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare queue file %s: %w", path, err), db.Close())
	}
	_ = f.reserve.available() // the next put will say why not
	return f, nil
}

// prepare makes the buckets where they are absent; a full disk does not keep an existing file from being
// opened.
func prepare(db *bbolt.DB) error {
	complete := true
	err := db.View(func(tx *bbolt.Tx) error {
		for _, name := range fileBuckets {
			complete = complete && tx.Bucket([]byte(name)) != nil
		}
		return nil
	})
	if err != nil || complete {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range fileBuckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetLimits replaces the limits from the next call on.
func (f *Store) SetLimits(l queue.Limits) { f.limits.Store(&l) }

// Close waits for running calls and closes the file.
func (f *Store) Close() error {
	f.running.Wait()
	if err := f.db.Close(); err != nil {
		return fmt.Errorf("close queue file %s: %w", f.path, err)
	}
	return nil
}

// onFile runs fn, which uses the file, and gives up waiting for it when ctx ends: a disk may not answer. fn
// goes on then, and its result is dropped. what names the operation in errors.
func onFile[T any](ctx context.Context, f *Store, what string, fn func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("%s in %s: %w", what, f.path, ctx.Err())
	}
	done := make(chan result, 1) // one result, that nobody may be waiting for
	f.running.Go(func() {
		defer func() { <-f.slots }()
		value, err := fn()
		done <- result{value, err}
	})
	select {
	case r := <-done:
		if r.err != nil {
			return r.value, fmt.Errorf("%s in %s: %w", what, f.path, r.err)
		}
		return r.value, nil
	case <-ctx.Done():
		return none, fmt.Errorf("%s in %s: %w", what, f.path, ctx.Err())
	}
}

// fileTx is a transaction with our buckets at hand.
type fileTx struct{ *bbolt.Tx }

func (tx fileTx) in(name string) *bbolt.Bucket { return tx.Bucket([]byte(name)) }

// update changes or deletes what is there; on a full disk it uses up the reserve.
func (f *Store) update(ctx context.Context, what string, fn func(fileTx) error) error {
	return f.write(ctx, what, func() error {
		err := f.batch(fn)
		if noSpace(err) && f.reserve.release() {
			err = f.batch(fn)
		}
		return err
	})
}

// add stores what was not there; it leaves the reserve alone.
func (f *Store) add(ctx context.Context, what string, fn func(fileTx) error) error {
	return f.write(ctx, what, func() error {
		if err := f.reserve.available(); err != nil {
			return err
		}
		err := f.batch(fn)
		if noSpace(err) {
			f.reserve.refused(err)
		}
		return err
	})
}

func (f *Store) write(ctx context.Context, what string, fn func() error) error {
	_, err := onFile(ctx, f, what, func() (struct{}, error) { return struct{}{}, fn() })
	return err
}

// batch runs fn in a transaction that it may share.
func (f *Store) batch(fn func(fileTx) error) error {
	return f.db.Batch(func(tx *bbolt.Tx) error { return fn(fileTx{tx}) })
}

func view[T any](ctx context.Context, f *Store, what string, fn func(fileTx) (T, error)) (T, error) {
	return onFile(ctx, f, what, func() (value T, err error) {
		err = f.db.View(func(tx *bbolt.Tx) error {
			value, err = fn(fileTx{tx})
			return err
		})
		return value, err
	})
}

// key gives numbers as bytes in an order that is theirs.
func key(numbers ...uint64) []byte {
	b := make([]byte, 0, 8*len(numbers))
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func seqOf(k []byte) uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// Put implements Store. Puts that come together share a transaction; each waits for its fsync.
func (f *Store) Put(ctx context.Context, unsent []message.Unsent,
	undeliverable []message.Undeliverable) (queue.Stored, error) {
	limits := f.limits.Load()
	in := queue.SortOut(unsent, undeliverable, limits.MaxAttempts)
	if len(in.Rows) == 0 && len(in.Dead) == 0 {
		return queue.Stored{}, nil
	}
	what := queue.PutText(len(in.Rows), len(in.Dead))
	err := f.add(ctx, what, func(tx fileTx) error {
		if limits.MaxBytes > 0 && tx.bytes()+in.Size > limits.MaxBytes {
			return fmt.Errorf("%w: max_bytes is %d; raise it, or see 'koji-relay queue status'", queue.ErrFull,
				limits.MaxBytes)
		}
		for i := range in.Rows {
			if err := tx.insert(&in.Rows[i]); err != nil {
				return err
			}
		}
		for i := range in.Dead {
			if err := tx.insertDead(&in.Dead[i]); err != nil {
				return err
			}
		}
		failpoint.Hit("before-put-commit")
		return nil
	})
	if err != nil {
		return queue.Stored{}, err
	}
	failpoint.Hit("after-put-before-answer")
	return in.Stored(), nil
}

// Probe implements queue.Store. A put needs the reserve, room on the disk, and a transaction.
func (f *Store) Probe(ctx context.Context) error {
	return f.write(ctx, "probe the queue by writing", func() error {
		if err := f.reserve.probe(); err != nil {
			return err
		}
		return f.batch(func(tx fileTx) error {
			return tx.in("meta").Put([]byte("probe"), key(uint64(time.Now().UnixMicro())))
		})
	})
}

func (tx fileTx) bytes() int64 {
	b := tx.in("meta").Get([]byte("bytes"))
	if b == nil {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

func (tx fileTx) addBytes(n int64) error {
	return tx.in("meta").Put([]byte("bytes"), key(uint64(max(0, tx.bytes()+n))))
}

// insert stores a message under the next number, unless its id is known.
func (tx fileTx) insert(r *queue.Row) error {
	ids := tx.in("id")
	if ids.Get([]byte(r.ID)) != nil {
		return nil
	}
	seq, err := tx.in("message").NextSequence()
	if err != nil {
		return err
	}
	record := binary.AppendUvarint(make([]byte, 0, len(r.PropsText)+len(r.Body)+binary.MaxVarintLen64),
		uint64(len(r.PropsText)))
	record = append(append(record, r.PropsText...), r.Body...)
	now := time.Now()
	s := fileState{ID: r.ID, Commit: r.Commit, Event: r.Event, Callback: r.Callback, Address: r.Address,
		Created: r.Created, Put: max(0, now.Add(-r.Age).UnixMicro()), Size: r.Bytes, Attempts: r.Attempts,
		Tries: r.Tries, LastError: r.LastError}
	if r.Aside {
		s.Next = now.Add(r.Delay).UnixMicro()
	}
	return errors.Join(
		ids.Put([]byte(r.ID), key(seq)),
		tx.in("message").Put(key(seq), record),
		tx.in("born").Put(key(uint64(s.Put), seq), nil),
		tx.putState(seq, s),
		tx.addBytes(s.Size))
}

// putState stores s and enters it into the walk that it belongs to.
func (tx fileTx) putState(seq uint64, s fileState) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := tx.in("state").Put(key(seq), text); err != nil {
		return err
	}
	size := key(uint64(s.Size))
	if s.Next == 0 {
		return tx.in("fresh").Put(key(seq), size)
	}
	return tx.in("due").Put(key(uint64(s.Next), seq), size)
}

func (tx fileTx) state(seq uint64) (fileState, error) {
	var s fileState
	text := tx.in("state").Get(key(seq))
	if text == nil {
		return s, queue.ErrNotFound
	}
	return s, json.Unmarshal(text, &s)
}

// leaveWalk takes s out of the walk that putState entered it into.
func (tx fileTx) leaveWalk(seq uint64, s fileState) error {
	if s.Next == 0 {
		return tx.in("fresh").Delete(key(seq))
	}
	return tx.in("due").Delete(key(uint64(s.Next), seq))
}

// remove deletes a message altogether.
func (tx fileTx) remove(seq uint64, s fileState) error {
	return errors.Join(
		tx.leaveWalk(seq, s),
		tx.in("id").Delete([]byte(s.ID)),
		tx.in("message").Delete(key(seq)),
		tx.in("born").Delete(key(uint64(s.Put), seq)),
		tx.in("state").Delete(key(seq)),
		tx.addBytes(-s.Size))
}

// body gives the stored props and body of a message. They are valid as long as the transaction.
func (tx fileTx) body(seq uint64) (props, body []byte, err error) {
	record := tx.in("message").Get(key(seq))
	n, width := binary.Uvarint(record)
	if width <= 0 || uint64(len(record)-width) < n {
		return nil, nil, fmt.Errorf("message %d is damaged", seq)
	}
	return record[width : width+int(n)], record[width+int(n):], nil
}

func (tx fileTx) insertDead(d *queue.DeadRow) error {
	if tx.in("dead").Get([]byte(d.ID)) != nil {
		return nil
	}
	died := d.Died
	if died.IsZero() {
		died = time.Now()
	}
	return tx.replaceDead(fileDead{ID: d.ID, Died: max(0, died.UnixMicro()), Created: d.Created,
		Commit: d.Commit, Event: d.Event, Callback: d.Callback, Address: d.Address, Props: d.Props, Body: d.Body,
		Attempts: d.Attempts, Reason: d.Reason})
}

func (tx fileTx) replaceDead(d fileDead) error {
	if err := tx.removeDead(d.ID); err != nil && !errors.Is(err, queue.ErrNotFound) {
		return err
	}
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return errors.Join(
		tx.in("dead").Put([]byte(d.ID), text),
		tx.in("died").Put(append(key(uint64(d.Died)), d.ID...), nil))
}

func (tx fileTx) deadLetter(id string) (fileDead, error) {
	var d fileDead
	text := tx.in("dead").Get([]byte(id))
	if text == nil {
		return d, queue.ErrNotFound
	}
	return d, json.Unmarshal(text, &d)
}

func (tx fileTx) removeDead(id string) error {
	d, err := tx.deadLetter(id)
	if err != nil {
		return err
	}
	return errors.Join(
		tx.in("dead").Delete([]byte(id)),
		tx.in("died").Delete(append(key(uint64(d.Died)), id...)))
}
