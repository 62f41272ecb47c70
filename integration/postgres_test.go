package integration

import (
	"cmp"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const postgresService = "postgres-15"

// startPostgres starts a PostgreSQL of the test's own and waits until it answers.
func startPostgres(t testing.TB) *server {
	t.Helper()
	s := newServer(t, postgresService)
	t.Cleanup(func() {
		logOnFailure(t, s)
		s.remove()
	})
	s.awaitPostgres(t)
	// No test cuts the power: what a killed server has written is there, whether the disk has it or not.
	s.alterSystem(t, "fsync", "off")
	return s
}

// alterSystem changes a setting of the running server, also for its next start.
func (s *server) alterSystem(t testing.TB, name, value string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	db, err := pgx.Connect(ctx, s.connString("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	for _, sql := range []string{"ALTER SYSTEM SET " + name + " = " + value, "SELECT pg_reload_conf()"} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// connString is how to connect to one of its databases.
func (s *server) connString(database string) string {
	return fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=disable",
		cmp.Or(s.host, "127.0.0.1"), s.port, user, password, database)
}

// patientString is connString for a busy machine, where a connection may take longer than the relay waits.
func (s *server) patientString(database string) string {
	return s.connString(database) + " connect_timeout=30"
}

func (s *server) awaitPostgres(t testing.TB) {
	t.Helper()
	eventually(t, 60*time.Second, s.service+" answers", func() error {
		var version string
		if err := s.query(t, "postgres", "SHOW server_version", &version); err != nil {
			return err
		}
		note(t, "PostgreSQL", version, "SHOW server_version")
		return nil
	})
}

// query runs one statement that gives one value.
func (s *server) query(t testing.TB, database, sql string, result any) error {
	ctx := within(t, 10*time.Second)
	db, err := pgx.Connect(ctx, s.connString(database))
	if err != nil {
		return err
	}
	defer db.Close(ctx)
	return db.QueryRow(ctx, sql).Scan(result)
}

// newDatabase creates a database with Koji's own table and the relay's schema, as an administrator does, and
// gives the settings for it.
func newDatabase(t testing.TB, s *server, name string) settings {
	t.Helper()
	createDatabase(t, s, name)
	return initDatabase(t, s, name)
}

func createDatabase(t testing.TB, s *server, name string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	db, err := pgx.Connect(ctx, s.connString("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	if _, err := db.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("create the database %s: %v", name, err)
	}
}

// initDatabase is the rest of newDatabase.
func initDatabase(t testing.TB, s *server, name string) settings {
	t.Helper()
	set := settings{"queue.store": "postgres", "queue.database": s.connString(name)}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r := newRelay(t, set.with(settings{"broker.urls": "amqp://127.0.0.1:1",
		"broker.topic_prefix": "/topic/koji", "queue.database": s.patientString(name)}))
	if out, err := exec.Command(path, "db", "init", "--config", r.conf).CombinedOutput(); err != nil {
		t.Fatalf("koji-relay db init: %v\n%s", err, out)
	}
	return set
}
