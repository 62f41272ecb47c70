// Package pgtest gives tests a real PostgreSQL: a database of its own for each test, on the server that
// KOJI_RELAY_TEST_PG names (the connection string of a superuser, as keywords and values) or on a private
// cluster that is started once in a test process. Its programs are the machine's newest, or those of the
// directory that KOJI_RELAY_TEST_PG_BIN names. It is used by tests only. It talks to the server through
// psql, so that it needs no driver.
package pgtest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	serverEnv  = "KOJI_RELAY_TEST_PG"
	requireEnv = "KOJI_RELAY_REQUIRE_SERVERS"
	binEnv     = "KOJI_RELAY_TEST_PG_BIN"
)

var shared = struct {
	// mu guards the fields below.
	mu        sync.Mutex
	server    *Cluster
	templates map[string]string // setup SQL -> template database
	err       error
}{templates: map[string]string{}}

var databases atomic.Int64

// Database creates a database in which setup was run, and gives its connection string. Databases with the
// same setup are copies of one template. It skips the test where there is no PostgreSQL, unless
// KOJI_RELAY_REQUIRE_SERVERS is 1: then it fails it.
func Database(tb testing.TB, setup string) string {
	tb.Helper()
	template, admin := template(tb, setup)
	return database(tb, admin, "TEMPLATE "+template)
}

// EncodedDatabase is Database with another encoding than UTF8.
func EncodedDatabase(tb testing.TB, encoding, setup string) string {
	tb.Helper()
	_, admin := template(tb, "")
	conn := database(tb, admin,
		fmt.Sprintf("TEMPLATE template0 ENCODING '%s' LC_COLLATE 'C' LC_CTYPE 'C'", encoding))
	SQL(tb, conn, setup)
	return conn
}

// AlterDatabase changes settings for those who connect from now on.
func AlterDatabase(tb testing.TB, conn string, settings ...string) {
	tb.Helper()
	for _, s := range settings {
		SQL(tb, conn, `DO $x$ BEGIN EXECUTE format('ALTER DATABASE %I SET ', current_database()) ||
			$y$`+s+`$y$; END $x$`)
	}
}

func database(tb testing.TB, admin, options string) string {
	tb.Helper()
	name := fmt.Sprintf("relay_test_%d_%d", os.Getpid(), databases.Add(1))
	SQL(tb, admin, fmt.Sprintf("CREATE DATABASE %s %s", name, options))
	tb.Cleanup(func() {
		// Not WITH (FORCE), which PostgreSQL 12 does not know.
		SQL(tb, admin, fmt.Sprintf("ALTER DATABASE %[1]s ALLOW_CONNECTIONS false; "+
			"DO $$ BEGIN PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%[1]s'; END $$; "+
			"DROP DATABASE %[1]s", name))
	})
	return withDatabase(admin, name)
}

// template gives the template database for setup and the superuser's connection string.
func template(tb testing.TB, setup string) (name, admin string) {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	admin = os.Getenv(serverEnv)
	if admin == "" {
		if shared.server == nil && shared.err == nil {
			shared.server, shared.err = startCluster("fsync = off")
		}
		if shared.err != nil {
			missing(tb, shared.err)
		}
		admin = shared.server.ConnString("postgres")
	}
	name = shared.templates[setup]
	if name == "" {
		name = fmt.Sprintf("relay_template_%d_%d", os.Getpid(), len(shared.templates))
		SQL(tb, admin, "CREATE DATABASE "+name)
		SQL(tb, withDatabase(admin, name), setup)
		shared.templates[setup] = name
	}
	return name, admin
}

// Stop ends what Database started. TestMain calls it after the tests.
func Stop() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server != nil {
		shared.server.stop()
		shared.server = nil
		return
	}
	for _, name := range shared.templates {
		_ = psql(os.Getenv(serverEnv), "DROP DATABASE IF EXISTS "+name)
	}
}

func missing(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv(requireEnv) == "1" {
		tb.Fatalf("no PostgreSQL for this test: %v; install it, or set %s", err, serverEnv)
	}
	tb.Skipf("no PostgreSQL for this test: %v", err)
}

// SQL runs statements through psql and fails the test when one fails.
func SQL(tb testing.TB, connString, sql string) {
	tb.Helper()
	if err := psql(connString, sql); err != nil {
		tb.Fatal(err)
	}
}

func psql(connString, sql string) error {
	tool, err := binary("psql")
	if err != nil {
		return err
	}
	cmd := exec.Command(tool, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname="+connString)
	cmd.Stdin = strings.NewReader(sql)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run psql: %w\n%s", err, out)
	}
	return nil
}

// withDatabase gives connString (keywords) for another database: the last dbname counts.
func withDatabase(connString, name string) string { return connString + " dbname=" + name }

func binary(name string) (string, error) {
	if dir := os.Getenv(binEnv); dir != "" && name != "psql" { // the client need not be the server's
		return filepath.Join(dir, name), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		return found[len(found)-1], nil
	}
	return exec.LookPath(name)
}

// Cluster is a private PostgreSQL server that a test may kill.
type Cluster struct {
	dir  string
	port int
	cred *syscall.Credential // nil: ours
	env  []string            // of the server, beside ours

	// mu guards the fields below.
	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	log    *bytes.Buffer
}

// StartCluster starts a server of the test's own with lines added to postgresql.conf, and stops it after the
// test.
func StartCluster(tb testing.TB, settings ...string) *Cluster {
	tb.Helper()
	c, err := startCluster(settings...)
	if err != nil {
		missing(tb, err)
	}
	tb.Cleanup(c.stop)
	return c
}

func startCluster(settings ...string) (*Cluster, error) { return startClusterIn("", nil, settings...) }

func startClusterIn(parent string, env []string, settings ...string) (*Cluster, error) {
	c, err := newCluster(parent, env)
	if err != nil {
		return nil, err
	}
	if err := c.run("initdb", "--pgdata="+c.dir+"/data", "--username=postgres", "--auth=trust", "--no-sync",
		"--encoding=UTF8", "--locale=C"); err != nil {
		return nil, err
	}
	if err := c.configure(settings...); err != nil {
		return nil, err
	}
	return c, c.start()
}

// newCluster makes the directory below parent ("": where temporary files are) and finds a port.
func newCluster(parent string, env []string) (*Cluster, error) {
	dir, err := os.MkdirTemp(parent, "relay-pg-")
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, env: env}
	if os.Getuid() == 0 { // the server refuses to run as root
		if err := c.becomeUser("postgres"); err != nil {
			return nil, err
		}
	}
	c.port, err = freePort()
	return c, err
}

// run runs one of the server's programs to its end, as the server's user.
func (c *Cluster) run(program string, args ...string) error {
	path, err := binary(program)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", program, err, out)
	}
	return nil
}

// configure adds lines to postgresql.conf, and where the server listens. The last line for a setting counts.
func (c *Cluster) configure(settings ...string) error {
	conf := fmt.Sprintf("\nlisten_addresses = '127.0.0.1'\nport = %d\nunix_socket_directories = "+
		"'%s'\nmax_connections = 300\n%s\n",
		c.port, c.dir, strings.Join(settings, "\n"))
	f, err := os.OpenFile(c.dir+"/data/postgresql.conf", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(conf)
	return errors.Join(err, f.Close())
}

func (c *Cluster) becomeUser(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	c.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(c.dir, uid, gid)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// ConnString names a database on the server, over TCP.
func (c *Cluster) ConnString(database string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable dbname=%s", c.port, database)
}

// Start starts the server again after Kill, and waits until it answers.
func (c *Cluster) Start(tb testing.TB) {
	tb.Helper()
	if err := c.start(); err != nil {
		tb.Fatal(err)
	}
}

func (c *Cluster) start() error {
	server, err := binary("postgres")
	if err != nil {
		return err
	}
	c.mu.Lock()
	cmd := exec.Command(server, "-D", c.dir+"/data")
	cmd.Dir = c.dir
	if c.env != nil {
		cmd.Env = append(os.Environ(), c.env...)
	}
	// The server must not outlive a test process that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred, Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	started, exited := make(chan error), make(chan struct{})
	go func() {
		// The death signal is tied to the thread that started the process.
		runtime.LockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	err = <-started
	c.cmd, c.exited, c.log = cmd, exited, log
	c.mu.Unlock()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for psql(c.ConnString("postgres"), "SELECT 1") != nil {
		select {
		case <-exited:
			return fmt.Errorf("the server ended: %s", log)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("the server does not answer")
		}
	}
	return nil
}

// Kill ends the server and all its sessions at once, as a crash does.
func (c *Cluster) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Stopped first, so that it starts no session between the list and the kill.
	_ = c.cmd.Process.Signal(syscall.SIGSTOP)
	c.signalSessions(syscall.SIGKILL)
	_ = c.cmd.Process.Kill()
	<-c.exited
	_ = os.Remove(c.dir + "/data/postmaster.pid")
}

// Signal sends sig to the server and all its sessions: SIGSTOP freezes it.
func (c *Cluster) Signal(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.cmd.Process.Signal(sig)
	c.signalSessions(sig)
}

// Hold stops those of the server's processes whose title has that name ("walwriter"), until Kill.
func (c *Cluster) Hold(tb testing.TB, name string) {
	tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	held := false
	for _, pid := range c.children() {
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(title, []byte(name)) {
			held = syscall.Kill(pid, syscall.SIGSTOP) == nil
		}
	}
	if !held {
		tb.Fatalf("PostgreSQL has no %s", name)
	}
}

func (c *Cluster) signalSessions(sig syscall.Signal) {
	for _, pid := range c.children() {
		_ = syscall.Kill(pid, sig)
	}
}

// children are the processes of the server. Each leads a process group of its own.
func (c *Cluster) children() []int {
	var all []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		pid, _, _ := strings.Cut(string(text), " ")
		// The command in parentheses may hold spaces; state and parent follow it.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(c.cmd.Process.Pid) {
			if n, err := strconv.Atoi(pid); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

func (c *Cluster) stop() {
	c.Kill()
	_ = os.RemoveAll(c.dir)
}
