package postgres

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/internal/inspect"
)

// clean makes text acceptable to the type text.
func clean(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// question is a statement under construction: conditions on m, a row of history_message, and their arguments.
type question struct {
	conditions []string
	args       []any
	// sortsAll: the server is PostgreSQL 12. Where an index gives the order of times it sorts by time and id
	// all that there is. Later ones sort by id those of a time.
	sortsAll bool
}

// first gives a statement for the first n rows of a table, in the order of q. at is the column of the time,
// columns has it as at, and message_id.
func (f *question) first(q *history.Query, columns, table, where, at string, n int) string {
	if !f.sortsAll {
		return fmt.Sprintf("SELECT %s FROM koji_relay.%s WHERE %s %s LIMIT %d", columns, table, where,
			order(q, at), n)
	}
	times, _, _ := strings.Cut(order(q, at), ",")
	return fmt.Sprintf(`SELECT one.* FROM
		(SELECT DISTINCT at FROM (SELECT %[1]s AS at FROM koji_relay.%[2]s WHERE %[3]s %[4]s LIMIT %[5]d) t) moment
		CROSS JOIN LATERAL (SELECT %[6]s FROM koji_relay.%[2]s WHERE %[3]s AND %[1]s = moment.at) one
		%[7]s LIMIT %[5]d`, at, table, where, times, n, columns, order(q, "one.at"))
}

// arg gives the placeholder of an argument.
func (f *question) arg(v any) string {
	f.args = append(f.args, v)
	return fmt.Sprintf("$%d", len(f.args))
}

func (f *question) where(condition string, v any) {
	f.conditions = append(f.conditions, fmt.Sprintf(condition, f.arg(v)))
}

func (f *question) text() string {
	if len(f.conditions) == 0 {
		return "true"
	}
	return strings.Join(f.conditions, " AND ")
}

// bounds gives the condition that keeps handed within the times of q, and behind after.
func (f *question) bounds(q *history.Query, after history.Ref, handed string) string {
	// What no time can hold is no place to go on from.
	all := []string{fmt.Sprintf("%s BETWEEN '%s' AND '%s'", handed, firstTime, lastTime)}
	if !q.Since.IsZero() {
		all = append(all, handed+" >= "+f.arg(q.Since))
	}
	if !q.Until.IsZero() {
		all = append(all, handed+" < "+f.arg(q.Until))
	}
	if after.ID != "" {
		than := "<"
		if q.OldestFirst {
			than = ">"
		}
		at := f.arg(after.Handed)
		all = append(all, fmt.Sprintf("%s %s= %s", handed, than, at), // for the index
			fmt.Sprintf("(%s, message_id) %s (%s, %s::uuid)", handed, than, at, f.arg(after.ID)))
	}
	return strings.Join(all, " AND ")
}

// Find implements history.Store. What is asked for most narrowly leads, in the order of its index; the rest
// filters.
func (s *Store) Find(ctx context.Context, q *history.Query, after history.Ref, n int) (refs []history.Ref,
	err error) {
	err = s.do(ctx, "search the history", func(ctx context.Context, conn *pgx.Conn) error {
		version := conn.PgConn().ParameterStatus("server_version")
		sql, args := findSQL(q, after, n, strings.HasPrefix(version, "12."))
		rows, _ := conn.Query(ctx, sql, args...)
		refs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[history.Ref])
		return err
	})
	return refs, err
}

// nearby is how many messages, or messages of the user, are looked through before each of several words is
// looked up in its index. They mostly hold what is asked for: 50 pages instead of 9,900 at random, with 300
// words and ten million messages. Where there are no more, no index needs to be asked.
const nearby = 1000

// findSQL gives the statement of Find; sortsAll as in question.
func findSQL(q *history.Query, after history.Ref, n int, sortsAll bool) (string, []any) {
	f := &question{sortsAll: sortsAll}
	if q.ID != "" {
		f.where("m.message_id = %s::uuid", q.ID)
	}
	if q.Task != 0 {
		f.where("m.task = %s AND m.task <> 0", q.Task)
	}
	if q.User != "" {
		f.where("m.username = %s AND m.username <> ''", q.User)
	}
	narrow := q.ID != "" || q.Task != 0
	later := !narrow && metLater(q.Fate)
	if !narrow && metAtOnce(q.Fate) {
		f.where("m.fate = %s AND m.fate <> 'accepted' AND m.fate <> 'queued'", string(q.Fate))
	}
	// Of several tags or addresses one list leads, each word by its index; a single one is a condition.
	var lead, leadColumn string // the placeholder of the words
	leads := !narrow && !later && !metAtOnce(q.Fate) && q.Build == ""
	for _, list := range []struct {
		column string
		words  []string
	}{{"tag", q.Tags}, {"address", q.Addresses}} {
		column := "m." + list.column
		switch {
		case len(list.words) == 1:
			f.where(column+" = %s AND "+column+" <> ''", list.words[0])
		case len(list.words) > 1 && leads && lead == "":
			lead, leadColumn = f.arg(list.words), column
		case len(list.words) > 1:
			f.where(column+" = ANY(%s)", list.words)
		}
	}
	// A name with two dashes looks like NAME-VERSION-RELEASE: a build is asked for as both.
	var builds []string
	if q.Build != "" {
		build := f.arg(q.Build)
		for _, column := range []string{"m.build", "m.package"} {
			builds = append(builds, fmt.Sprintf("%s = %s AND %[1]s <> ''", column, build))
		}
	}
	if later {
		if builds != nil {
			f.conditions = append(f.conditions, "("+strings.Join(builds, " OR ")+")")
		}
		return byFate(f, q, after, n)
	}
	walk := func(condition string) string {
		return f.first(q, "m.at, m.message_id", "history_message m", fmt.Sprintf("%s AND %s AND %s", condition,
			f.text(), f.bounds(q, after, "m.at")), "m.at", n)
	}
	var inner string
	switch {
	case builds != nil: // each by its index
		inner = fmt.Sprintf("(%s) UNION (%s) %s LIMIT %d", walk(builds[0]), walk(builds[1]), order(q, "at"), n)
	case lead != "":
		each := fmt.Sprintf(`SELECT r.at, r.message_id FROM unnest(%s::text[]) AS w(word)
			CROSS JOIN LATERAL (%s) r %s LIMIT %d`, lead,
			walk(leadColumn+" = w.word AND "+leadColumn+" <> ''"), order(q, "r.at"), n)
		of := "true" // a user's messages have an index of their own
		if q.User != "" {
			of = "m.username = " + f.arg(q.User) + " AND m.username <> ''"
		}
		window := f.first(q, "m.*", "history_message m", of+" AND "+f.bounds(q, after, "m.at"), "m.at", nearby)
		near := fmt.Sprintf(`SELECT m.at, m.message_id FROM nearest m
			WHERE %s = ANY(%s::text[]) AND %s %s LIMIT %d`, leadColumn, lead, f.text(), order(q, "m.at"), n)
		inner = fmt.Sprintf(`WITH nearest AS MATERIALIZED (%s), near AS MATERIALIZED (%s),
				enough AS MATERIALIZED (SELECT (SELECT count(*) FROM near) >= %d
					OR (SELECT count(*) FROM nearest) < %d AS it)
			SELECT * FROM near WHERE (SELECT it FROM enough)
			UNION ALL SELECT * FROM (%s) far WHERE NOT (SELECT it FROM enough) %s`, window, near, n, nearby, each,
			order(q, "at"))
	default:
		inner = walk("true")
	}
	return "SELECT at, message_id::text FROM (" + inner + ") found", f.args
}

func order(q *history.Query, at string) string {
	direction := "DESC"
	if q.OldestFirst {
		direction = "ASC"
	}
	return fmt.Sprintf("ORDER BY %s %s, message_id %s", at, direction, direction)
}

// metAtOnce reports whether a message meets this fate when it is handed over, or never.
func metAtOnce(k inspect.StepKind) bool { return k == inspect.Skipped || k == inspect.Refused }

// metLater reports whether a message may meet this fate later, and few do.
func metLater(k inspect.StepKind) bool { return k != "" && k != inspect.Accepted && !metAtOnce(k) }

// byFate walks the messages that met a fate at once, and those that met it later.
func byFate(f *question, q *history.Query, after history.Ref, n int) (string, []any) {
	walk := func(handed, from, condition string) string {
		if rest := f.text(); rest != "true" {
			condition += fmt.Sprintf(" AND EXISTS (SELECT FROM koji_relay.history_message m"+
				" WHERE m.message_id = l.message_id AND m.at = %s AND %s)", handed, rest)
		}
		return "(" + f.first(q, handed+" AS at, l.message_id", from+" l",
			condition+" AND "+f.bounds(q, after, handed), handed, n) + ")"
	}
	if q.Fate == inspect.Queued { // those that still are
		return "SELECT at, message_id::text FROM " + walk("l.handed", "history_open", "true") + " found",
			f.args
	}
	fate := f.arg(string(q.Fate))
	first := walk("l.at", "history_message", "l.fate = "+fate+" AND l.fate <> 'accepted' AND l.fate <> 'queued'")
	later := walk("l.handed", "history_step",
		"l.kind = "+fate+" AND l.kind IN ('dead', 'expired', 'dropped')")
	return fmt.Sprintf("SELECT at, message_id::text FROM (%s UNION %s %s LIMIT %d) found", first, later,
		order(q, "at"), n), f.args
}

// Load implements history.Store.
func (s *Store) Load(ctx context.Context, ids []string, content bool) (rows []history.Row,
	steps []history.Step, err error) {
	column := "NULL::bytea"
	if content {
		column = "content"
	}
	err = s.do(ctx, "read messages of the history", func(ctx context.Context, conn *pgx.Conn) error {
		rows, steps = nil, nil
		found, _ := conn.Query(ctx, `SELECT at, `+sane("settled")+`, message_id::text, coalesce(commit::text, ''),
			event, size, task, fate, via, callback,
				address, package, build, tag, username, broker, reason, `+column+`
			FROM koji_relay.history_message WHERE message_id = ANY($1::uuid[]) ORDER BY at, settled`, ids)
		var r history.Row
		_, err := pgx.ForEachRow(found, []any{&r.Handed, &r.First.Time, &r.ID, &r.Commit, &r.Event, &r.Size,
			&r.Keys.Task, &r.First.Kind, &r.Via,
			&r.Callback, &r.Address, &r.Keys.Package, &r.Keys.Build, &r.Keys.Tag, &r.Keys.User,
			&r.First.Broker, &r.First.Reason, &r.Content},
			func() error {
				rows = append(rows, r)
				r.Content = nil
				return nil
			})
		if err != nil {
			return err
		}
		found, _ = conn.Query(ctx, `SELECT at, message_id::text, kind, broker, reason FROM
			koji_relay.history_step
			WHERE message_id = ANY($1::uuid[]) ORDER BY at`, ids)
		var st history.Step
		_, err = pgx.ForEachRow(found, []any{&st.Time, &st.ID, &st.Kind, &st.Broker, &st.Reason},
			func() error {
				steps = append(steps, st)
				return nil
			})
		return err
	})
	return rows, steps, err
}
