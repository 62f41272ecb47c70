package pgtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Pooler starts a PgBouncer before the server of connString (keywords), in "session" or "transaction" mode,
// and gives the connection string of the same database through it. It stops it after the test.
func Pooler(tb testing.TB, connString, mode string) string {
	tb.Helper()
	pooled, stop, err := startPooler(connString, mode)
	if err != nil {
		missing(tb, err)
	}
	tb.Cleanup(stop)
	return pooled
}

func startPooler(connString, mode string) (pooled string, stop func(), err error) {
	tool, err := exec.LookPath("pgbouncer")
	if err != nil {
		if _, statErr := os.Stat("/usr/sbin/pgbouncer"); statErr != nil {
			return "", nil, err
		}
		tool = "/usr/sbin/pgbouncer"
	}
	c, err := newCluster("", nil) // a directory, a port, and a user that is not root
	if err != nil {
		return "", nil, err
	}
	// Whoever connects is let in as the role that it names, as on the server.
	conf := fmt.Sprintf("[databases]\n* = %s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = "+
		"%d\nunix_socket_dir =\nauth_type = trust\nauth_file = %s/users\npool_mode = %s\nserver_login_retry = 1\n",
		serverPart(connString), c.port, c.dir, mode)
	for name, text := range map[string]string{"pgbouncer.ini": conf, "users": userList(connString)} {
		if err := os.WriteFile(c.dir+"/"+name, []byte(text), 0o644); err != nil {
			return "", nil, err
		}
	}
	cmd := exec.Command(tool, c.dir+"/pgbouncer.ini")
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	log, err := os.Create(c.dir + "/log")
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(c.dir)
	}
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(c.port))
		if err == nil {
			conn.Close()
			return connString + fmt.Sprintf(" host=127.0.0.1 port=%d", c.port), stop, nil
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			stop()
			return "", nil, fmt.Errorf("pgbouncer does not answer: %s", text)
		}
	}
}

// serverPart are the keywords that say where the server is.
func serverPart(connString string) string {
	var kept []string
	for _, pair := range strings.Fields(connString) {
		if name, _, _ := strings.Cut(pair, "="); name == "host" || name == "port" {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, " ")
}

// userList names the users of connString, as PgBouncer wants them.
func userList(connString string) string {
	var b strings.Builder
	for _, part := range strings.Split(connString, "user=")[1:] {
		name, _, _ := strings.Cut(strings.TrimPrefix(part, "'"), " ")
		if strings.HasPrefix(part, "'") {
			name, _, _ = strings.Cut(part[1:], "'")
		}
		fmt.Fprintf(&b, "%q \"\"\n", name)
	}
	return b.String()
}
