package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// dayBatch is what one day gets of a batch.
type dayBatch struct {
	rows  []history.Row
	steps []history.Step
}

// Append implements history.Store. Each file is a transaction of its own; the last one says that the writer
// was alive. A batch that was written after its context had ended is not written again: a disk that did not
// answer in time does no harm.
func (s *Store) Append(ctx context.Context, b *history.Batch) error {
	s.mu.RLock()
	full := s.full
	s.mu.RUnlock()
	if full && len(b.Rows) > 0 {
		return fmt.Errorf("write to the history in %s: %w; raise it", s.dir, history.ErrFull)
	}
	_, err := change(ctx, s, func() (struct{}, error) {
		if s.last == b {
			return struct{}{}, nil
		}
		err := s.append(b)
		if err == nil {
			s.last = b
		}
		return struct{}{}, err
	})
	return err
}

func (s *Store) append(b *history.Batch) error {
	known := *b
	var err error
	if known.Steps, err = s.withHanded(b.Steps); err != nil {
		return err
	}
	days := byDay(&known)
	for _, name := range slices.Sorted(maps.Keys(days)) {
		db, err := s.day(name)
		if err != nil {
			return err
		}
		if err := db.Update(func(tx *bbolt.Tx) error { return days[name].write(tx) }); err != nil {
			return fmt.Errorf("write to the history in %s: %w", db.Path(), err)
		}
	}
	return s.state.Update(func(tx *bbolt.Tx) error { return writeState(tx, &known) })
}

// withHanded gives steps with the time when their messages were handed over, where that is not known.
func (s *Store) withHanded(steps []history.Step) ([]history.Step, error) {
	known := slices.Clone(steps)
	for i := range known {
		st := &known[i]
		if !st.Handed.IsZero() {
			continue
		}
		rows, _, err := s.Load(context.Background(), []string{st.ID}, false)
		if err != nil {
			return nil, err
		}
		if st.Handed = st.Time; len(rows) > 0 {
			st.Handed = rows[0].Handed
		}
	}
	return known, nil
}

// byDay sorts a batch into the days of its messages: a step is dropped with its message.
func byDay(b *history.Batch) map[string]*dayBatch {
	days := map[string]*dayBatch{}
	of := func(t time.Time) *dayBatch {
		name := t.UTC().Format(dayFormat)
		if days[name] == nil {
			days[name] = &dayBatch{}
		}
		return days[name]
	}
	for _, r := range b.Rows {
		d := of(r.Handed)
		d.rows = append(d.rows, r)
	}
	for _, st := range b.Steps {
		d := of(st.Handed)
		d.steps = append(d.steps, st)
	}
	return days
}

func writeState(tx *bbolt.Tx, b *history.Batch) error {
	gaps, open := tx.Bucket([]byte("gap")), tx.Bucket([]byte("open"))
	var errs []error
	for _, g := range b.Gaps {
		errs = append(errs, put(gaps, append(at(g.Began), number(gaps)...), g))
	}
	for i := range b.Rows {
		if r := &b.Rows[i]; r.First.Kind == inspect.Queued {
			errs = append(errs, open.Put(place(r.Handed, r.ID), nil))
		}
	}
	for i := range b.Steps {
		switch st := &b.Steps[i]; {
		case st.Kind == inspect.Queued:
			errs = append(errs, open.Put(place(st.Handed, st.ID), nil))
		case st.Kind.Fate():
			errs = append(errs, open.Delete(place(st.Handed, st.ID)))
		}
	}
	if b.Writer != "" {
		errs = append(errs, put(tx.Bucket([]byte("writer")), []byte(b.Writer), fileWriter{Alive: time.Now()}))
	}
	return errors.Join(errs...)
}

// place is the key of a message, in the order of searches.
func place(handed time.Time, id string) []byte { return append(at(handed), idKey(id)...) }

func idKey(id string) []byte {
	parsed := uuid.MustParse(id) // the recorder lets no other through
	return parsed[:]
}

// wordKey ends with a zero byte, which no word has, so that no word is the beginning of another. Without a
// word it is the beginning of all words of a kind.
func wordKey(kind, word string) []byte {
	key := append([]byte(kind), 0)
	if word == "" {
		return key
	}
	return append(append(key, bytes.ReplaceAll([]byte(word), []byte{0}, []byte{'?'})...), 0)
}

func hasPrefix(key, prefix []byte) bool { return key != nil && bytes.HasPrefix(key, prefix) }

// storedRow is a row without what is in its key, and without its content.
type storedRow struct {
	Commit   string       `json:"c,omitempty"`
	Event    int          `json:"e,omitempty"`
	Callback string       `json:"cb,omitempty"`
	Address  string       `json:"a,omitempty"`
	Via      string       `json:"v,omitempty"`
	Keys     history.Keys `json:"k,omitzero"`
	Size     int          `json:"s,omitempty"`
	First    inspect.Step `json:"f"`
}

func (d *dayBatch) write(tx *bbolt.Tx) error {
	var errs []error
	for i := range d.steps {
		st := &d.steps[i]
		if row, ok := unknownMessage(tx, st); ok {
			errs = append(errs, writeRow(tx, &row))
		}
		errs = append(errs, writeStep(tx, st))
	}
	for i := range d.rows {
		errs = append(errs, writeRow(tx, &d.rows[i]))
	}
	return errors.Join(errs...)
}

// unknownMessage gives a row for the message of a step that the history does not hold.
func unknownMessage(tx *bbolt.Tx, st *history.Step) (history.Row, bool) {
	if st.Message == nil {
		return history.Row{}, false
	}
	id := idKey(st.ID)
	if k, _ := tx.Bucket([]byte("id")).Cursor().Seek(id); hasPrefix(k, id) {
		return history.Row{}, false
	}
	row, err := history.NewRow(st.Message, inspect.ViaQueue,
		inspect.Step{Time: st.Handed, Kind: inspect.Queued, Reason: "found in the queue"})
	return row, err == nil
}

// inOrder is how full a page gets before it is parted.
const inOrder = 0.95

func writeRow(tx *bbolt.Tx, r *history.Row) error {
	rows, words, index := tx.Bucket([]byte("row")), tx.Bucket([]byte("word")), tx.Bucket([]byte("index"))
	contents := tx.Bucket([]byte("content"))
	// What comes in the order of its keys fills pages; half of each would stay empty.
	rows.FillPercent, contents.FillPercent = inOrder, inOrder
	where := place(r.Handed, r.ID)
	key := append(slices.Clone(where), number(rows)...)
	errs := []error{
		put(rows, key, storedRow{Commit: r.Commit, Event: r.Event, Callback: r.Callback, Address: r.Address,
			Via:  r.Via,
			Keys: r.Keys, Size: r.Size, First: r.First}),
		tx.Bucket([]byte("id")).Put(append(idKey(r.ID), key[len(where):]...), key[:8]),
	}
	if r.Content != nil {
		errs = append(errs, contents.Put(key, r.Content))
	}
	for _, w := range rowWords(r) {
		errs = append(errs, index.Put(append(wordKey(w.kind, w.word), where...), nil))
		if w.kind == string(history.Tags) || w.kind == string(history.Addresses) {
			errs = append(errs, words.Put(append(wordKey(w.kind, ""), w.word...), nil))
		}
	}
	return errors.Join(errs...)
}

type kindAndWord struct{ kind, word string }

// rowWords are the words by which a row is found. A word that is too long for a key is none: nobody types it.
func rowWords(r *history.Row) []kindAndWord {
	all := []kindAndWord{{string(history.Tags), r.Keys.Tag}, {string(history.Addresses), r.Address},
		{"package", r.Keys.Package}, {"build", r.Keys.Build},
		{"user", r.Keys.User}}
	if r.Keys.Task != 0 {
		all = append(all, kindAndWord{"task", fmt.Sprint(r.Keys.Task)})
	}
	if r.First.Kind != inspect.Accepted {
		all = append(all, kindAndWord{"fate", string(r.First.Kind)})
	}
	const longest = 4096
	return slices.DeleteFunc(all, func(w kindAndWord) bool { return w.word == "" || len(w.word) > longest })
}

func writeStep(tx *bbolt.Tx, st *history.Step) error {
	b := tx.Bucket([]byte("step"))
	err := put(b, append(idKey(st.ID), number(b)...), st.Step)
	if st.Kind.Fate() && st.Kind != inspect.Accepted && st.Kind != inspect.Queued {
		key := append(wordKey("fate", string(st.Kind)), place(st.Handed, st.ID)...)
		err = errors.Join(err, tx.Bucket([]byte("index")).Put(key, nil))
	}
	return err
}

func readRow(text []byte) (history.Row, error) {
	var r storedRow
	err := json.Unmarshal(text, &r)
	return history.Row{Commit: r.Commit, Event: r.Event, Callback: r.Callback, Address: r.Address,
		Via: r.Via, Keys: r.Keys,
		Size: r.Size, First: r.First}, err
}
