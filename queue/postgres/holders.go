package postgres

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/inspect"
)

// advisoryHolder finds the session that holds one of our advisory locks. The server keeps the two halves of
// a key as numbers without a sign.
const advisoryHolder = `SELECT '{work}' AS work, pid FROM pg_locks
	WHERE locktype = 'advisory' AND granted AND objsubid = 2
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = (hashtext('koji_relay')::bigint & 4294967295)::oid
		AND objid = (hashtext('{work}')::bigint & 4294967295)::oid`

func advisory(work string) string { return strings.ReplaceAll(advisoryHolder, "{work}", work) }

// rowHolder finds the session whose transaction has locked Koji's row.
const rowHolder = `SELECT 'drain' AS work, l.pid FROM {koji}.locks k
	JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = k.xmax AND l.granted
	WHERE k.name = 'protonmsg-plugin'`

// Holders says which session drains the queue, and which one reads the outbox; the zero Holder where none
// does. Between two passes nobody drains.
func (p *Store) Holders(ctx context.Context) (drain, outbox inspect.Holder, err error) {
	err = p.do(ctx, "look who drains", callTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		drain, outbox = inspect.Holder{}, inspect.Holder{}
		lock, err := chooseLock(ctx, conn, p.names.Load())
		if err != nil {
			return err
		}
		held := advisory("outbox") + " UNION ALL " + p.sql(rowHolder)
		if lock == lockAdvisory {
			held = advisory("outbox") + " UNION ALL " + advisory("drain")
		}
		rows, _ := conn.Query(ctx, `SELECT held.work, held.pid, coalesce(a.application_name, ''),
			coalesce(host(a.client_addr), '') FROM (`+held+`) held LEFT JOIN pg_stat_activity a USING (pid)`)
		var work string
		var h inspect.Holder
		_, err = pgx.ForEachRow(rows, []any{&work, &h.PID, &h.Name, &h.Address}, func() error {
			h.Name = inspect.Line(h.Name, 0)
			if work == "drain" {
				drain = h
			} else {
				outbox = h
			}
			return nil
		})
		return err
	})
	return drain, outbox, err
}
