package postgres

import (
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/history"
	"koji-relay/history/storetest"
	"koji-relay/internal/pgtest"
)

// BenchmarkSearch models an administrator's questions after a week. Ten million messages, the number that is
// promised for: KOJI_RELAY_HISTORY_ROWS=10000000. KOJI_RELAY_HISTORY_PG may name a database for them, which
// is filled once and kept.
func BenchmarkSearch(b *testing.B) {
	conn := os.Getenv("KOJI_RELAY_HISTORY_PG")
	if conn == "" {
		conn = pgtest.Database(b, "")
	}
	n := storetest.SiteSize()
	if !filled(b, conn) {
		pgtest.SQL(b, conn, schema(b))
		fill(b, conn, n)
	}
	storetest.Search(b, open(b, conn), n)
}

func filled(tb testing.TB, conn string) (there bool) {
	tb.Helper()
	c, err := pgx.Connect(tb.Context(), conn)
	if err == nil {
		defer c.Close(tb.Context())
		err = c.QueryRow(tb.Context(), `SELECT to_regclass('koji_relay.history_message') IS NOT NULL`).Scan(&there)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return there
}

// fill stores n messages without indexes, and makes the indexes at the end: that takes a tenth of the time.
func fill(tb testing.TB, conn string, n int) {
	tb.Helper()
	pgtest.SQL(tb, conn, `
		CREATE TABLE public.indexes AS SELECT indexdef FROM pg_indexes
			WHERE schemaname = 'koji_relay' AND tablename IN ('history_message', 'history_step');
		DO $$ DECLARE i text; BEGIN
			FOR i IN SELECT indexname FROM pg_indexes WHERE schemaname = 'koji_relay'
				AND tablename IN ('history_message', 'history_step')
			LOOP EXECUTE 'DROP INDEX koji_relay.' || i; END LOOP; END $$;`)
	s := open(tb, conn)
	began := time.Now()
	storetest.Fill(tb, n, func(b *history.Batch) error { return s.Append(tb.Context(), b) })
	took := time.Since(began)
	pgtest.SQL(tb, conn, `SET maintenance_work_mem = '512MB';
		DO $$ DECLARE i text; BEGIN
			FOR i IN SELECT indexdef FROM public.indexes
			LOOP EXECUTE replace(i, ' ON ONLY ', ' ON '); END LOOP; END $$;
		DROP TABLE public.indexes;`)
	pgtest.SQL(tb, conn, "VACUUM ANALYZE")
	usage, err := s.Tidy(tb.Context(), 30*24*time.Hour, 1<<50)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("%d messages in %v and indexes in %v; %.0f bytes each with indexes", n, took,
		time.Since(began)-took, float64(usage.Bytes)/float64(n))
}
