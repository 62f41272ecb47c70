package libpq

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func parse(t *testing.T, text string) *pgx.ConnConfig {
	t.Helper()
	c, err := Parse(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

func TestHostaddrIsWhereToConnectTo(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"hostaddr=192.0.2.7 port=5433 dbname=koji sslmode=require",
		"postgres://koji@/koji?hostaddr=192.0.2.7&port=5433&sslmode=require",
	} {
		c := parse(t, text)
		if c.Host != "192.0.2.7" || c.Port != 5433 || c.TLSConfig == nil {
			t.Errorf("%s leads to %s:%d, with TLS: %v; want the address, with TLS", text, c.Host, c.Port,
				c.TLSConfig != nil)
		}
	}
	c := parse(t, "host=db.example.com hostaddr=192.0.2.7 sslmode=verify-full")
	found, err := c.LookupFunc(t.Context(), "db.example.com")
	if err != nil || len(found) != 1 || found[0] != "192.0.2.7" || c.TLSConfig.ServerName != "db.example.com" {
		t.Errorf("the name leads to %v, %v; the certificate is to be for %s", found, err, c.TLSConfig.ServerName)
	}
	c = parse(t, "host=a,b hostaddr=192.0.2.7,192.0.2.8 sslmode=prefer")
	for host, want := range map[string]string{"a": "192.0.2.7", "b": "192.0.2.8"} {
		if found, err := c.LookupFunc(t.Context(), host); err != nil || found[0] != want {
			t.Errorf("%s leads to %v, %v, want %s", host, found, err, want)
		}
	}
}

func TestKeywordsThatTheDriverLacksMeanWhatTheySay(t *testing.T) {
	t.Parallel()
	text := "host=db dbname=koji keepalives_idle=30 keepalives_interval=5 keepalives_count=3 " +
		"client_encoding=UTF8 ssl_min_protocol_version=TLSv1.3 sslmode=prefer fallback_application_name=koji " +
		"sslcompression=0 gssencmode=prefer"
	c := parse(t, text)
	want := map[string]string{"application_name": "koji", "client_encoding": "UTF8", "datestyle": "ISO",
		"standard_conforming_strings": "on"}
	if c.TLSConfig.MinVersion != tls.VersionTLS13 || !maps.Equal(c.RuntimeParams, want) {
		t.Errorf("the parameters are %v, TLS from %x", c.RuntimeParams, c.TLSConfig.MinVersion)
	}
	conn := &connection{ConnConfig: parse(t, "host=db")}
	for _, k := range keywords {
		for name, value := range map[string]string{"keepalives_idle": "30", "keepalives_interval": "5",
			"keepalives_count": "3"} {
			if k.name == name {
				if err := k.do(conn, value); err != nil {
					t.Error(err)
				}
			}
		}
	}
	alive := net.KeepAliveConfig{Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3}
	if conn.dialer.KeepAliveConfig != alive {
		t.Errorf("keepalives are %+v, want %+v", conn.dialer.KeepAliveConfig, alive)
	}
}

func TestWhatCannotBeMeantIsRefusedByName(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"host=db sslcrl=/etc/crl.pem":              "sslcrl",
		"host=db gssencmode=require":               "gssencmode",
		"host=db client_encoding=LATIN1":           "client_encoding",
		"host=db requiressl=1":                     "sslmode=require",
		"host=db load_balance_hosts=random":        "load_balance_hosts",
		"host=db replication=database":             "replication",
		"host=db search_path=koji":                 "options='-c search_path=",
		"host=db keepalive_idle=3":                 "keepalive_idle is no keyword",
		"host=db keepalives=yes":                   "keepalives",
		"host=db hostaddr=db.example.com":          "hostaddr",
		"host=a,b hostaddr=192.0.2.1":              "1 addresses for 2 hosts",
		"host=db ssl_max_protocol_version=SSL3":    "ssl_max_protocol_version",
		"postgres://koji:sesame@db/koji?sslcrl=x":  "sslcrl",
		"host=db password=sesame sslmode=maybe":    "sslmode",
		"host=db password=sesame pool_max_conns=1": "pool_max_conns",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s gave %v, want %q and no password", text, err, want)
		}
	}
}

func TestServiceAndPassfileAreRead(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pg_service.conf": "[koji]\nhost=db.example.com\nhostaddr=192.0.2.7\ndbname=hub\nuser=koji\n" +
			"[odd]\nhost=db\nsslcrl=x\n",
		"pass": "db.example.com:5432:hub:koji:sesame\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PGSYSCONFDIR", dir)
	t.Setenv("HOME", t.TempDir())
	c := parse(t, "service=koji dbname=hub passfile="+dir+"/pass")
	if found, err := c.LookupFunc(t.Context(), c.Host); err != nil || found[0] != "192.0.2.7" ||
		c.User != "koji" || c.Password != "sesame" {
		t.Errorf("the service leads to %s as %s, %v", found, c.User, err)
	}
	if _, err := Parse("service=odd"); err == nil || !strings.Contains(err.Error(), "sslcrl") {
		t.Errorf("a keyword in a service file gave %v, want it refused by name", err)
	}
	if _, err := Parse("service=nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a service that is nowhere gave %v", err)
	}
}

func TestPeerMustBeWhoIsRequired(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.Listen("unix", dir+"/.s.PGSQL.5432")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{me.Username: true, "nobody-else": false} {
		c := parse(t, "host="+dir+" requirepeer="+name)
		conn, err := c.DialFunc(context.Background(), "unix", l.Addr().String())
		if (err == nil) != ok {
			t.Errorf("requirepeer=%s: %v", name, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

func TestTCPUserTimeoutIsSet(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := parse(t, "host=127.0.0.1 tcp_user_timeout=4000 keepalives=0")
	conn, err := c.DialFunc(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := option(t, conn, 0x12); got != 4000 {
		t.Errorf("the timeout is %d ms, want 4000", got)
	}
}

// option reads an option of TCP.
func option(t *testing.T, conn net.Conn, name int) (value int) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		value, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, name)
	}); err != nil {
		t.Fatal(err)
	}
	return value
}
