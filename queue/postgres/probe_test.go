package postgres

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"koji-relay/internal/pgtest"
	"koji-relay/queue/schema"
)

func TestProbeNamesWhatIsMissingAndItsRemedy(t *testing.T) {
	t.Parallel()
	owner := pgtest.Database(t, "") // without Koji's tables and ours
	role := "probe_" + strings.TrimPrefix(owner[strings.LastIndex(owner, "=")+1:], "_")
	pgtest.SQL(t, owner, `CREATE ROLE `+role+` LOGIN`)
	look := func(conn, remedy string) ProbeReport {
		t.Helper()
		r, err := Probe(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Remedy(); remedy == "" && got != "" || !strings.Contains(got, remedy) {
			t.Errorf("remedy %q, want %q", got, remedy)
		}
		return r
	}

	look(owner, "koji-relay db init")
	s, err := OpenSchema(t.Context(), owner)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := look(owner, "")
	if r.Version != schema.Version() || r.Server == "" || r.Role == "" || r.Pooler != "" {
		t.Errorf("report %+v", r)
	}
	pgtest.SQL(t, owner, `INSERT INTO koji_relay.outbox (commit, event, created, callback, kwargs) VALUES
		(gen_random_uuid(), 0, now() - interval '3 days', 'postTag', '{}'),
		(gen_random_uuid(), 0, now(), 'postTag', '{}')`)
	r = look(owner, "")
	if age := time.Since(r.OutboxOldest); r.Outbox != 2 || age < 71*time.Hour || age > 73*time.Hour {
		t.Errorf("outbox of %d events since %s, want 2 for three days", r.Outbox, r.OutboxOldest)
	}

	poor := owner + " user=" + role
	r = look(poor, "grant ")
	if r.Role != role || len(r.Missing) == 0 {
		t.Errorf("report of a role without grants: %+v", r)
	}
	grants, err := GrantsSQL(role, role)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.SQL(t, owner, grants)
	look(poor, "")
	pgtest.SQL(t, owner, `REVOKE DELETE ON proton_queue FROM `+role)
	if r = look(poor, "DELETE ON public.proton_queue"); len(r.Missing) != 1 {
		t.Errorf("missing grants %q, want one", r.Missing)
	}

	pgtest.SQL(t, owner, `INSERT INTO koji_relay.version (version) VALUES (1000)`)
	look(owner, "newer koji-relay")
}

// Each right of the printed grants is one that the probe misses.
func TestProbeMissesEachPrintedGrant(t *testing.T) {
	t.Parallel()
	conn := hubDatabase(t)
	grants := query[[]string](t, conn, `SELECT array_agg(r) FROM (
		SELECT format('%s ON %I.%I', privilege_type, nspname, relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, aclexplode(relacl)
		WHERE grantee = '"`+relayRole+`"'::regrole AND relkind <> 'S'
		UNION ALL SELECT format('%s ON SEQUENCE %I.%I', privilege_type, nspname, relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, aclexplode(relacl)
		WHERE grantee = '"`+relayRole+`"'::regrole AND relkind = 'S' AND privilege_type = 'USAGE'
		UNION ALL SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure)
		FROM pg_proc p, aclexplode(proacl) WHERE grantee = '"`+relayRole+`"'::regrole
		UNION ALL SELECT format('USAGE ON SCHEMA %I', nspname)
		FROM pg_namespace, aclexplode(nspacl) WHERE grantee = '"`+relayRole+`"'::regrole) AS rights(r)`)
	if len(grants) < 50 {
		t.Fatalf("only %d grants: %q", len(grants), grants)
	}
	db, err := pgx.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(db)
	change := func(sql string) {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for _, grant := range grants {
		change(`REVOKE ` + grant + ` FROM "` + relayRole + `"`)
		r, err := Probe(t.Context(), as(relayRole, conn))
		if err != nil || !slices.Contains(r.Missing, grant) {
			t.Errorf("without %s: it misses %q, %v", grant, r.Missing, err)
		}
		change(`GRANT ` + grant + ` TO "` + relayRole + `"`)
	}
}

func TestProbeSaysWhenTheServerIsNotThere(t *testing.T) {
	t.Parallel()
	_, err := Probe(context.Background(), "host=127.0.0.1 port=1 dbname=koji user=koji password=sesame")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1/koji") ||
		strings.Contains(err.Error(), "sesame") {
		t.Errorf("got %v, want the address and no password", err)
	}
}
