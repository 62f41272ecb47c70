package postgres

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"koji-relay/internal/failpoint"
	"koji-relay/queue"
)

// places are the positions of the walks that a pass makes. Each goes forward only.
type places struct {
	adopt int64 // proton_queue.id up to which rows without a delivery row were looked for
	fresh int64 // proton_queue.id up to which never-attempted messages were given
	due   time.Time
	dueID int64 // due and dueID: next_attempt and queue_id up to which messages set aside were given
}

var firstPlaces = places{adopt: math.MinInt64, fresh: math.MinInt64, dueID: math.MinInt64}

// pgPass is one run over the queue. The drain lock is held by a transaction that does nothing else, on a
// connection of its own; a goroutine ends it and begins the next one every few seconds, so that it never
// grows old.
type pgPass struct {
	store *Store
	began time.Time
	full  bool
	first places // where the pass began
	places
	given   map[int64]bool // proton_queue.id of messages behind fresh that were given and may be there still
	adopted bool           // the walk for rows of protonmsg reached the end
	behind  []string       // message-ids of rows that it found behind fresh
	turn    int            // counts batches, to take turns between fresh and due
	walking time.Duration  // spent on finding the first batch and on adopting
	reached []mark[places]

	conn    *pgxpool.Conn
	lockSQL string
	renewed atomic.Int64 // UnixNano of the last renewal; 0 when lost
	stop    context.CancelFunc
	renewer sync.WaitGroup
}

const (
	// The lock is renewed so often that its transaction stays well under 10 s even when one renewal is slow.
	renewEvery = 3 * time.Second
	// Unless renewed within lockTrust the lock counts as lost. The server gives up a session that idles for
	// 10 s.
	lockTrust = 9 * time.Second
)

// protonmsg takes this very row lock, so that either drains or the other. Where Koji's row does not exist (a
// database of our own, or a Koji before 1.25), protonmsg cannot drain either, and an advisory lock serves the
// relays.
const (
	lockRow      = `SELECT 1 FROM {koji}.locks WHERE name = 'protonmsg-plugin' FOR UPDATE SKIP LOCKED`
	lockAdvisory = `SELECT 1 WHERE pg_try_advisory_xact_lock(hashtext('koji_relay'), hashtext('drain'))`
)

// BeginDrain implements Store.
func (p *Store) BeginDrain(ctx context.Context) (queue.Pass, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	pass := &pgPass{store: p, began: time.Now(), given: map[int64]bool{}}
	if err := pass.lock(ctx); err != nil {
		return nil, p.explain("take the drain lock", err)
	}
	p.mu.Lock()
	pass.first, pass.full = p.walks.start(pass.began, born(pass.conn.Conn()), firstPlaces)
	p.mu.Unlock()
	pass.places = pass.first
	// A row that was adopted by a pass that failed must not lie behind the walk that is to give it.
	pass.fresh = min(pass.fresh, pass.adopt)
	renewing, stop := context.WithCancel(context.Background())
	pass.stop = stop
	pass.renewer.Go(func() { pass.renew(renewing) })
	return pass, nil
}

// lock opens the transaction that holds the drain lock.
func (s *pgPass) lock(ctx context.Context) error {
	conn, err := s.store.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	s.conn = conn
	s.lockSQL, err = chooseLock(ctx, conn.Conn(), s.store.names.Load())
	if err == nil {
		var held bool
		if held, err = s.exec(ctx, "BEGIN; "+s.lockSQL); err == nil && !held {
			_, err = s.exec(ctx, "ROLLBACK; SELECT 1")
			conn.Release()
			if err == nil {
				err = queue.ErrBusy
			}
			return err
		}
	}
	if err != nil {
		conn.Release()
		s.store.forget(err)
		return err
	}
	s.renewed.Store(time.Now().UnixNano())
	failpoint.Hit("holding-the-lock")
	return nil
}

// usableLocks gives nothing unless Koji's table of locks is there. It must belong to who owns proton_queue,
// or who may do everything anyway: another one's table could run that one's functions for us.
const usableLocks = `SELECT 1 FROM pg_class l, pg_class q
	WHERE l.oid = to_regclass('{koji}.locks') AND q.oid = to_regclass('{koji}.proton_queue') AND l.relkind = 'r'
	AND (l.relowner = q.relowner OR (SELECT rolsuper FROM pg_roles WHERE oid = l.relowner))`

// chooseLock gives the statement that takes the drain lock here.
func chooseLock(ctx context.Context, conn *pgx.Conn, n *names) (string, error) {
	there := func(sql string) (bool, error) {
		rows, _ := conn.Query(ctx, n.in(sql)) // CollectRows gives the error
		found, err := pgx.CollectRows(rows, pgx.RowTo[int])
		return len(found) > 0, err
	}
	for _, sql := range []string{usableLocks, `SELECT 1 FROM {koji}.locks WHERE name = 'protonmsg-plugin'`} {
		if ok, err := there(sql); err != nil || !ok {
			return lockAdvisory, err
		}
	}
	return n.in(lockRow), nil
}

// exec runs statements in one round trip. The last is a query; exec reports whether it gave a row.
func (s *pgPass) exec(ctx context.Context, sql string) (bool, error) {
	results, err := s.conn.Conn().PgConn().Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return false, err
	}
	return len(results[len(results)-1].Rows) > 0, nil
}

// renew ends the lock's transaction and begins the next in one round trip. Others look for the lock without
// waiting for it, so that they practically never come in between; where one does, the lock is lost.
func (s *pgPass) renew(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		deadline, cancel := context.WithTimeout(ctx, lockTimeout)
		asked := time.Now()
		held, err := s.exec(deadline, "COMMIT; BEGIN; "+s.lockSQL)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.store.forget(err)
			s.store.log.Warn("the drain lock was lost", "error", s.store.explain("renew the drain lock", err))
		case !held:
			s.store.log.Info("the drain lock went to another process", "database", s.store.name)
		default:
			s.renewed.Store(asked.UnixNano())
			continue
		}
		s.renewed.Store(0)
		return
	}
}

// Held implements Pass. It does not ask the server: what was confirmed a few seconds ago is believed, since
// the server frees the lock of a silent session only after 10 s.
func (s *pgPass) Held() bool {
	at := s.renewed.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < lockTrust
}

// End implements Pass.
func (s *pgPass) End(complete bool) {
	s.stop()
	s.renewer.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if _, err := s.exec(ctx, "COMMIT"); err != nil {
		// A broken connection holds no lock.
		_ = s.conn.Conn().Close(ctx)
	}
	s.conn.Release()
	if !complete {
		return
	}
	p := s.store
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range s.reached {
		p.walks.reached(m.when, m.pos)
	}
	if s.full {
		p.walks.walked(s.began, s.walking)
	}
}
