package postgres

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"koji-relay/history"
	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
	"koji-relay/internal/pgtest"
)

// golden are messages of a real hub, extra cut at 500.
func golden(tb testing.TB) []message.Message {
	tb.Helper()
	f, err := os.Open("../../testdata/golden/messages.extra500.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var all []message.Message
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 10<<20)
	for lines.Scan() {
		var m message.Message
		var props struct{ Props [][3]any }
		m.Props = nil
		var rest struct{ Callback, Address, Body string }
		if err := json.Unmarshal(lines.Bytes(), &props); err != nil {
			tb.Fatal(err)
		}
		if err := json.Unmarshal(lines.Bytes(), &rest); err != nil {
			tb.Fatal(err)
		}
		m.Callback, m.Address, m.Body = rest.Callback, rest.Address, rest.Body
		for _, p := range props.Props {
			value := p[2]
			if n, ok := value.(float64); ok {
				value = int64(n)
			}
			m.Props = append(m.Props, message.Prop{Key: p[0].(string), Value: value})
		}
		all = append(all, m)
	}
	return all
}

// another is m about the nth of 20,000 packages, 300 tags, 500 users.
func another(m message.Message, n int, at time.Time) message.Message {
	m.ID, m.Commit, m.Event, m.Created = uuid.NewString(), uuid.NewString(), n, at
	m.Props = append([]message.Prop(nil), m.Props...)
	for i := range m.Props {
		p := &m.Props[i]
		switch p.Key {
		case "name":
			p.Value = fmt.Sprintf("package-%d", n%20_000)
		case "release":
			p.Value = fmt.Sprintf("%d.fc40", n)
		case "tag":
			p.Value = fmt.Sprintf("f%d-tag-%d", 38+n%5, n%300)
		case "user":
			p.Value = fmt.Sprintf("user-%d", n%500)
		case "id":
			p.Value = int64(n)
		}
	}
	return m
}

// fill stores n messages of seven days, one in a hundred queued first.
func fill(tb testing.TB, s *Store, n int) {
	tb.Helper()
	all := golden(tb)
	start := time.Now().Add(-7 * 24 * time.Hour)
	for from := 0; from < n; from += 2000 {
		b := history.Batch{Writer: "bench"}
		for i := from; i < min(n, from+2000); i++ {
			at := start.Add(time.Duration(float64(i) / float64(n) * float64(7*24*time.Hour))).Truncate(
				time.Microsecond)
			m := another(all[i%len(all)], i, at)
			first := inspect.Step{Time: at.Add(3 * time.Millisecond), Kind: inspect.Accepted,
				Broker: "broker1.example.com:5671"}
			if i%100 == 0 {
				first = inspect.Step{Time: at, Kind: inspect.Queued, Reason: "not sent: no broker is usable"}
				kind := inspect.Accepted
				if i%10_000 == 0 {
					kind = inspect.Dead
				}
				b.Steps = append(b.Steps, history.Step{ID: m.ID, Handed: at,
					Step: inspect.Step{Time: at.Add(time.Minute), Kind: kind}})
			}
			row, err := history.NewRow(&m, inspect.ViaSocket, first)
			if err != nil {
				tb.Fatal(err)
			}
			b.Rows = append(b.Rows, row)
		}
		if err := s.Append(tb.Context(), &b); err != nil {
			tb.Fatal(err)
		}
	}
}

// rows is the number of messages of the search benchmark. Ten million, the bound that is promised, take
// half an hour and 6 GB to make: KOJI_RELAY_HISTORY_ROWS=10000000.
func rows() int {
	if n, err := strconv.Atoi(os.Getenv("KOJI_RELAY_HISTORY_ROWS")); err == nil {
		return n
	}
	return 20_000
}

// BenchmarkSearch models an administrator's questions after a week.
func BenchmarkSearch(b *testing.B) {
	conn := pgtest.Database(b, schema(b))
	s := open(b, conn)
	n := rows()
	began := time.Now()
	fill(b, s, n)
	took := time.Since(began)
	pgtest.SQL(b, conn, "VACUUM ANALYZE")
	usage, err := s.Tidy(b.Context(), 30*24*time.Hour, 1<<50)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d messages: %.0f a second, %.0f bytes each with indexes", n, float64(n)/took.Seconds(),
		float64(usage.Bytes)/float64(n))
	now := time.Now()
	for name, q := range map[string]inspect.HistoryQuery{
		"newest":       {Limit: 50},
		"build":        {Build: fmt.Sprintf("package-77-1.0-%d.fc40", 20_077), Limit: 50},
		"package":      {Build: "package-77", Limit: 50},
		"tag":          {Tag: "f40-tag-2", Limit: 50},
		"tags":         {Tag: "f40-*", Limit: 50},
		"task":         {Task: int64(n / 2), Limit: 50},
		"user":         {User: "user-7", Limit: 50},
		"topics":       {Address: "build.*", Limit: 50},
		"rare topic":   {Address: "build.promote", Limit: 50},
		"dead":         {Fate: inspect.Dead, Limit: 50},
		"queued":       {Fate: inspect.Queued, Limit: 50},
		"tag and user": {Tag: "f40-tag-2", User: "user-2", Limit: 50},
		"package and day": {Build: "package-77", Since: now.Add(-4 * 24 * time.Hour),
			Until: now.Add(-3 * 24 * time.Hour), Limit: 50},
		"dead in a tag": {Fate: inspect.Dead, Tag: "f4*", Limit: 50},
	} {
		b.Run(name, func(b *testing.B) {
			var worst time.Duration
			for b.Loop() {
				began := time.Now()
				err := history.Search(b.Context(), s, q, func(*inspect.HistoryMessage) error { return nil })
				if err != nil {
					b.Fatal(err)
				}
				worst = max(worst, time.Since(began))
			}
			b.ReportMetric(float64(worst)/float64(time.Millisecond), "worst-ms")
		})
	}
}
