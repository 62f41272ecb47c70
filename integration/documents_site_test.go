package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// documentLimit is how long one block may take; a hang ends there.
const documentLimit = 8 * time.Minute

// hubSite is the host of a Koji hub: a Debian with systemd and a network of its own, in which PostgreSQL and
// RabbitMQ listen where documents say. The web server is a unit that reads the line Plugins of hub.conf when
// it starts; tag is what it does for its users. The installed plugin does the rest.
type hubSite struct {
	*box
	root, address string // the box's root directory and address, as this machine sees them
	postgres      string // containers
	rabbit        string
}

func newHubSite(t *testing.T) *hubSite {
	t.Helper()
	s := &hubSite{box: newNetworkBox(t)}
	inspect := func(format string) string {
		out, err := exec.Command("docker", "inspect", "-f", format, s.name).Output()
		if err != nil {
			t.Fatalf("inspect the box: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	s.root = "/proc/" + inspect("{{.State.Pid}}") + "/root"
	s.address = inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
	s.postgres, s.rabbit = s.beside(t, postgresService), s.beside(t, rabbitmq40.service)

	s.write(t, "/etc/koji-hub/hub.conf", "640", []byte("[hub]\nDBName = koji\nDBUser = kojihub\n"+
		"DBHost = 127.0.0.1\nDBPass = k0ji-hub\nPlugins = protonmsg\n"))
	s.write(t, "/etc/systemd/system/apache2.service", "644", []byte("[Service]\nType=oneshot\n"+
		"RemainAfterExit=yes\nRuntimeDirectory=apache2\n"+
		`ExecStart=/bin/sh -c "grep ^Plugins /etc/koji-hub/hub.conf >/run/apache2/plugins"`+"\n"))
	s.run(t, "chown root:www-data /etc/koji-hub/hub.conf; mkdir /etc/koji-hub/plugins; systemctl "+
		"daemon-reload; "+
		"systemctl start apache2")
	eventually(t, time.Minute, "PostgreSQL of the hub", func() error {
		out, err := s.try("(: </dev/tcp/127.0.0.1/5432) 2>&1", "bash")
		if err == nil {
			_, err = s.psql("postgres", "SELECT 1")
		}
		return wrap(err, out)
	})
	for _, sql := range []string{"CREATE ROLE kojihub LOGIN PASSWORD 'k0ji-hub'",
		"CREATE DATABASE koji OWNER kojihub"} {
		if out, err := s.psql("postgres", sql); err != nil {
			t.Fatalf("%s: %v\n%s", sql, err, out)
		}
	}
	if out, err := s.psql("koji", hubTables); err != nil {
		t.Fatalf("the hub's tables: %v\n%s", err, out)
	}
	eventually(t, time.Minute, "RabbitMQ of the site", func() error {
		out, err := s.try("(: </dev/tcp/127.0.0.1/5672) 2>&1", "bash")
		return wrap(err, out)
	})
	return s
}

// hubTables are as much of Koji's own as a hub without builds has rows in, and one that a tagging writes to.
const hubTables = `SET ROLE kojihub;
	CREATE TABLE events (id serial PRIMARY KEY, time timestamptz NOT NULL DEFAULT clock_timestamp());
	CREATE TABLE package (id integer PRIMARY KEY, name text);
	CREATE TABLE tag (id integer PRIMARY KEY, name text);
	CREATE TABLE tag_config (tag_id integer, create_event integer, revoke_event integer);
	CREATE TABLE build (id integer PRIMARY KEY, pkg_id integer, version text, release text, state integer,
		completion_time timestamptz, promotion_time timestamptz);
	CREATE TABLE tag_listing (build_id integer, tag_id integer, create_event integer, revoke_event integer);
	CREATE TABLE task (id integer PRIMARY KEY, state integer, create_time timestamptz,
		completion_time timestamptz);
	CREATE TABLE repo (id integer PRIMARY KEY, state integer, creation_time timestamptz,
		state_time timestamptz);
	CREATE TABLE work (what text)`

func wrap(err error, out string) error {
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// newNetworkBox is newBox with systemd, and with a network of its own.
func newNetworkBox(t testing.TB) *box {
	t.Helper()
	return newBox(t, true, "--network", "bridge", "--add-host", "mq.example.com:127.0.0.1")
}

// beside starts a server of the tests in the box's network, at its usual port.
func (s *hubSite) beside(t *testing.T, service string) (name string) {
	t.Helper()
	name = "koji-relay-box-" + uuid.NewString()[:8]
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", "-v", name).Run() })
	if out, err := exec.Command("docker", "run", "-d", "--name", name, "--network", "container:"+s.name,
		"--label",
		"koji-relay.run="+os.Getenv("KOJI_RELAY_RUN"), imageName(service)).CombinedOutput(); err != nil {
		t.Fatalf("start %s: %v\n%s", service, err, out)
	}
	return name
}

// psql runs statements as the superuser.
func (s *hubSite) psql(database, sql string) (string, error) {
	cmd := exec.Command("docker", "exec", "-i", "-e", "PGPASSWORD="+password, s.postgres, "psql", "-h",
		"127.0.0.1",
		"-U", user, "-qAt", "-v", "ON_ERROR_STOP=1", database)
	cmd.Stdin = strings.NewReader(sql)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// asItStands runs a script as root in root's home, as a reader types it, with y as the answer to questions.
func (s *hubSite) asItStands(t testing.TB, at, script string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, documentLimit), "docker", "exec", "-i", "-w", "/root", s.name, "bash",
		"-ec",
		`yes 2>/dev/null | bash -ec "$0"`, script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		log, _ := s.try("journalctl -u koji-relay -n 20 --no-pager -o cat")
		t.Fatalf("%s: %v\n%s\n%s\nThe relay's log:\n%s", at, err, script, out, log)
	}
	return string(out)
}

// plugins is the administrator's change of hub.conf, and the web server's restart.
func (s *hubSite) plugins(t testing.TB, line string) {
	t.Helper()
	s.run(t, "sed -i 's/^Plugins.*/"+line+"/' /etc/koji-hub/hub.conf; grep -q '^"+line+"$' "+
		"/etc/koji-hub/hub.conf; "+
		"systemctl restart apache2")
}

// tag lets the hub tag a build some times, each in a commit, and gives what the plugin logged.
func (s *hubSite) tag(t testing.TB, build, tag, user string, times int) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), pluginPython(), "documents_hub.py", s.root,
		"host="+s.address+" dbname=koji user=kojihub password=k0ji-hub", build, tag, user, fmt.Sprint(times))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tag %s: %v\n%s", build, err, out)
	}
	return string(out)
}

// listen subscribes to the addresses koji.# and koji-trial.#, by queues of the broker's own, and gives how
// many messages came below each prefix since.
func (s *hubSite) listen(t testing.TB) (count func(prefix string) string) {
	t.Helper()
	definitions := `{"queues": [{"vhost": "/", "name": "koji", "durable": true, "auto_delete": false,
		"arguments": {}},
		{"vhost": "/", "name": "koji-trial", "durable": true, "auto_delete": false, "arguments": {}}],
		"bindings": [{"vhost": "/", "source": "amq.topic", "destination": "koji", "destination_type": "queue",
		"routing_key": "koji.#", "arguments": {}}, {"vhost": "/", "source": "amq.topic",
		"destination": "koji-trial",
		"destination_type": "queue", "routing_key": "koji-trial.#", "arguments": {}}]}`
	s.define(t, definitions)
	return func(prefix string) string {
		for line := range strings.Lines(s.ctl(t, "list_queues", "--silent", "name", "messages")) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == prefix {
				return f[1]
			}
		}
		return "no queue " + prefix
	}
}

// cameBelow waits for a number of messages below a prefix.
func cameBelow(t testing.TB, count func(string) string, prefix, want string) {
	t.Helper()
	eventually(t, 30*time.Second, "messages below "+prefix, func() error {
		if got := count(prefix); got != want {
			return fmt.Errorf("%s have come, want %s", got, want)
		}
		return nil
	})
}

func (s *hubSite) ctl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", append([]string{"exec", s.rabbit, "/opt/koji-relay-test/run", "ctl"},
		args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("rabbitmqctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (s *hubSite) define(t testing.TB, definitions string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "definitions.json")
	if err := os.WriteFile(path, []byte(definitions), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("docker", "cp", path,
		s.rabbit+":/definitions.json").CombinedOutput(); err != nil {
		t.Fatalf("docker cp: %v\n%s", err, out)
	}
	s.ctl(t, "import_definitions", "/definitions.json")
}

// inItsNetwork is a shell of this machine, in a directory of its own, for which 127.0.0.1 is the site.
func (s *hubSite) inItsNetwork(ctx context.Context, dir, script string, env ...string) *exec.Cmd {
	pid := strings.Split(s.root, "/")[2]
	cmd := exec.CommandContext(ctx, "nsenter", "-t", pid, "-n", "bash", "-ec", script)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8"), env...)
	return cmd
}

// copyIn copies a file or directory of this machine into the box.
func (s *hubSite) copyIn(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("docker", "cp", from, s.name+":"+to).CombinedOutput(); err != nil {
		t.Fatalf("docker cp: %v\n%s", err, bytes.TrimSpace(out))
	}
}
