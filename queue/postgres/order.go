package postgres

import (
	"context"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/failpoint"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/queue"
)

// Order of first attempts (preserve_order). What is guaranteed, by whom:
//
//   - Let the hub call of commit B begin after the hub call of commit A has returned. Then each message of A
//     is first attempted before each message of B. Commits whose hub calls overlap have no order that the
//     relay could know; with delivery = outbox they have one all the same, that of their inserts into the
//     outbox, which is that of their hub commits wherever one waited for a lock of the other, such as that of
//     a build.
//   - When A's call has returned, each of its messages was accepted or refused by a broker (it was
//     attempted), or is a row of the queue, or its events are rows of the outbox. Publish asks Backlog before
//     it sends B. With rows in the outbox it must append B to the outbox (AppendOutbox); with never-attempted
//     rows in the queue it must put B there; only else may it send. Commits read from the outbox look at the
//     queue only. So nothing passes anything: the outbox is behind the queue, and the queue behind what is
//     being sent.
//   - A row stays until its first attempt is over: the drain deletes or sets aside after the outcome, the
//     outbox reader deletes after Take. So Backlog sees what another relay, or a killed one, had in hand.
//     Rows set aside were attempted.
//   - The drain reads never-attempted rows by proton_queue.id. Where one put began after another was
//     committed, their ids are in that order, because the sequence counts one by one. A put that is committed
//     after one with later ids was read comes next, before all that are put from then on; so does a commit in
//     the outbox.
//
//   - A server that crashed or failed over may have forgotten numbers of the sequences that nobody committed,
//     and gives them again. What Backlog saw before does not count then.
//
// Limits: it is order of attempts, not of arrival, since a message refused for its own sake is tried again
// later. Within a batch order is the sender's. A process that was frozen and comes back may repeat a batch,
// with the same ids. Rows that protonmsg wrote count from the first pass on. An unreachable database hides
// the backlog.

// Backlog implements Store. Deleted rows that an old snapshot keeps in the way are passed over, see marks.
func (p *Store) Backlog(ctx context.Context) (queue.Backlog, error) {
	var now time.Time
	var fullQueue, fullOutbox bool
	var queued, queueEnd, event, outboxEnd *int64
	err := p.do(ctx, "look for a backlog", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		now = time.Now()
		var fromQueue, fromOutbox int64
		p.mu.Lock()
		fromQueue, fullQueue = p.backlog.start(now, born(conn), math.MinInt64)
		fromOutbox, fullOutbox = p.outbox.start(now, born(conn), math.MinInt64)
		p.mu.Unlock()
		return conn.QueryRow(ctx, p.sql(`
			SELECT (SELECT queue_id FROM koji_relay.delivery WHERE next_attempt IS NULL AND queue_id > $1
				ORDER BY queue_id LIMIT 1),
				pg_sequence_last_value('{sequence}'::regclass),
				(SELECT id FROM koji_relay.outbox WHERE id > $2 ORDER BY id LIMIT 1),
				pg_sequence_last_value('koji_relay.outbox_id_seq'::regclass)`), fromQueue, fromOutbox).
			Scan(&queued, &queueEnd, &event, &outboxEnd)
	})
	if err != nil {
		return queue.Backlog{}, err
	}
	cost := time.Since(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	seen(&p.backlog, now, cost, fullQueue, queued, queueEnd)
	seen(&p.outbox, now, cost, fullOutbox, event, outboxEnd)
	return queue.Backlog{Queue: queued != nil, Outbox: event != nil}, nil
}

// seen notes that nothing is left before first, or, where there is none, up to end.
func seen(m *marks[int64], now time.Time, cost time.Duration, full bool, first, end *int64) {
	if full {
		m.walked(now, cost)
	}
	switch {
	case first != nil:
		m.reached(now, *first-1)
	case end != nil:
		m.reached(now, *end)
	}
}

// AppendOutbox adds the events of c to the outbox, behind those that are there, as the hub does: for publish,
// when order is to be kept and the outbox is not empty. Events that are there already stay. They are
// committed when it returns nil.
func (p *Store) AppendOutbox(ctx context.Context, c message.Commit) error {
	if len(c.Events) == 0 {
		return nil
	}
	n := len(c.Events)
	numbers, callbacks, kwargs := make([]int32, n), make([]string, n), make([]string, n)
	for i, e := range c.Events {
		numbers[i], callbacks[i], kwargs[i] = int32(e.Number), e.Callback, string(e.Kwargs)
	}
	what := "append " + inspect.Count(n, "event") + " to the outbox"
	err := p.do(ctx, what, callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		failpoint.Hit("before-append-commit")
		_, err := conn.Exec(ctx, `INSERT INTO koji_relay.outbox (commit, event, callback, kwargs)
			SELECT $1::uuid, e.event, e.callback, e.kwargs::json
			FROM unnest($2::int[], $3::text[], $4::text[]) WITH ORDINALITY AS e(event, callback, kwargs, position)
			ORDER BY e.position ON CONFLICT DO NOTHING`, c.ID, numbers, callbacks, kwargs)
		return err
	})
	if err == nil {
		p.news.add(notifyOutbox)
	}
	return err
}
