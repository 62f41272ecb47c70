package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"koji-relay/history"
)

// copyMessages and copySteps name the columns in the order in which message and step write them. The format
// has no conversion: message and step write the types of the schema.
const (
	copyMessages = `COPY koji_relay.history_message (at, settled, message_id, commit, event, size, task, fate,
		via, callback, address, package, build, tag, username, broker, reason, content)
		FROM STDIN (FORMAT binary)`
	copySteps = `COPY koji_relay.history_step (at, handed, message_id, kind, broker, reason)
		FROM STDIN (FORMAT binary)`
)

// copied is what COPY reads: rows in PostgreSQL's binary format. The driver's own CopyFrom takes two to three
// times as long: it asks for the types of the columns each time, and looks at each value as an any.
//
// https://www.postgresql.org/docs/current/sql-copy.html, Binary Format
type copied []byte

// newCopied begins with the signature, no flags and no extension.
func newCopied(size int) copied {
	return append(make(copied, 0, size), "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
}

func (c copied) row(columns int) copied { return binary.BigEndian.AppendUint16(c, uint16(columns)) }

func (c copied) null() copied { return binary.BigEndian.AppendUint32(c, 0xffffffff) }

func (c copied) int4(n int) copied {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(c, 4), uint32(int32(n)))
}

func (c copied) int8(n int64) copied {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(c, 8), uint64(n))
}

// epoch is 2000-01-01, from which PostgreSQL counts microseconds.
const epoch = 946_684_800_000_000

func (c copied) timestamptz(t time.Time) copied { return c.int8(t.UnixMicro() - epoch) }

func (c copied) bytea(b []byte) copied {
	return append(binary.BigEndian.AppendUint32(c, uint32(len(b))), b...)
}

// text is for what the type text takes.
func (c copied) text(s string) copied {
	return append(binary.BigEndian.AppendUint32(c, uint32(len(s))), s...)
}

// uuid gives NULL for what is none.
func (c copied) uuid(id string) copied {
	u, err := uuid.Parse(id)
	if err != nil {
		return c.null()
	}
	return c.bytea(u[:])
}

func (c copied) message(r *history.Row) copied {
	c = c.row(18).timestamptz(r.Handed).timestamptz(r.First.Time).uuid(r.ID).uuid(r.Commit)
	c = c.int4(r.Event).int4(r.Size).int8(r.Keys.Task).text(string(r.First.Kind)).text(r.Via)
	c = c.text(clean(r.Callback)).text(clean(r.Address)).text(clean(r.Keys.Package)).text(clean(r.Keys.Build))
	c = c.text(clean(r.Keys.Tag)).text(clean(r.Keys.User))
	c = c.text(clean(r.First.Broker)).text(clean(r.First.Reason))
	if r.Content == nil {
		return c.null()
	}
	return c.bytea(r.Content)
}

func (c copied) step(st *history.Step) copied {
	return c.row(6).timestamptz(st.Time).timestamptz(st.Handed).uuid(st.ID).text(string(st.Kind)).
		text(clean(st.Broker)).text(clean(st.Reason))
}

// write ends c and gives it to a statement of COPY.
func (c copied) write(ctx context.Context, tx pgx.Tx, sql string) error {
	c = binary.BigEndian.AppendUint16(c, 0xffff)
	_, err := tx.Conn().PgConn().CopyFrom(ctx, bytes.NewReader(c), sql)
	return err
}

func messagesCopied(rows []history.Row) copied {
	size := 64
	for i := range rows {
		size += 400 + len(rows[i].Content)
	}
	c := newCopied(size)
	for i := range rows {
		c = c.message(&rows[i])
	}
	return c
}

func stepsCopied(steps []history.Step) copied {
	c := newCopied(64 + 160*len(steps))
	for i := range steps {
		c = c.step(&steps[i])
	}
	return c
}
