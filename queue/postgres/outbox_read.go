package postgres

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/message"
)

const (
	// outboxPage is the number of events that are read together.
	outboxPage = 500
	// A commit of more events or bytes is handed over in pieces, so that each can be stored within
	// store_timeout and a kill repeats little.
	pieceEvents = 200
	pieceBytes  = 4 << 20
)

// outboxEvent is what is known of an event before its kwargs are read.
type outboxEvent struct {
	id     int64
	commit string
	size   int
}

// read adds the next pieces to the window. It begins where the reader was some time ago: an event that was
// committed late appears before some that were taken, and must be taken before all that come from then on.
func (w *window) read(ctx context.Context) error {
	most := outboxPage + len(w.held) // these are read again, and passed over
	page, err := w.page(ctx, most)
	if err != nil {
		return err
	}
	w.more = len(page) == most
	end := int64(math.MinInt64)
	if len(page) > 0 {
		end = page[len(page)-1].id
	}
	fresh := slices.DeleteFunc(page, func(e outboxEvent) bool { return w.held[e.id] })
	taken := w.choose(fresh)
	w.full = len(taken) == 0 && len(fresh) > 0
	if err := w.load(ctx, taken); err != nil {
		return err
	}
	if left := leftOver(fresh, taken); left != math.MaxInt64 {
		w.more, end = true, left-1
	}
	if end != math.MinInt64 {
		w.walk.reached(time.Now(), end)
	}
	return nil
}

// leftOver is the first of fresh that is in none of groups.
func leftOver(fresh []outboxEvent, groups [][]outboxEvent) int64 {
	taken := map[int64]bool{}
	for _, g := range groups {
		for _, e := range g {
			taken[e.id] = true
		}
	}
	for _, e := range fresh {
		if !taken[e.id] {
			return e.id
		}
	}
	return math.MaxInt64
}

func (w *window) page(ctx context.Context, most int) ([]outboxEvent, error) {
	var page []outboxEvent
	err := w.store.do(ctx, "look into the outbox", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		began := time.Now()
		// The positions are of this window, and so of one session, which a crash of the server ends. Whatever
		// connection reads, they are believed: else each new one would walk past all that is held for others.
		from, full := w.walk.start(began, time.Time{}, math.MinInt64)
		if known, ok := w.walk.known(began, time.Time{}); full && ok && w.store.Shared() {
			from, full, w.lookBehind = known, false, !w.looking // a long walk: beside the reads
		}
		batch := &pgx.Batch{} // one transaction
		sql := `SELECT id, commit::text, octet_length(kwargs::text) FROM koji_relay.outbox o
			WHERE id > $1 AND $3 <> ALL (` + takenBy + `) ORDER BY id LIMIT $2`
		if full && w.store.Shared() { // past what is held for others
			batch.Queue(onlyMerge)
			sql = `SELECT o.id, o.commit::text, octet_length(o.kwargs::text) FROM ` + untaken + `$3
				WHERE o.id > $1 AND t.id IS NULL ORDER BY o.id LIMIT $2`
		}
		batch.Queue(sql, from, most, w.o.Name).Query(func(rows pgx.Rows) (err error) {
			page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (outboxEvent, error) {
				var e outboxEvent
				err := row.Scan(&e.id, &e.commit, &e.size)
				return e, err
			})
			return err
		})
		err := conn.SendBatch(ctx, batch).Close()
		if full && err == nil {
			w.walk.walked(began, time.Since(began))
		}
		return err
	})
	return page, err
}

// behind is what a full walk beside the reads has found.
type behind struct {
	began time.Time
	took  time.Duration
	ids   []int64 // of events that the reader has not taken, the first ones
	err   error
}

// look walks past what is held for others, up to where reads begin, beside them.
func (w *window) look(ctx context.Context) {
	w.lookBehind, w.looking = false, true
	end, _ := w.walk.known(time.Now(), time.Time{})
	go func() {
		b := behind{began: time.Now()}
		b.err = w.store.do(ctx, "look for late events in the outbox", callTimeout,
			func(ctx context.Context, conn *pgx.Conn) error {
				batch := &pgx.Batch{} // one transaction
				batch.Queue(onlyMerge)
				batch.Queue(`SELECT o.id FROM `+untaken+`$1 WHERE o.id <= $2 AND t.id IS NULL ORDER BY o.id LIMIT $3`,
					w.o.Name, end, mostHeld+1).Query(func(rows pgx.Rows) (err error) {
					b.ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
					return err
				})
				return conn.SendBatch(ctx, batch).Close()
			})
		b.took = time.Since(b.began)
		w.looked <- b
	}()
}

// noteBehind lets the next reads begin at the first event that was found and is not in hand.
func (w *window) noteBehind(b behind) error {
	w.looking = false
	if b.err != nil {
		return b.err
	}
	w.walk.walked(b.began, b.took)
	for _, id := range b.ids {
		if !w.held[id] {
			w.walk.back(time.Now(), id-1)
			w.more = true
			break
		}
	}
	return nil
}

// choose gives the pieces of fresh that are read now, as many as there is room for, and at least one when
// nothing is in hand. They are in the order of their first events.
func (w *window) choose(fresh []outboxEvent) [][]outboxEvent {
	var chosen [][]outboxEvent
	count, bytes := w.count, w.bytes
	for _, events := range wholeCommits(fresh, w.more) {
		for len(events) > 0 {
			n, size := 0, 0
			for n < len(events) && n < pieceEvents &&
				(n == 0 || size+events[n].size <= min(pieceBytes, w.o.MaxBytes)) {
				size += events[n].size
				n++
			}
			if count > 0 && bytes+size > w.o.MaxBytes {
				return chosen
			}
			chosen, events = append(chosen, events[:n]), events[n:]
			count++
			bytes += size
		}
	}
	return chosen
}

// wholeCommits groups the events of a page by commit, in the order of their first events. The last commit of
// a full page may go on beyond it and waits for the next page, unless it is alone.
func wholeCommits(page []outboxEvent, full bool) [][]outboxEvent {
	var groups [][]outboxEvent
	at := map[string]int{}
	for _, e := range page {
		i, known := at[e.commit]
		if !known {
			i = len(groups)
			at[e.commit] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], e)
	}
	if full && len(groups) > 1 {
		cut := at[page[len(page)-1].commit]
		groups = slices.Delete(groups, cut, len(groups))
	}
	return groups
}

// load reads the kwargs of groups. Each becomes a piece.
func (w *window) load(ctx context.Context, groups [][]outboxEvent) error {
	if len(groups) == 0 {
		return nil
	}
	var ids []int64
	pieces := make([]*piece, len(groups))
	of := map[int64]*piece{}
	for i, events := range groups {
		p := &piece{commit: message.Commit{ID: events[0].commit}, ids: map[int]int64{}}
		pieces[i] = p
		for _, e := range events {
			ids = append(ids, e.id)
			of[e.id] = p
			p.bytes += e.size
		}
	}
	err := w.store.do(ctx, "read events of the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			for _, p := range pieces {
				p.commit.Events = nil
				clear(p.ids)
			}
			rows, _ := conn.Query(ctx,
				`SELECT id, commit::text, event, callback, kwargs::text, coalesce(fallback, '')
				FROM koji_relay.outbox WHERE id = ANY($1) ORDER BY id`, ids)
			var id int64
			var e message.Event
			var kwargs []byte
			var commit, fallback string
			into := []any{&id, &commit, &e.Number, &e.Callback, &kwargs, &fallback}
			_, err := pgx.ForEachRow(rows, into, func() error {
				p := of[id]
				if p.commit.ID != commit {
					return nil // the id was used again
				}
				e.Kwargs = slices.Clone(kwargs)
				p.commit.Events = append(p.commit.Events, e)
				p.commit.Fallback = fallback
				p.ids[e.Number] = id
				return nil
			})
			return err
		})
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if len(p.commit.Events) == 0 {
			continue // deleted meanwhile
		}
		slices.SortFunc(p.commit.Events, func(a, b message.Event) int { return a.Number - b.Number })
		p.subjects = append(w.o.Subjects(p.commit), "commit "+p.commit.ID)
		w.add(p)
	}
	return nil
}

// doneEvent is an event that was dealt with. A failover to a standby that lagged behind loses rows, and the
// new primary gives their ids to other events: so an id alone does not say which one it was.
type doneEvent struct {
	id     int64
	commit string
}

// deleteDone deletes events that were dealt with, or marks them where another reader needs them; also when
// ctx has ended.
func (b *Outbox) deleteDone(ctx context.Context, done []doneEvent) error {
	if len(done) == 0 {
		return nil
	}
	ids, commits := make([]int64, len(done)), make([]string, len(done))
	for i, e := range done {
		ids[i], commits[i] = e.id, e.commit
	}
	if b.o.BeforeDelete != nil {
		b.o.BeforeDelete(context.WithoutCancel(ctx))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	err := b.store.finishOutbox(ctx, b.o.Name, ids, commits)
	if err == nil {
		failpoint.Hit("after-outbox-delete")
	}
	return err
}
