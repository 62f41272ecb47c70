// Package file keeps the history in a directory, in one bbolt file for each day: for sites that want no
// more load on Koji's database, and for hosts without one. One process has the directory open at a time.
//
// A day goes by removing its file. bbolt maps files into memory, so that what is looked at is read from
// there.
package file

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// Store implements history.Store.
//
// The file state.db says what is not of a day:
//
//	gap      began, number -> JSON of inspect.Gap
//	writer   name          -> JSON of fileWriter
//	open     handed, id    -> nothing; messages whose last step is to be queued
//
// A file 2026-11-26.db has all about messages handed over on that day, UTC. Times are 8 bytes, big endian,
// and ids 16 bytes, so that byte order is the order of searches.
//
//	row      handed, id, number     -> JSON of storedRow
//	content  handed, id, number     -> properties and body, packed
//	step     id, number             -> JSON of inspect.Step
//	id       id, number             -> handed
//	index    kind, word, handed, id -> nothing
//	word     kind, word             -> nothing
type Store struct {
	dir     string
	state   *bbolt.DB
	writing chan struct{} // holds one: a file is being written

	mu   sync.RWMutex         // held for writing while days are opened and dropped; guards the fields below
	days map[string]*bbolt.DB // by name, such as 2026-11-26
	full bool                 // today alone takes more than there may be
}

type fileWriter struct {
	Alive   time.Time `json:"alive"`
	Stopped bool      `json:"stopped"`
}

const (
	dayFormat = "2006-01-02"
	// lockTimeout is how long Open waits for another process to let go of the directory.
	lockTimeout = time.Second
)

var dayBuckets = []string{"row", "content", "step", "id", "index", "word"}

// Open opens the directory, which it creates in an existing one. It returns history.ErrInUse when another
// process has it.
func Open(dir string) (*Store, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create the history's directory: %w", err)
	}
	state, err := openDB(filepath.Join(dir, "state.db"), "gap", "writer", "open", "replay", "line")
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, state: state, writing: make(chan struct{}, 1), days: map[string]*bbolt.DB{}}
	names, err := filepath.Glob(filepath.Join(dir, "????-??-??.db"))
	for i := 0; err == nil && i < len(names); i++ {
		_, err = s.day(strings.TrimSuffix(filepath.Base(names[i]), ".db"))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func openDB(path string, buckets ...string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600,
		&bbolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bberrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w: stop the relay that writes it, or use the commands that ask it",
			path, history.ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), db.Close())
	}
	return db, nil
}

// day gives the file of a day, which it creates where there is none.
func (s *Store) day(name string) (*bbolt.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if db := s.days[name]; db != nil {
		return db, nil
	}
	db, err := openDB(filepath.Join(s.dir, name+".db"), dayBuckets...)
	if err == nil {
		s.days[name] = db
	}
	return db, err
}

// Close implements history.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.state.Close()}
	for _, db := range s.days {
		errs = append(errs, db.Close())
	}
	s.days = nil
	return errors.Join(errs...)
}

// update changes a file. A disk that does not answer is waited for.
func (s *Store) update(ctx context.Context, db *bbolt.DB, f func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return db.Update(f)
}

// write is update for the recorder, which must come to its end on a disk that does not answer. f may go on
// after ctx has ended, so it sets nothing of the caller. There is one such f at a time.
func (s *Store) write(ctx context.Context, db *bbolt.DB, f func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.writing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("the disk has not answered: %w", ctx.Err())
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-s.writing }()
		done <- db.Update(f)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the disk has not answered: %w", ctx.Err())
	}
}

func at(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(max(0, t.UnixMicro()))) }

func timeOf(b []byte) time.Time { return time.UnixMicro(int64(binary.BigEndian.Uint64(b))) }

// number gives the next number of a bucket, so that keys differ.
func number(b *bbolt.Bucket) []byte {
	n, _ := b.NextSequence() // fails in a transaction that only reads
	return binary.BigEndian.AppendUint64(nil, n)
}

func put(b *bbolt.Bucket, key []byte, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put(key, text)
}

// Begin implements history.Store.
func (s *Store) Begin(ctx context.Context, writer string) (alive time.Time, err error) {
	found := make(chan time.Time, 1)
	err = s.write(ctx, s.state, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("writer"))
		var w fileWriter
		if text := b.Get([]byte(writer)); text != nil {
			if err := json.Unmarshal(text, &w); err != nil {
				return err
			}
		}
		if w.Stopped {
			w.Alive = time.Time{}
		}
		found <- w.Alive
		return put(b, []byte(writer), fileWriter{Alive: time.Now()})
	})
	if err != nil {
		return alive, err
	}
	return <-found, nil
}

// End implements history.Store.
func (s *Store) End(ctx context.Context, writer string) error {
	return s.write(ctx, s.state, func(tx *bbolt.Tx) error {
		return put(tx.Bucket([]byte("writer")), []byte(writer), fileWriter{Alive: time.Now(), Stopped: true})
	})
}

// Gaps implements history.Store.
func (s *Store) Gaps(_ context.Context, since, until time.Time) (gaps []inspect.Gap, err error) {
	err = s.state.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("gap")).ForEach(func(_, text []byte) error {
			var g inspect.Gap
			if err := json.Unmarshal(text, &g); err != nil {
				return err
			}
			if !g.Ended.Before(since) && (until.IsZero() || g.Began.Before(until)) {
				gaps = append(gaps, g)
			}
			return nil
		})
	})
	return gaps, err
}

// Words implements history.Store.
func (s *Store) Words(_ context.Context, k history.Kind, match func(string) bool) ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := map[string]bool{}
	for _, db := range s.days {
		err := db.View(func(tx *bbolt.Tx) error {
			prefix := wordKey(string(k), "")
			c := tx.Bucket([]byte("word")).Cursor()
			for key, _ := c.Seek(prefix); hasPrefix(key, prefix); key, _ = c.Next() {
				if w := string(key[len(prefix):]); !found[w] && match(w) {
					found[w] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	words := make([]string, 0, len(found))
	for w := range found {
		words = append(words, w)
	}
	slices.Sort(words)
	return words, nil
}
