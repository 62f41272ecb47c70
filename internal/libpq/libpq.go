// Package libpq reads connection strings as libpq does, for a driver that is not libpq.
//
// It promises that a keyword means what PostgreSQL's documentation says, in a string, a URL or a service
// file, or that it is refused by name. It never drops one that matters, and its errors hold no password.
package libpq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Parse gives the driver's configuration for a connection string. It reads files that the string names, and
// no server is asked. Where the string has no connect_timeout, the configuration has none.
func Parse(text string) (*pgx.ConnConfig, error) {
	cc, err := pgx.ParseConfig(text)
	if err != nil {
		if elsewhere := systemServiceFile(text); elsewhere != "" {
			cc, err = pgx.ParseConfig(with(text, "servicefile", elsewhere))
		}
	}
	if err != nil {
		return nil, redact(err)
	}
	if addr := cc.RuntimeParams["hostaddr"]; addr != "" && filepath.IsAbs(cc.Host) {
		// The address is all that is known of the server: what is said of TLS is to be said of it.
		if cc, err = pgx.ParseConfig(with(text, "host", addr)); err != nil {
			return nil, redact(err)
		}
	}
	return cc, apply(cc)
}

// with gives a connection string with one more keyword, which counts.
func with(text, keyword, value string) string {
	if !strings.HasPrefix(text, "postgres://") && !strings.HasPrefix(text, "postgresql://") {
		return text + " " + keyword + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
	}
	separator := "?"
	if strings.Contains(text, "?") {
		separator = "&"
	}
	return text + separator + keyword + "=" + value
}

// systemServiceFile is where libpq looks for a service that the user's own file has not. Empty where there is
// none, or where no service is asked for.
func systemServiceFile(text string) string {
	if !strings.Contains(text, "service=") && os.Getenv("PGSERVICE") == "" || os.Getenv("PGSERVICEFILE") != "" {
		return ""
	}
	for _, dir := range []string{os.Getenv("PGSYSCONFDIR"), "/etc/postgresql-common", "/etc/sysconfig/pgsql",
		"/etc"} {
		path := filepath.Join(dir, "pg_service.conf")
		if _, err := os.Stat(path); dir != "" && err == nil {
			return path
		}
	}
	return ""
}

// redact keeps the cause of a connection string's error without the string, which may hold a password.
func redact(err error) error {
	var parse *pgconn.ParseConfigError
	if !errors.As(err, &parse) {
		return err
	}
	if cause := errors.Unwrap(parse); cause != nil {
		return cause
	}
	return errors.New("it is not understood")
}

// A keyword is one of libpq's that the driver takes for a setting of the server. do makes it mean what it
// should, or says why it cannot.
type keyword struct {
	name string
	do   func(c *connection, value string) error
}

// connection is what the keywords change together.
type connection struct {
	*pgx.ConnConfig
	dialer      net.Dialer
	requirePeer string
}

var keywords = []keyword{
	{"hostaddr", hostaddr},
	{"client_encoding", func(_ *connection, v string) error {
		if !slices.Contains([]string{"utf8", "utf-8", "unicode", "auto"}, strings.ToLower(v)) {
			return errors.New("all texts are UTF-8; leave it out")
		}
		return nil
	}},
	{"fallback_application_name", func(c *connection, v string) error {
		if c.RuntimeParams["application_name"] == "" {
			c.RuntimeParams["application_name"] = v
		}
		return nil
	}},
	{"keepalives", func(c *connection, v string) error {
		n, err := strconv.Atoi(v)
		c.dialer.KeepAliveConfig.Enable = n != 0
		if n == 0 {
			c.dialer.KeepAlive = -1
		}
		return err
	}},
	{"keepalives_idle", seconds(func(c *connection) *time.Duration { return &c.dialer.KeepAliveConfig.Idle })},
	{"keepalives_interval", seconds(func(c *connection) *time.Duration {
		return &c.dialer.KeepAliveConfig.Interval
	})},
	{"keepalives_count", func(c *connection, v string) (err error) {
		n, err := strconv.Atoi(v)
		if n != 0 {
			c.dialer.KeepAliveConfig.Count = n
		}
		return err
	}},
	{"tcp_user_timeout", func(c *connection, v string) error {
		ms, err := strconv.Atoi(v)
		if err == nil && ms > 0 {
			c.dialer.Control = userTimeout(ms)
		}
		return err
	}},
	{"requirepeer", func(c *connection, v string) error {
		c.requirePeer = v
		return nil
	}},
	{"ssl_min_protocol_version", tlsVersion(func(t *tls.Config) *uint16 { return &t.MinVersion })},
	{"ssl_max_protocol_version", tlsVersion(func(t *tls.Config) *uint16 { return &t.MaxVersion })},
	{"sslcompression", nothing}, // libpq itself ignores it since PostgreSQL 14
	{"gsslib", nothing},         // says which library a Windows program takes
	{"gssencmode", oneOf("encryption by GSSAPI is not supported", "disable", "prefer")},
	{"gssdelegation", oneOf("GSSAPI is not supported", "0")},
	{"requiressl", oneOf("write sslmode=require", "0")},
	{"load_balance_hosts", oneOf("hosts are tried in their order", "disable")},
	{"replication", oneOf("no replication is done", "0", "off", "no", "false")},
	{"sslcrl", oneOf("revoked certificates cannot be looked up")},
	{"sslcrldir", oneOf("revoked certificates cannot be looked up")},
}

// settings are what may be left for the server after that. timezone comes from PGTZ.
var settings = []string{"application_name", "options", "timezone"}

// plainText is what texts need on the wire, in statements and in their values. A role, a database or its
// encoding may have it otherwise, and then the driver refuses statements or misreads times. A pooler knows
// these three, which any other setting of a server at this place would make it refuse.
var plainText = map[string]string{
	"client_encoding":             "UTF8",
	"standard_conforming_strings": "on",
	"datestyle":                   "ISO",
}

func apply(cc *pgx.ConnConfig) error {
	c := &connection{ConnConfig: cc}
	// libpq's default: on, with the times of the system.
	c.dialer.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}
	for _, k := range keywords {
		value, given := cc.RuntimeParams[k.name]
		delete(cc.RuntimeParams, k.name)
		if !given || value == "" {
			continue // libpq takes an empty value for its default
		}
		if err := k.do(c, value); err != nil {
			return fmt.Errorf("%s = %s: %w", k.name, value, err)
		}
	}
	for name := range cc.RuntimeParams {
		if !slices.Contains(settings, name) {
			return fmt.Errorf("%s is no keyword of libpq; a setting of the server is written options='-c %s=VALUE'",
				name, name)
		}
	}
	maps.Copy(cc.RuntimeParams, plainText)
	c.DialFunc = c.dial
	return nil
}

func nothing(*connection, string) error { return nil }

// oneOf refuses all values but some, which ask for nothing special.
func oneOf(why string, values ...string) func(*connection, string) error {
	return func(_ *connection, v string) error {
		if !slices.Contains(values, v) {
			return errors.New("not supported: " + why)
		}
		return nil
	}
}

// seconds sets a time of the dialer. libpq takes 0 for the system's.
func seconds(of func(*connection) *time.Duration) func(*connection, string) error {
	return func(c *connection, v string) error {
		n, err := strconv.Atoi(v)
		if n > 0 {
			*of(c) = time.Duration(n) * time.Second
		}
		return err
	}
}

func tlsVersion(of func(*tls.Config) *uint16) func(*connection, string) error {
	versions := map[string]uint16{"tlsv1": tls.VersionTLS10, "tlsv1.1": tls.VersionTLS11,
		"tlsv1.2": tls.VersionTLS12, "tlsv1.3": tls.VersionTLS13}
	return func(c *connection, v string) error {
		version, known := versions[strings.ToLower(v)]
		if !known {
			return errors.New("write TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3")
		}
		if c.TLSConfig != nil {
			*of(c.TLSConfig) = version
		}
		for _, f := range c.Fallbacks {
			if f.TLSConfig != nil {
				*of(f.TLSConfig) = version
			}
		}
		return nil
	}
}

// hostaddr gives the addresses of the hosts, so that their names are not looked up; the names still count for
// certificates.
func hostaddr(c *connection, value string) error {
	addresses := strings.Split(value, ",")
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks { // a host may stand there twice, with and without TLS
		if last := hosts[len(hosts)-1]; f.Host != last {
			hosts = append(hosts, f.Host)
		}
	}
	if len(addresses) != len(hosts) {
		return fmt.Errorf("%d addresses for %d hosts", len(addresses), len(hosts))
	}
	of := map[string]string{}
	for i, address := range addresses {
		if net.ParseIP(address) == nil {
			return errors.New("not an address; names belong into host")
		}
		if _, twice := of[hosts[i]]; twice {
			return fmt.Errorf("the host %s has two addresses; name it once", hosts[i])
		}
		of[hosts[i]] = address
	}
	c.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{of[host]}, nil }
	return nil
}

// userTimeout is how long sent data may stay unacknowledged.
func userTimeout(ms int) func(network, address string, raw syscall.RawConn) error {
	const tcpUserTimeout = 0x12 // TCP_USER_TIMEOUT of Linux
	return func(network, _ string, raw syscall.RawConn) error {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = os.NewSyscallError("setsockopt",
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, ms))
		})
		return errors.Join(err, failed)
	}
}

// dial connects, and looks at who listens where the string says who it must be.
func (c *connection) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dialer.DialContext(ctx, network, address)
	if err != nil || c.requirePeer == "" || network != "unix" {
		return conn, err
	}
	if err := c.checkPeer(conn.(*net.UnixConn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (c *connection) checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("find out who listens: %w", err)
	}
	u, err := user.LookupId(strconv.Itoa(int(peer.Uid)))
	if err != nil {
		return fmt.Errorf("find out who listens: %w", err)
	}
	if u.Username != c.requirePeer {
		return fmt.Errorf("requirepeer is %s, and the server runs as %s", c.requirePeer, u.Username)
	}
	return nil
}
