package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/libpq"
	"koji-relay/internal/retry"
)

const (
	// A listening session asks the server something every keepAlive: so a dead peer is noticed, the server
	// does not end the session for its silence, and a notification that was never sent is made up for.
	keepAlive = 2 * time.Second
	// The server ends a session of ours that asks nothing for longer: its process is frozen. Its locks go
	// with it.
	silence = 20 * time.Second
	// A session is given up after a while, as pooled connections are: it may lead to a server that was the
	// primary once.
	sessionLifetime = 30 * time.Minute
)

// errRenew ends a session that has lived for sessionLifetime. It is no trouble.
var errRenew = errors.New("the session is old")

// listener is a session outside of the pool, for what needs one of its own: LISTEN and session locks. It is
// not safe for concurrent use, except for poke.
type listener struct {
	conn  *pgx.Conn
	names *names
	until time.Time // then it is given up

	// Where the sequences of queue and outbox stood at the last look, and what had moved then: a number is
	// drawn before its row is committed, so that the look after that one looks at the rows once more.
	queueAt, outboxAt int64
	moved             heard

	// mu guards the fields below.
	mu     sync.Mutex
	asked  time.Time // when the server last answered
	poked  bool
	cancel context.CancelFunc // ends the wait that is going on; nil without one
}

// heard says where there is something new.
type heard struct{ queue, outbox bool }

func (h heard) any() bool { return h.queue || h.outbox }

// listen connects and listens.
func (p *Store) listen(ctx context.Context) (*listener, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	l := &listener{conn: conn, names: p.names.Load(), until: time.Now().Add(retry.Jitter(sessionLifetime))}
	_, err = conn.Exec(ctx, `SELECT set_config('idle_session_timeout', $1::text, false)
		WHERE current_setting('idle_session_timeout', true) IS NOT NULL`,
		fmt.Sprintf("%dms", p.silence.Milliseconds()))
	if err == nil {
		_, err = conn.Exec(ctx, "LISTEN "+channel)
	}
	if err == nil {
		_, err = l.look(ctx)
	}
	if err != nil {
		closeConn(conn)
		return nil, err
	}
	return l, nil
}

// connect opens a session outside of the pool, with our settings.
func (p *Store) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, p.pool.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	if err := p.afterConnect(ctx, conn); err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	_ = conn.Close(ctx) // it is being given up
}

func (l *listener) close() { closeConn(l.conn) }

// poke ends a wait as a notification about the outbox does; the next one, where none is going on.
func (l *listener) poke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.poked = true
	if l.cancel != nil {
		l.cancel()
	}
}

// await blocks until there is something new, or until limit passes; then it gives the zero value.
func (l *listener) await(ctx context.Context, limit time.Duration) (heard, error) {
	until := time.Now().Add(limit)
	for {
		if h, err := l.alive(ctx); err != nil || h.any() {
			return h, err
		}
		next := l.answered().Add(keepAlive)
		if next.After(until) {
			next = until
		}
		h, err := l.wait(ctx, next)
		if err != nil || h.any() || !time.Now().Before(until) {
			return h, err
		}
	}
}

// alive makes sure, every keepAlive, that the session lives.
func (l *listener) alive(ctx context.Context) (heard, error) {
	switch {
	case time.Since(l.answered()) < keepAlive:
		return heard{}, ctx.Err()
	case time.Now().After(l.until):
		return heard{}, errRenew
	}
	return l.look(ctx)
}

func (l *listener) answered() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// trusted reports whether the session holds what it locked: the server gives a session up only after silence.
func (l *listener) trusted() bool { return time.Since(l.answered()) < lockTrust }

// look asks the server where the sequences stand. A process that is killed between a commit and its
// notification leaves others in the dark for that long and no longer.
func (l *listener) look(ctx context.Context) (heard, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	var queueAt, outboxAt int64
	var readOnly string
	asked := time.Now()
	err := l.conn.QueryRow(ctx, l.names.in(`
		SELECT coalesce(pg_sequence_last_value('{sequence}'::regclass), 0),
			coalesce(pg_sequence_last_value('koji_relay.outbox_id_seq'::regclass), 0),
			current_setting('transaction_read_only')`)).Scan(&queueAt, &outboxAt, &readOnly)
	if err == nil && readOnly == "on" {
		err = libpq.ErrReadOnly // where an advisory lock keeps nobody out
	}
	if err != nil {
		return heard{}, err
	}
	l.mu.Lock()
	first := l.asked.IsZero()
	l.asked = asked
	l.mu.Unlock()
	before := l.moved
	l.moved = heard{queue: !first && queueAt != l.queueAt, outbox: !first && outboxAt != l.outboxAt}
	l.queueAt, l.outboxAt = queueAt, outboxAt
	return heard{queue: before.queue || l.moved.queue, outbox: before.outbox || l.moved.outbox}, nil
}

// wait blocks until a notification or a poke, at most until the time until.
func (l *listener) wait(ctx context.Context, until time.Time) (heard, error) {
	waiting, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if l.begin(cancel) {
		return heard{outbox: true}, nil
	}
	n, err := l.conn.WaitForNotification(waiting)
	poked := l.end()
	switch {
	case err == nil:
		return heard{queue: n.Payload == notifyQueue, outbox: poked || n.Payload != notifyQueue}, nil
	case ctx.Err() != nil:
		return heard{}, ctx.Err()
	case waiting.Err() == nil || l.conn.IsClosed():
		return heard{}, err
	}
	return heard{outbox: poked}, nil
}

// begin notes how a poke ends the wait; true when one came before.
func (l *listener) begin(cancel context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poked {
		l.poked = false
		return true
	}
	l.cancel = cancel
	return false
}

// end reports whether the wait was ended by a poke.
func (l *listener) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	poked := l.poked
	l.poked, l.cancel = false, nil
	return poked
}

// ListenQueue implements drain.Listener. While it runs, other processes are told of the puts of this one.
func (p *Store) ListenQueue(ctx context.Context, put func()) {
	var telling sync.WaitGroup
	defer telling.Wait()
	telling.Go(func() { p.tell(ctx) })
	var trouble retry.Trouble
	for ctx.Err() == nil {
		err := p.listenQueue(ctx, put, func() {
			trouble.Recovered(p.log, "LISTEN works again", "database", p.name)
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRenew) {
			continue
		}
		if err = p.explain("listen", err); trouble.Failed(err) {
			p.log.Warn("LISTEN lost; polling the queue every interval", "error", err)
		}
		retry.Pause(ctx, trouble.Delay())
	}
}

func (p *Store) listenQueue(ctx context.Context, put, connected func()) error {
	l, err := p.listen(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	connected()
	put() // something may have come before
	for {
		h, err := l.await(ctx, time.Hour)
		if err != nil {
			return err
		}
		if h.queue {
			put()
		}
	}
}
