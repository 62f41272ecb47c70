package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// writeHub writes hub.conf and the files of hub.conf.d, and returns the path of the former.
func writeHub(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "hub.conf")
}

func TestHubDatabaseIsTheHubsOwn(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"all settings", map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBUser = kojiuser\nDBHost = " +
			"db.example.com\nDBPort = 5433\nDBPass = example\n"},
			"dbname='koji' user='kojiuser' password='example' host='db.example.com' port='5433'"},
		{"local socket", map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBUser = koji\n#DBPass = " +
			"example\nDBHost =\n"},
			"dbname='koji' user='koji'"},
		{"quotes and percent signs stay", map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBPass = a'b\\c " +
			"%d%%\n"},
			`dbname='koji' password='a\'b\\c %d%%'`},
		{"the old spelling of DBHost", map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBhost = db\n"},
			"dbname='koji' host='db'"},
		{"DBConnectionString goes first",
			map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBConnectionString = dbname=other host=db1,db2\n"},
			"dbname=other host=db1,db2"},
		{"an empty DBConnectionString is none",
			map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBConnectionString =\n"}, "dbname='koji'"},
		{"hub.conf goes before hub.conf.d, a later name before an earlier", map[string]string{
			"hub.conf":            "[hub]\nDBName = koji\n",
			"hub.conf.d/10.conf":  "[hub]\nDBName = ten\nDBUser = ten\nDBHost = ten\n",
			"hub.conf.d/20.conf":  "[hub]\nDBHost = twenty\n",
			"hub.conf.d/30.other": "[hub]\nDBHost = thirty\n"},
			"dbname='koji' user='ten' host='twenty'"},
		{"keywords of libpq stay", map[string]string{"hub.conf": "[hub]\nDBConnectionString = host=db " +
			"keepalives=1 hostaddr=192.0.2.7 dbname=koji\n"},
			"host=db keepalives=1 hostaddr=192.0.2.7 dbname=koji"},
		{"a section DEFAULT lends", map[string]string{"hub.conf": "[DEFAULT]\nDBName = koji\n[hub]\n"},
			"dbname='koji'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := LoadHubDatabase(writeHub(t, tt.files))
			if err != nil {
				t.Fatal(err)
			}
			if got.Reveal() != tt.want {
				t.Errorf("got %s\nwant %s", got.Reveal(), tt.want)
			}
			if _, err := pgx.ParseConfig(got.Reveal()); err != nil {
				t.Errorf("the driver cannot use it: %v", err)
			}
			if strings.Contains(got.String(), "example'") || strings.Contains(got.String(), ":example@") {
				t.Errorf("a secret is printed: %s", got)
			}
		})
	}
}

func TestHubDatabasePasswordReachesTheDriver(t *testing.T) {
	t.Parallel()
	const password = `a'b\c "d" %20=e`
	got, err := LoadHubDatabase(writeHub(t, map[string]string{"hub.conf": "[hub]\nDBName = koji\nDBHost = " +
		"db\nDBPort = 5_433\nDBPass = " + password + "\n"}))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := pgx.ParseConfig(got.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Password != password || parsed.Host != "db" || parsed.Port != 5433 || parsed.Database != "koji" {
		t.Errorf("the driver understood %q %q %d %q", parsed.Password, parsed.Host, parsed.Port, parsed.Database)
	}
}

func TestHubDatabaseRefusesWhatTheHubWouldRefuse(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"bad port": {"[hub]\nDBName = koji\nDBPort = none\n",
			"hub.conf:3: [hub] DBPort = none: not a whole number"},
		"nothing":    {"[hub]\nKojiDir = /mnt/koji\n", "[hub] DBName: missing, and so is DBConnectionString"},
		"no section": {"DBName = koji\n", "hub.conf:1: stands before the first section"},
		"set twice": {"[hub]\nDBName = koji\nDBName = koji\n",
			"hub.conf:3: [hub] dbname: set twice, first on line 2"},
		"hidden as hubb": {"[hubb]\nDBName = koji\n", "[hub] DBName: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := LoadHubDatabase(writeHub(t, map[string]string{"hub.conf": tt.text}))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := LoadHubDatabase(filepath.Join(t.TempDir(), "hub.conf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("hub.conf is missing: %v", err)
	}
}
