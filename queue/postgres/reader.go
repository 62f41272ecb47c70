package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// readerGone is how long the row of a relay that is not seen any more is kept. A relay says what it reads
// every minute.
const readerGone = "7 days"

// Announce says for the relay called name (empty: the one without a name) which callbacks make messages, as
// patterns between spaces. The hub's plugin collects what any relay asks for, and everything while none does.
// Call it when the relay starts, after a reload, and every minute.
func (p *Store) Announce(ctx context.Context, name, events string) error {
	return p.do(ctx, "announce what is read from the outbox", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			batch := &pgx.Batch{}
			batch.Queue(`INSERT INTO koji_relay.reader (name, events) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET events = excluded.events, seen = now()`, name, events)
			batch.Queue(`DELETE FROM koji_relay.reader WHERE seen < now() - interval '` + readerGone + `'`)
			return conn.SendBatch(ctx, batch).Close()
		})
}
