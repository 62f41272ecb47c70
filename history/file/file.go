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
//	index    kind, word, handed, id -> nothing; kinds are address, build, fate, package, tag, task, user
//	word     kind, word             -> nothing
type Store struct {
	dir      string
	state    *bbolt.DB
	changing chan struct{}  // holds one: files are being changed
	last     *history.Batch // that was written; of whoever changes files
	dropped  sync.WaitGroup // days whose file is closed when it is read no more; of whoever changes files

	mu   sync.RWMutex         // guards the fields below; no file is touched under it
	days map[string]*bbolt.DB // by name, such as 2026-11-26
	full bool                 // today alone takes more than there may be

	claimed time.Time // until when a replayer has the replays
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
	s := &Store{dir: dir, state: state, changing: make(chan struct{}, 1), days: map[string]*bbolt.DB{}}
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
	// The list of free pages is kept in the file: without it each start would walk through all of them.
	db, err := bbolt.Open(path, 0o600,
		&bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType})
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

// day gives the file of a day, which it creates where there is none. Whoever calls it is changing files.
func (s *Store) day(name string) (*bbolt.DB, error) {
	s.mu.RLock()
	db := s.days[name]
	s.mu.RUnlock()
	if db != nil {
		return db, nil
	}
	db, err := openDB(s.path(name), dayBuckets...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.days[name] = db
	return db, nil
}

func (s *Store) path(day string) string { return filepath.Join(s.dir, day+".db") }

// dayFile is the file of a day, as a search has it. It may be dropped meanwhile: see gone.
type dayFile struct {
	name string
	db   *bbolt.DB
}

// files gives the days from first to last, oldest first.
func (s *Store) files(first, last string) []dayFile {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []dayFile
	for name, db := range s.days {
		if name >= first && name <= last {
			all = append(all, dayFile{name, db})
		}
	}
	slices.SortFunc(all, func(a, b dayFile) int { return strings.Compare(a.name, b.name) })
	return all
}

const (
	firstDay = ""
	lastDay  = "9"
)

// view is bbolt's View of a day. Of one that has been dropped there is nothing to see.
func (f dayFile) view(see func(*bbolt.Tx) error) error {
	err := f.db.View(see)
	if errors.Is(err, bberrors.ErrDatabaseNotOpen) {
		return nil
	}
	return err
}

// Close implements history.Store. It waits for changes and searches under way.
func (s *Store) Close() error {
	s.changing <- struct{}{} // for good: nothing is changed any more
	s.dropped.Wait()
	s.mu.Lock()
	days := s.days
	s.days = nil
	s.mu.Unlock()
	errs := []error{s.state.Close()}
	for _, db := range days {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}

// change runs f, which changes files, behind the changes before it. It returns when f has ended, or when ctx
// has: a disk may not answer at all. f goes on then, so it sets nothing of the caller.
func change[T any](ctx context.Context, s *Store, f func() (T, error)) (result T, err error) {
	late := func() error { return fmt.Errorf("the disk of %s has not answered: %w", s.dir, ctx.Err()) }
	if ctx.Err() != nil {
		return result, ctx.Err()
	}
	select {
	case s.changing <- struct{}{}:
	case <-ctx.Done():
		return result, late()
	}
	type answer struct {
		result T
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-s.changing }()
		r, err := f()
		done <- answer{r, err}
	}()
	select {
	case a := <-done:
		return a.result, a.err
	case <-ctx.Done():
		return result, late()
	}
}

// update changes the state.
func (s *Store) update(ctx context.Context, f func(*bbolt.Tx) error) error {
	_, err := change(ctx, s, func() (struct{}, error) { return struct{}{}, s.state.Update(f) })
	return err
}

func at(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(max(0, t.UnixMicro()))) }

// timeOf is the time that b begins with; the first there is where that is none.
func timeOf(b []byte) time.Time { return time.UnixMicro(numberOf(b)) }

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
	return change(ctx, s, func() (alive time.Time, err error) {
		err = s.state.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("writer"))
			var w fileWriter
			if text := b.Get([]byte(writer)); text != nil {
				if json.Unmarshal(text, &w) != nil { // when it was alive is not known, and said no more
					w = fileWriter{}
				}
			}
			if alive = w.Alive; w.Stopped {
				alive = time.Time{}
			}
			return put(b, []byte(writer), fileWriter{Alive: time.Now()})
		})
		return alive, err
	})
}

// End implements history.Store.
func (s *Store) End(ctx context.Context, writer string) error {
	return s.update(ctx, func(tx *bbolt.Tx) error {
		return put(tx.Bucket([]byte("writer")), []byte(writer), fileWriter{Alive: time.Now(), Stopped: true})
	})
}

// Gaps implements history.Store.
func (s *Store) Gaps(_ context.Context, since, until time.Time) (gaps []inspect.Gap, err error) {
	err = s.state.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("gap")).ForEach(func(key, text []byte) error {
			var g inspect.Gap
			if err := json.Unmarshal(text, &g); err != nil {
				g = inspect.Gap{Began: timeOf(key), Ended: timeOf(key), Reason: damaged("this gap", err)}
			}
			if !g.Ended.Before(since) && (until.IsZero() || g.Began.Before(until)) {
				gaps = append(gaps, g)
			}
			return nil
		})
	})
	return gaps, err
}

// damaged says that a record cannot be read.
func damaged(what string, err error) string {
	return fmt.Sprintf("the record of %s is damaged: %v", what, err)
}

// Words implements history.Store.
func (s *Store) Words(_ context.Context, k history.Kind, match func(string) bool) ([]string, error) {
	found := map[string]bool{}
	for _, day := range s.files(firstDay, lastDay) {
		err := day.view(func(tx *bbolt.Tx) error {
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
