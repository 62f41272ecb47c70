// Package audit compares what happened on a Koji hub, by the hub's own tables, with the history of its
// messages.
//
// It only reads. It never judges what the history cannot know: times before it begins, and the last minute.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"koji-relay/internal/libpq"
)

// Kind is what the hub announces, by the callback after it.
type Kind struct {
	Name      string // for a person
	Callback  string
	Addresses []string // of its messages
}

// The kinds that leave a time in the hub's tables.
var (
	Tagging   = &Kind{"taggings", "postTag", []string{"build.tag"}}
	Untagging = &Kind{"untaggings", "postUntag", []string{"build.untag"}}
	Build     = &Kind{"finished builds", "postBuildStateChange", []string{"build.complete", "build.failed",
		"build.canceled"}}
	Task = &Kind{"finished tasks", "postTaskStateChange", []string{"task.closed", "task.canceled",
		"task.failed"}}
	RepoInit = &Kind{"new repos", "postRepoInit", []string{"repo.init"}}
	RepoDone = &Kind{"finished repos", "postRepoDone", []string{"repo.done"}}
	Kinds    = []*Kind{Tagging, Untagging, Build, Task, RepoInit, RepoDone}
)

// Fact is one thing that happened on the hub.
type Fact struct {
	Kind *Kind
	Time time.Time
	// What it is about, in the words of the history; Draft is the build's name before it was promoted.
	Build, Draft, Tag string
	Number            int64  // of a task or repo
	Silent            string // why Koji itself announces nothing; empty where it does
}

// Grants is what the relay's role needs beyond its own grants, as a script for psql.
func Grants(role string) string {
	return "-- koji-relay audit: to read what happened on the hub.\n" +
		"GRANT SELECT ON events, tag_listing, tag, tag_config, build, package, task, repo TO " +
		pgx.Identifier{role}.Sanitize() + ";\n"
}

// Hub reads a hub's database.
type Hub struct{ conn *pgx.Conn }

// Open connects.
func Open(ctx context.Context, connString string) (*Hub, error) {
	c, err := libpq.Parse(connString)
	if err != nil {
		return nil, fmt.Errorf("read the connection string of the hub's database: %w", err)
	}
	c.RuntimeParams["application_name"] = "koji-relay audit"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to the hub's database: %w", libpq.Plain(err))
	}
	// Not with the first message to the server, where a pooler would refuse it.
	if _, err := conn.Exec(ctx, "SET default_transaction_read_only = on"); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare to read the hub's database: %w", libpq.Plain(err)),
			conn.Close(ctx))
	}
	return &Hub{conn}, nil
}

// Close ends the connection.
func (h *Hub) Close() { _ = h.conn.Close(context.Background()) }

// Facts gives what happened from since until until. It reads tables whole that have no index on a time,
// which takes seconds on a large hub.
func (h *Hub) Facts(ctx context.Context, since, until time.Time) ([]Fact, error) {
	var all []Fact
	for _, read := range []func(context.Context, time.Time, time.Time) ([]Fact, error){h.taggings, h.builds,
		h.tasks, h.repos} {
		facts, err := read(ctx, since, until)
		if err != nil {
			return nil, explain(err)
		}
		all = append(all, facts...)
	}
	return all, nil
}

func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("read the hub's tables: %w; grant what 'koji-relay db init --print --audit' shows", err)
	}
	if errors.As(err, &pg) && pg.Code == "42P01" {
		return fmt.Errorf("read the hub's tables: %w; audit needs the hub's own database", err)
	}
	return fmt.Errorf("read the hub's tables: %w", err)
}

// names are a build's name, and the one that it had as a draft where it was promoted (Koji 1.34).
const names = `p.name || '-' || b.version || '-' || b.release AS build,
	CASE WHEN to_jsonb(b) ->> 'promotion_time' IS NOT NULL
		THEN p.name || '-' || b.version || '-' || b.release || ',draft_' || b.id ELSE '' END AS draft`

// taggings reads rows of tag_listing that appeared, and that were revoked. Koji announces no untagging of a
// build that is tagged anew in one call, that is deleted, or whose tag is deleted.
func (h *Hub) taggings(ctx context.Context, since, until time.Time) ([]Fact, error) {
	first, last, err := h.eventIDs(ctx, since, until)
	if err != nil {
		return nil, err
	}
	// Only ids are conditions. Times of the newest events are not in PostgreSQL's statistics, which then takes
	// them for none: it read tag_listing once for each event.
	// A tagging and its untagging are two facts, in one transaction too.
	rows, _ := h.conn.Query(ctx, `SELECT e.time, l.added, `+names+`, t.name AS tag,
			CASE WHEN l.added THEN ''
				WHEN b.state = 2 THEN 'the build was deleted'
				WHEN EXISTS (SELECT FROM tag_listing n WHERE n.build_id = l.build_id AND n.tag_id = l.tag_id
					AND n.create_event = l.revoke_event AND n.create_event <> l.create_event)
					THEN 'it was tagged anew at once'
				WHEN EXISTS (SELECT FROM tag_config c WHERE c.tag_id = l.tag_id AND c.revoke_event =
				l.revoke_event)
					AND NOT EXISTS (SELECT FROM tag_config c WHERE c.tag_id = l.tag_id AND c.create_event =
					l.revoke_event)
					THEN 'the tag was deleted'
				ELSE '' END AS silent
		FROM (SELECT build_id, tag_id, create_event, revoke_event, create_event AS event, true AS added
				FROM tag_listing WHERE create_event >= $1 AND create_event < $2
			UNION ALL SELECT build_id, tag_id, create_event, revoke_event, revoke_event, false
				FROM tag_listing WHERE revoke_event >= $1 AND revoke_event < $2) l
		JOIN events e ON e.id = l.event
		JOIN build b ON b.id = l.build_id JOIN package p ON p.id = b.pkg_id JOIN tag t ON t.id = l.tag_id
		WHERE e.id >= $1 AND e.id < $2`, first, last)
	var all []Fact
	var f Fact
	var added bool
	_, err = pgx.ForEachRow(rows, []any{&f.Time, &added, &f.Build, &f.Draft, &f.Tag, &f.Silent},
		func() error {
			if f.Time.Before(since) || !f.Time.Before(until) {
				return nil
			}
			if f.Kind = Untagging; added {
				f.Kind = Tagging
			}
			all = append(all, f)
			return nil
		})
	return all, err
}

func (h *Hub) builds(ctx context.Context, since, until time.Time) ([]Fact, error) {
	rows, _ := h.conn.Query(ctx, `SELECT b.completion_time, `+names+`
		FROM build b JOIN package p ON p.id = b.pkg_id
		WHERE b.completion_time >= $1 AND b.completion_time < $2 AND b.state <> 0`, since, until)
	var all []Fact
	f := Fact{Kind: Build}
	_, err := pgx.ForEachRow(rows, []any{&f.Time, &f.Build, &f.Draft}, func() error {
		all = append(all, f)
		return nil
	})
	return all, err
}

// longestTask bounds which tasks are looked at: task has no index on its completion.
const longestTask = 60 * 24 * time.Hour

func (h *Hub) tasks(ctx context.Context, since, until time.Time) ([]Fact, error) {
	first, err := h.firstID(ctx, "task", "create_time", since.Add(-longestTask))
	if err != nil {
		return nil, err
	}
	rows, _ := h.conn.Query(ctx, `SELECT completion_time, id FROM task
		WHERE id >= $1 AND completion_time >= $2 AND completion_time < $3 AND state IN (2, 3, 5)`, first,
		since, until)
	return numbered(rows, Task)
}

func numbered(rows pgx.Rows, k *Kind) ([]Fact, error) {
	var all []Fact
	f := Fact{Kind: k}
	_, err := pgx.ForEachRow(rows, []any{&f.Time, &f.Number}, func() error {
		all = append(all, f)
		return nil
	})
	return all, err
}

// repos reads when repos were begun, and when those that are ready became so. Before Koji 1.35 the hub
// keeps neither.
func (h *Hub) repos(ctx context.Context, since, until time.Time) ([]Fact, error) {
	var known int
	err := h.conn.QueryRow(ctx, `SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('repo')
		AND attname IN ('creation_time', 'state_time') AND NOT attisdropped`).Scan(&known)
	if err != nil || known < 2 {
		return nil, err
	}
	rows, _ := h.conn.Query(ctx, `SELECT creation_time, id FROM repo WHERE creation_time >= $1 AND
		creation_time < $2`, since, until)
	all, err := numbered(rows, RepoInit)
	if err != nil {
		return nil, err
	}
	rows, _ = h.conn.Query(ctx, `SELECT state_time, id FROM repo WHERE state = 1 AND state_time >= $1 AND
		state_time < $2`, since, until)
	done, err := numbered(rows, RepoDone)
	return append(all, done...), err
}

// eventIDs gives the ids from first until before last, among which all events between the times are. Ids are
// given a moment before the times, and not always in their order.
func (h *Hub) eventIDs(ctx context.Context, since, until time.Time) (first, last int64, err error) {
	first, err = h.firstID(ctx, "events", "time", since.Add(-clockSlack))
	if err == nil {
		last, err = h.firstID(ctx, "events", "time", until.Add(clockSlack))
	}
	return first, last, err
}

// firstID finds the first id of a table from a time on. The ids grow with the time, which has no index.
func (h *Hub) firstID(ctx context.Context, table, column string, since time.Time) (int64, error) {
	var low, high int64
	err := h.conn.QueryRow(ctx, `SELECT coalesce(min(id), 0), coalesce(max(id), -1) + 1 FROM
		`+table).Scan(&low, &high)
	for err == nil && low < high {
		middle := low + (high-low)/2
		var before bool
		err = h.conn.QueryRow(ctx, `SELECT `+column+` < $1 FROM `+table+` WHERE id >= $2 ORDER BY id LIMIT
			1`, since, middle).Scan(&before)
		if before {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, err
}

// Begins gives when the history can begin at the earliest: when its schema was made. It is the zero time
// where the hub's database has no schema koji_relay.
func (h *Hub) Begins(ctx context.Context) (began time.Time, err error) {
	var there bool
	if err = h.conn.QueryRow(ctx, `SELECT to_regclass('koji_relay.version') IS NOT
		NULL`).Scan(&there); err != nil || !there {
		return began, err
	}
	err = h.conn.QueryRow(ctx, `SELECT coalesce(max(applied), '-infinity') FROM koji_relay.version WHERE
		version = 3`).Scan(&began)
	return began, err
}

// Outbox gives the events that wait in the outbox for the relay called reader (empty: the one without a
// name): by callback, when they were written, oldest first.
func (h *Hub) Outbox(ctx context.Context, reader string) (map[string][]time.Time, error) {
	waiting := map[string][]time.Time{}
	var there, shared bool
	if err := h.conn.QueryRow(ctx, `SELECT to_regclass('koji_relay.outbox') IS NOT NULL,
		to_regclass('koji_relay.outbox_taken') IS NOT NULL`).Scan(&there, &shared); err != nil || !there {
		return waiting, err
	}
	sql := `SELECT callback, created FROM koji_relay.outbox o WHERE $1::text IS NOT NULL ORDER BY created`
	if shared {
		sql = `SELECT callback, created FROM koji_relay.outbox o WHERE NOT EXISTS (SELECT
			FROM koji_relay.outbox_taken t WHERE t.id = o.id AND t.reader = $1 AND t.commit = o.commit)
			ORDER BY created`
	}
	rows, _ := h.conn.Query(ctx, sql, reader)
	var callback string
	var created time.Time
	_, err := pgx.ForEachRow(rows, []any{&callback, &created}, func() error {
		waiting[callback] = append(waiting[callback], created)
		return nil
	})
	return waiting, err
}
