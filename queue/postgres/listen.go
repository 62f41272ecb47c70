package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"koji-relay/internal/retry"
)

const (
	// A listening session asks for life every keepAlive, so that a dead peer is noticed.
	keepAlive = 5 * time.Second
	// The server ends a session of ours that is silent for longer (its process is frozen), and with it its locks.
	silence = "20s"
)

// session connects outside of the pool, for what needs a session of its own: LISTEN and session locks.
func (p *Store) session(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, p.pool.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, sessionSettings)
	if err == nil {
		_, err = conn.Exec(ctx, `SELECT set_config(name, '`+silence+`', false) FROM pg_settings WHERE name = 'idle_session_timeout'`)
	}
	if err == nil {
		_, err = conn.Exec(ctx, "LISTEN "+channel)
	}
	if err != nil {
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

// awaitNotification blocks until a notification comes or limit passes; then the notification is nil. In between it makes
// sure that the session lives.
func awaitNotification(ctx context.Context, conn *pgx.Conn, limit time.Duration) (*pgconn.Notification, error) {
	until := time.Now().Add(limit)
	for {
		waiting, cancel := context.WithTimeout(ctx, min(keepAlive, time.Until(until)))
		n, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			return n, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
		pinging, cancel := context.WithTimeout(ctx, keepAlive)
		err = conn.Ping(pinging)
		cancel()
		if err != nil || !time.Now().Before(until) {
			return nil, err
		}
	}
}

// ListenQueue implements Listener.
func (p *Store) ListenQueue(ctx context.Context, put func()) {
	var trouble retry.Trouble
	for ctx.Err() == nil {
		err := p.listenQueue(ctx, put, func() {
			if trouble.Over() {
				p.log.Info("listening to the queue's database again", "database", p.name)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if trouble.Failed(err) {
			p.log.Warn("the queue's database tells of no puts; the queue is looked at every interval", "error", p.explain("listen", err))
		}
		retry.Pause(ctx, trouble.Delay())
	}
}

func (p *Store) listenQueue(ctx context.Context, put, connected func()) error {
	conn, err := p.session(ctx)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	connected()
	put() // something may have come before
	for {
		n, err := awaitNotification(ctx, conn, time.Hour)
		if err != nil {
			return err
		}
		if n != nil && n.Payload == notifyQueue {
			put()
		}
	}
}
