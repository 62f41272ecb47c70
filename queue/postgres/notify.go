package postgres

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/retry"
)

// channel carries notifications: notifyQueue after puts, anything else after inserts into the outbox.
const (
	channel      = "koji_relay"
	notifyQueue  = "queue"
	notifyOutbox = "outbox"
)

// notifyEvery is the least time between two notifications of this process.
const notifyEvery = 50 * time.Millisecond

// news is what the other processes of the fleet are to be told. They are told after a commit, and not within
// its transaction: NOTIFY takes a lock of the whole server until the end of its transaction, so that commits
// could not share an fsync. A process that dies before it told them costs them a keepAlive, see
// listener.look.
type news struct {
	wake chan struct{} // buffered 1: one wake-up stands for all

	// mu guards the field below.
	mu       sync.Mutex
	payloads map[string]bool
}

func newNews() *news { return &news{wake: make(chan struct{}, 1), payloads: map[string]bool{}} }

// add never blocks.
func (n *news) add(payloads ...string) {
	if len(payloads) == 0 {
		return
	}
	n.mu.Lock()
	for _, p := range payloads {
		n.payloads[p] = true
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// take gives what is to be told, and forgets it.
func (n *news) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	payloads := slices.Sorted(maps.Keys(n.payloads))
	clear(n.payloads)
	return payloads
}

const notify = `SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload`

// tell sends what is added to the news until ctx ends, on a connection of its own.
func (p *Store) tell(ctx context.Context) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeConn(conn)
		}
	}()
	var trouble retry.Trouble
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.news.wake:
		}
		payloads := p.news.take()
		var err error
		conn, err = p.tellOn(ctx, conn, payloads)
		switch {
		case ctx.Err() != nil:
			p.news.add(payloads...)
			return
		case err != nil:
			p.news.add(payloads...)
			if err = p.explain("notify", err); trouble.Failed(err) {
				p.log.Warn("NOTIFY lost; other relays look by themselves", "error", err)
			}
			retry.Pause(ctx, trouble.Delay())
		default:
			trouble.Recovered(p.log, "NOTIFY works again")
			retry.Pause(ctx, notifyEvery)
		}
	}
}

// tellOn sends payloads on conn, or on a new connection where there is none or it broke meanwhile. It gives
// the connection that works; nil with an error.
func (p *Store) tellOn(ctx context.Context, conn *pgx.Conn, payloads []string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if conn != nil {
		if _, err := conn.Exec(ctx, notify, channel, payloads); err == nil {
			return conn, nil
		}
		closeConn(conn) // idle for long: the server or a firewall may have ended it
	}
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	// A notification is not worth an fsync, under that lock least of all.
	_, err = conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', false)`)
	if err == nil {
		_, err = conn.Exec(ctx, notify, channel, payloads)
	}
	if err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}

// tellAtEnd sends what nobody has sent yet, for a store that is closed.
func (p *Store) tellAtEnd() {
	payloads := p.news.take()
	if len(payloads) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	if _, err := p.pool.Exec(ctx, notify, channel, payloads); err != nil {
		p.log.Debug("the last notification was not sent", "error", p.explain("notify", err))
	}
}
