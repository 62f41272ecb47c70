package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"koji-relay/queue"
)

// The rows are locked in the order in which they are read, and those that others have locked are passed over.
var (
	renewOne = `
	UPDATE koji_relay.delivery SET attempts = 0, next_attempt = now() WHERE message_id = ANY(ARRAY(
		SELECT message_id FROM koji_relay.delivery
		WHERE next_attempt > now() AND address = $1 AND ` + queue.ForAddressSQL + `
		ORDER BY next_attempt, queue_id LIMIT $2 FOR UPDATE SKIP LOCKED))`
	renewEach = `
	UPDATE koji_relay.delivery SET attempts = 0, next_attempt = now() WHERE next_attempt > now()
		AND message_id = ANY(ARRAY(SELECT message_id FROM (
			SELECT message_id, row_number() OVER (PARTITION BY address ORDER BY next_attempt, queue_id) AS n
			FROM koji_relay.delivery WHERE next_attempt > now() AND $1 = '' AND ` + queue.ForAddressSQL + `
		) w WHERE n <= $2))`
)

// Renew implements queue.Store. The relay that drains is told, whichever it is.
func (p *Store) Renew(ctx context.Context, address string, limit int) (renewed int, err error) {
	sql := renewOne
	if address == "" {
		sql = renewEach
	}
	err = p.do(ctx, "renew messages that are set aside", callTimeout,
		func(ctx context.Context, conn *pgx.Conn) error {
			tag, err := conn.Exec(ctx, sql, address, limit)
			renewed = int(tag.RowsAffected())
			return err
		})
	if renewed > 0 {
		p.news.add(notifyQueue)
	}
	return renewed, err
}
