package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/internal/inspect"
	"koji-relay/internal/libpq"
)

// Append implements history.Store.
func (s *Store) Append(ctx context.Context, b *history.Batch) error {
	s.mu.Lock()
	full := s.full
	s.mu.Unlock()
	if full && len(b.Rows) > 0 {
		return fmt.Errorf("write to the history in %s: %w; raise it", s.name, history.ErrFull)
	}
	what := "write to the history"
	return s.do(ctx, what, func(ctx context.Context, conn *pgx.Conn) error {
		err := s.append(ctx, conn, b, asTheyAre)
		if code(err) == "23514" || code(err) == "42P01" { // its day is gone: dropped by another relay
			s.mu.Lock()
			clear(s.days)
			s.mu.Unlock()
			err = s.append(ctx, conn, b, asTheyAre)
		}
		if code(err) == "22P05" { // a character that the encoding of the database lacks
			plain := *b
			plain.Steps, plain.Gaps = slices.Clone(b.Steps), slices.Clone(b.Gaps)
			err = s.append(ctx, conn, &plain, toASCII)
		}
		return err
	})
}

// asTheyAre leaves the texts of a batch alone.
func asTheyAre([]history.Row, *history.Batch) {}

// toASCII rewrites the texts of a batch. What a message holds is packed, and stays as it is.
func toASCII(rows []history.Row, b *history.Batch) {
	words := func(texts ...*string) {
		for _, text := range texts {
			*text = libpq.PlainWords(*text)
		}
	}
	for i := range rows {
		r := &rows[i]
		words(&r.Callback, &r.Address, &r.First.Broker, &r.First.Reason)
		words(&r.Keys.Package, &r.Keys.Build, &r.Keys.Tag, &r.Keys.User)
	}
	for i := range b.Steps {
		words(&b.Steps[i].Broker, &b.Steps[i].Reason)
	}
	for i := range b.Gaps {
		words(&b.Gaps[i].Reason, &b.Gaps[i].Writer)
	}
}

func (s *Store) append(ctx context.Context, conn *pgx.Conn, b *history.Batch,
	rewrite func([]history.Row, *history.Batch)) error {
	found, err := unknownMessages(ctx, conn, b.Steps)
	if err != nil {
		return err
	}
	rows := slices.Concat(b.Rows, found)
	rewrite(rows, b)
	if err := lookUpHanded(ctx, conn, b.Steps); err != nil {
		return err
	}
	days := map[string]bool{}
	for i := range rows {
		days[rows[i].Handed.UTC().Format(dayFormat)] = true
	}
	for i := range b.Steps {
		days[b.Steps[i].Time.UTC().Format(dayFormat)] = true
	}
	if err := s.addDays(ctx, conn, days); err != nil {
		return err
	}
	words := s.newWords(rows)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if len(rows) > 0 {
			if err := messagesCopied(rows).write(ctx, tx, copyMessages); err != nil {
				return err
			}
		}
		if len(b.Steps) > 0 {
			if err := stepsCopied(b.Steps).write(ctx, tx, copySteps); err != nil {
				return err
			}
		}
		batch := &pgx.Batch{}
		queueWords(batch, words)
		queueOpen(batch, rows, b.Steps)
		for _, g := range b.Gaps {
			batch.Queue(`INSERT INTO koji_relay.history_gap (began, ended, messages, reason, writer) VALUES
				($1, $2, $3, $4, $5)`,
				g.Began, g.Ended, g.Messages, g.Reason, g.Writer)
		}
		batch.Queue(noteWriter, b.Writer, time.Now(), false)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err == nil {
		s.knowWords(words)
	}
	return err
}

// unknownMessages gives rows for the messages of steps that the history does not hold.
func unknownMessages(ctx context.Context, conn *pgx.Conn, steps []history.Step) ([]history.Row, error) {
	var ids []string
	for i := range steps {
		if steps[i].Message != nil {
			ids = append(ids, steps[i].ID)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	rows, _ := conn.Query(ctx, `SELECT message_id::text FROM koji_relay.history_message WHERE message_id =
		ANY($1::uuid[])`, ids)
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	var found []history.Row
	for i := range steps {
		st := &steps[i]
		if st.Message == nil || slices.Contains(known, st.ID) {
			continue
		}
		known = append(known, st.ID)
		row, err := history.NewRow(st.Message, inspect.ViaQueue, inspect.Step{Time: st.Handed,
			Kind:   inspect.Queued,
			Reason: "found in the queue"})
		if err != nil {
			continue // its step says what became of it
		}
		found = append(found, row)
	}
	return found, nil
}

// lookUpHanded fills in when the messages of steps were handed over, where that is not known.
func lookUpHanded(ctx context.Context, conn *pgx.Conn, steps []history.Step) error {
	var ids []string
	for i := range steps {
		if steps[i].Handed.IsZero() {
			ids = append(ids, steps[i].ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, _ := conn.Query(ctx, `SELECT message_id::text, min(at) FROM koji_relay.history_message
		WHERE message_id = ANY($1::uuid[]) GROUP BY 1`, ids)
	known := map[string]time.Time{}
	var id string
	var at time.Time
	_, err := pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		known[id] = at
		return nil
	})
	for i := range steps {
		if st := &steps[i]; st.Handed.IsZero() {
			if st.Handed = known[st.ID]; st.Handed.IsZero() {
				st.Handed = st.Time
			}
		}
	}
	return err
}

// newWords gives the tags and addresses that this process has not stored today.
func (s *Store) newWords(rows []history.Row) map[word]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if today := time.Now().UTC().Format(dayFormat); today != s.today || len(s.words) > maxWords {
		s.today = today
		clear(s.words)
	}
	found := map[word]bool{}
	for i := range rows {
		for _, w := range []word{{history.Tags, clean(rows[i].Keys.Tag)}, {history.Addresses,
			clean(rows[i].Address)}} {
			if w.text != "" && !s.words[w] {
				found[w] = true
			}
		}
	}
	return found
}

func (s *Store) knowWords(words map[word]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range words {
		s.words[w] = true
	}
}

// queueWords stores words in their order: two relays that store the same then wait for one another instead
// of locking each other up.
func queueWords(batch *pgx.Batch, words map[word]bool) {
	if len(words) == 0 {
		return
	}
	var sorted []word
	for w := range words {
		sorted = append(sorted, w)
	}
	slices.SortFunc(sorted, func(a, b word) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.text, b.text))
	})
	kinds, texts := make([]string, len(sorted)), make([]string, len(sorted))
	for i, w := range sorted {
		kinds[i], texts[i] = string(w.kind), w.text
	}
	batch.Queue(`INSERT INTO koji_relay.history_word (kind, word, seen)
		SELECT kind, word, (now() AT TIME ZONE 'UTC')::date FROM unnest($1::text[], $2::text[]) AS u(kind,
		word)
		ON CONFLICT (kind, word) DO UPDATE SET seen = excluded.seen WHERE history_word.seen <
		excluded.seen`, kinds, texts)
}

// queueOpen notes which messages wait in the queue now, and which no longer do.
func queueOpen(batch *pgx.Batch, rows []history.Row, steps []history.Step) {
	open := map[string]time.Time{}
	var closed []string
	for i := range rows {
		if rows[i].First.Kind == inspect.Queued {
			open[rows[i].ID] = rows[i].Handed
		}
	}
	for i := range steps {
		switch st := &steps[i]; {
		case st.Kind == inspect.Queued:
			open[st.ID] = st.Handed
		case st.Kind.Fate():
			delete(open, st.ID)
			closed = append(closed, st.ID)
		}
	}
	if len(open) > 0 {
		ids, handed := make([]string, 0, len(open)), make([]time.Time, 0, len(open))
		for id := range open {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		for _, id := range ids {
			handed = append(handed, open[id])
		}
		batch.Queue(`INSERT INTO koji_relay.history_open (message_id, handed) SELECT * FROM
			unnest($1::text[]::uuid[], $2::timestamptz[])
			ON CONFLICT (message_id) DO NOTHING`, ids, handed)
	}
	if len(closed) > 0 {
		slices.Sort(closed)
		batch.Queue(`DELETE FROM koji_relay.history_open WHERE message_id = ANY($1::text[]::uuid[])`,
			closed)
	}
}
