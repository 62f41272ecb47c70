package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
)

// packagedConfig is protonmsg.conf for a relay in a box.
func packagedConfig(bus *devbroker.Broker, admin, more string) []byte {
	return fmt.Appendf(nil, `[broker]
urls = amqp://%s
topic_prefix = topic://koji
%s
[queue]
store = file

[relay]
admin = %s
`, bus.Addr(), more, admin)
}

const packagedConfigPath = "/etc/koji-hub/plugins/protonmsg.conf"

// TestDebOnPlainDebian: a container that has no systemd at all, where the relay is started by hand.
func TestDebOnPlainDebian(t *testing.T) {
	t.Parallel()
	b := newBox(t, false)
	older, newer := built(t)
	bus := startBus(t, devbroker.Options{})
	program, err := workersBinary()
	if err != nil {
		t.Fatal(err)
	}
	b.put(t, program)
	b.run(t, "dpkg -i "+b.put(t, older.deb(t))+" "+b.put(t, older.pluginDeb(t)))
	b.prints(t, "koji-relay "+oldVersion, "koji-relay --version | sed 's/ version / /'")
	b.prints(t, "koji-relay www-data", "id -Gn koji-relay")
	b.prints(t, "755 root:root\n644 root:root\n644 root:root\n755 koji-relay:koji-relay",
		"stat -c '%a %U:%G' /usr/bin/koji-relay /usr/lib/koji-hub-plugins/koji_relay.py "+
			"/etc/koji-hub/plugins/koji_relay.conf /run/koji-relay")
	b.prints(t, "/etc/koji-hub/plugins/koji_relay.conf",
		"cat /var/lib/dpkg/info/koji-relay-hub-plugin.conffiles")
	b.fails(t, "ls "+packagedConfigPath) // Koji's own package has that file

	// As the hub's configuration on Fedora and RHEL: for root and the web server's group only.
	b.write(t, packagedConfigPath, "640", packagedConfig(bus, "", ""))
	b.run(t, "chown root:www-data "+packagedConfigPath)
	ctx := within(t, 2*time.Minute)
	var log bytes.Buffer
	relay := b.command(ctx, "koji-relay", "koji-relay", "serve")
	relay.Stderr = &log
	if b.tree == "" { // the end of docker exec is not the end of what it runs
		t.Cleanup(func() { b.try("kill $(pidof koji-relay)") })
	}
	if err := relay.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Process.Kill(); relay.Wait() })
	eventually(t, 20*time.Second, "the relay's socket",
		func() error { _, err := b.try("test -S /run/koji-relay/hub.sock"); return err })
	if r := b.hub(t, "", "-count", "1").stop(t); r.Taken != 1 {
		t.Errorf("a commit was not taken: %v", r.Fallbacks)
	}
	arrivedAtLeastOnce(t, bus, 1)

	// An administrator's changes survive the upgrade.
	b.run(t, "echo '# changed' >>/etc/koji-hub/plugins/koji_relay.conf")
	b.run(t, "dpkg -i "+b.put(t, newer.deb(t))+" "+b.put(t, newer.pluginDeb(t)))
	b.prints(t, "koji-relay "+newVersion, "koji-relay --version | sed 's/ version / /'")
	b.prints(t, "# changed", "tail -n 1 /etc/koji-hub/plugins/koji_relay.conf")

	// Messages that were not sent are never removed, not even by purge.
	b.run(t, "dpkg -P koji-relay-hub-plugin; dpkg -r koji-relay")
	b.fails(t, "ls /usr/bin/koji-relay")
	if out := b.run(t, "dpkg -P koji-relay"); !strings.Contains(out, "/var/lib/koji-relay") {
		t.Errorf("purge does not say that it leaves the queue: %s", out)
	}
	b.run(t, "test -s /var/lib/koji-relay/queue.db")
	b.prints(t, "", "find / -xdev -name '*koji?relay*' -not -path '/var/lib/koji-relay*' -not -path '/*.deb' "+
		"-not -path '/proc/*'")
}

// startPackaged configures and starts the relay that is installed in b, with credentials of systemd.
func startPackaged(t testing.TB, b *box, webGroup string) *site {
	t.Helper()
	port := freePorts(t)
	s := &site{admin: "127.0.0.1:" + strconv.Itoa(port)}
	bus := startBus(t, devbroker.Options{Mechanisms: []string{"PLAIN"},
		Users: map[string]string{"koji": "k0ji-secret"}})
	s.bus = bus
	b.write(t, packagedConfigPath, "640", packagedConfig(bus, s.admin,
		"user_file = broker.user\npassword_file = broker.password\n"))
	b.run(t, "chown root:"+webGroup+" "+packagedConfigPath)
	b.write(t, "/etc/koji-relay/broker.user", "600", []byte("koji\n"))
	b.write(t, "/etc/koji-relay/broker.password", "600", []byte("k0ji-secret\n"))
	b.write(t, "/etc/systemd/system/koji-relay.service.d/credentials.conf", "644", []byte(
		"[Service]\nLoadCredential=broker.user:/etc/koji-relay/broker.user\n"+
			"LoadCredential=broker.password:/etc/koji-relay/broker.password\n"))
	b.run(t, "systemctl daemon-reload; systemctl enable --now koji-relay 2>&1 || { journalctl -n 50 "+
		"--no-pager; false; }")
	b.prints(t, "active\nactive", "systemctl is-active koji-relay.socket koji-relay.service")
	eventually(t, 20*time.Second, "the relay on the bus", func() error {
		if len(bus.Connections()) == 0 {
			return fmt.Errorf("it is not connected:\n%s", b.run(t, "journalctl -u koji-relay -n 20 --no-pager"))
		}
		return nil
	})
	return s
}

// relayLooksForOthers: the credentials are systemd's, so that check and tail ask the relay.
func relayLooksForOthers(t *testing.T, b *box) {
	const seen = "seen by the running relay, which has the systemd credentials"
	out := b.run(t, "koji-relay check --connect 2>&1 || true")
	if !strings.Contains(out, seen) || !strings.Contains(out, ": usable\n") {
		t.Errorf("check --connect as root:\n%s", out)
	}
	out = b.run(t, `koji-relay tail --count 1 >/tmp/shown 2>/tmp/told & tail=$!
		for n in $(seq 300); do grep -q subscribed /tmp/told && break; sleep 0.1; done
		timeout 60 koji-relay send-test; timeout 60 tail --pid=$tail -f /dev/null; cat /tmp/shown /tmp/told`)
	if !strings.Contains(out, "koji_relay.test") || !strings.Contains(out, "subscribed") {
		t.Errorf("send-test and what tail shows:\n%s", out)
	}
}

// site is a relay that an administrator set up, and its broker.
type site struct {
	bus   *devbroker.Broker
	admin string
}

// version is that of the program that runs.
func (s *site) version(t testing.TB) string {
	t.Helper()
	var status struct{ Version string }
	eventually(t, 10*time.Second, "the relay's status", func() error {
		answer, err := http.Get("http://" + s.admin + "/status")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		return json.NewDecoder(answer.Body).Decode(&status)
	})
	return status.Version
}

// TestDebUnderSystemd: what a site runs. Its steps follow each other.
func TestDebUnderSystemd(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	if b == nil {
		t.Log("not shown here: systemd as the first process needs a container engine")
		return
	}
	older, newer := built(t)
	program, err := workersBinary()
	if err != nil {
		t.Fatal(err)
	}
	b.put(t, program)
	b.run(t, "dpkg -i "+b.put(t, older.deb(t)))
	b.prints(t, "disabled\ndisabled", "systemctl is-enabled koji-relay.socket koji-relay.service || true")
	unitsAreSound(t, b)

	site := startPackaged(t, b, "www-data")
	bus := site.bus
	// In this order: each step leaves the relay as it found it.
	t.Run("the hub's user may hand over and no other", func(t *testing.T) { handOverByUser(t, b, bus) })
	t.Run("journal", func(t *testing.T) { journalHasFields(t, b, bus) })
	t.Run("the relay shows what only it may log in to", func(t *testing.T) { relayLooksForOthers(t, b) })
	t.Run("what is lost is an error in the journal", func(t *testing.T) { lossIsAnError(t, b, bus) })
	t.Run("reload", func(t *testing.T) { reloadIsChecked(t, b) })
	t.Run("ten restarts are unnoticed", func(t *testing.T) {
		hub := b.hub(t, "www-data", unhurried...)
		for range 10 {
			commitsCome(t, bus)
			b.run(t, "systemctl reset-failed koji-relay; systemctl restart koji-relay")
		}
		report := hub.stop(t)
		report.unnoticed(t, "ten restarts under systemd, 8 workers")
		arrivedAtLeastOnce(t, bus, report.Taken)
	})
	t.Run("watchdog", func(t *testing.T) { watchdogRestarts(t, b, bus) })
	t.Run("start limit", func(t *testing.T) { startLimitClosesTheSocket(t, b) })
	t.Run("upgrade is unnoticed", func(t *testing.T) {
		file := b.put(t, newer.deb(t))
		pid := b.run(t, "systemctl show -P MainPID koji-relay")
		hub := b.hub(t, "www-data", unhurried...)
		b.run(t, "dpkg -i "+file)
		b.becomes(t, "active", "systemctl is-active koji-relay")
		if now := b.run(t, "systemctl show -P MainPID koji-relay"); now == pid {
			t.Error("the old version still runs")
		}
		if v := site.version(t); v != newVersion {
			t.Errorf("version %s runs, want %s", v, newVersion)
		}
		report := hub.stop(t)
		report.unnoticed(t, "upgrade, 8 workers")
		arrivedAtLeastOnce(t, bus, report.Taken)
	})
	t.Run("removal and purge", func(t *testing.T) {
		// What a relay with a name leaves.
		b.run(t, "mkdir /run/koji-relay-bus /var/lib/koji-relay-bus; touch /run/koji-relay-bus/hub.sock")
		b.run(t, "dpkg -r koji-relay")
		b.becomes(t, "inactive\ninactive", "systemctl is-active koji-relay.socket koji-relay.service")
		b.prints(t, "", "pidof koji-relay || true")
		b.prints(t, "", "find /run/koji-relay* /etc/systemd/system/*.wants "+
			"-name '*koji-relay.*' -o -name '*.sock'")
		if out := b.run(t, "dpkg -P koji-relay"); !strings.Contains(out, "/var/lib/koji-relay") {
			t.Errorf("purge does not say that it leaves the queue: %s", out)
		}
		b.prints(t, "", "find /run -name 'koji-relay*'")
		staysAfterRemoval(t, b, "")
	})
}

// unitsAreSound lets systemd read the units.
func unitsAreSound(t *testing.T, b *box) {
	b.prints(t, "", "systemd-analyze verify --man=no /usr/lib/systemd/system/koji-relay.service "+
		"/usr/lib/systemd/system/koji-relay.socket")
	operations, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	figure := regexp.MustCompile(`shows an exposure of (\d)\.(\d) `).FindSubmatch(operations)
	if figure == nil {
		t.Fatal("docs/operations.md does not say how exposed the service is")
	}
	out, err := b.try(fmt.Sprintf("systemd-analyze security --no-pager --threshold=%s%s koji-relay.service",
		figure[1], figure[2]))
	if err != nil {
		t.Errorf("the service is exposed more than docs/operations.md says, %s.%s:\n%s", figure[1], figure[2],
			out)
	}
	t.Log(out[strings.LastIndex(out, "\n")+1:])
	b.prints(t, "755 koji-relay:koji-relay", "stat -c '%a %U:%G' /run/koji-relay")
}

func handOverByUser(t *testing.T, b *box, bus *devbroker.Broker) {
	before := len(bus.Received())
	if r := b.hub(t, "www-data", "-count", "1").stop(t); r.Taken != 1 {
		t.Errorf("the web server's commit was not taken: %v", r.Fallbacks)
	}
	eventually(t, 10*time.Second, "its message", func() error {
		if len(bus.Received()) == before {
			return fmt.Errorf("it is not there")
		}
		return nil
	})
	if r := b.hub(t, "nobody", "-count", "1").stop(t); r.Taken != 0 || !r.because("permission denied") {
		t.Errorf("the commit of just anyone: %+v", r)
	}
	b.prints(t, "660 koji-relay:www-data\n600 koji-relay:koji-relay",
		"stat -c '%a %U:%G' /run/koji-relay/hub.sock /run/koji-relay/control.sock")
}

func journalHasFields(t *testing.T, b *box, bus *devbroker.Broker) {
	text := b.run(t, "journalctl -u koji-relay BROKER="+bus.Addr()+" -o json --no-pager | head -n 1")
	var record struct {
		Message    string `json:"MESSAGE"`
		Priority   string `json:"PRIORITY"`
		Identifier string `json:"SYSLOG_IDENTIFIER"`
	}
	if err := json.Unmarshal([]byte(text), &record); err != nil {
		t.Fatalf("the journal has no record with BROKER=%s: %v %q", bus.Addr(), err, text)
	}
	if !strings.HasPrefix(record.Message, "broker connected broker="+bus.Addr()) || record.Priority != "6" ||
		record.Identifier != "koji-relay" {
		t.Errorf("the journal has %+v", record)
	}
	if out := b.run(t, "journalctl -u koji-relay --no-pager -o cat"); strings.Contains(out, "k0ji-secret") {
		t.Errorf("the journal has the password:\n%s", out)
	}
}

// lossIsAnError: with no broker up, 'journalctl -p err' names that, and the messages that grew too old. A
// message is made old by way of an export.
func lossIsAnError(t *testing.T, b *box, bus *devbroker.Broker) {
	bus.Stop()
	b.becomes(t, "yes", "journalctl -u koji-relay -p err -o cat --no-pager | grep -q 'no broker is up' && "+
		"echo yes")
	if r := b.hub(t, "www-data", "-count", "1").stop(t); r.Taken != 1 {
		t.Fatalf("a commit was not taken: %v", r.Fallbacks)
	}
	b.run(t, `koji-relay queue export >/tmp/queue.jsonl; koji-relay queue drop --all --yes
		sed -E 's/"20[0-9]{2}-/"2020-/g' /tmp/queue.jsonl | koji-relay queue import -
		systemctl reset-failed koji-relay; systemctl restart koji-relay`)
	const lost = "journalctl -u koji-relay -p err -o json --no-pager | grep 'messages are lost'"
	b.becomes(t, "1", lost+" | wc -l")
	var record struct{ PRIORITY, ADDRESS, MESSAGES string }
	text := b.run(t, lost)
	if err := json.Unmarshal([]byte(text), &record); err != nil || record.PRIORITY != "3" ||
		record.ADDRESS == "" || record.MESSAGES != "1" {
		t.Errorf("the journal has %+v, %v: %s", record, err, text)
	}
	if err := bus.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the relay on the bus", func() error {
		if len(bus.Connections()) == 0 {
			return fmt.Errorf("it is not connected")
		}
		return nil
	})
}

func reloadIsChecked(t *testing.T, b *box) {
	b.run(t, "systemctl reload koji-relay")
	b.run(t, "cp "+packagedConfigPath+" /good; echo nonsense >>"+packagedConfigPath)
	b.fails(t, "systemctl reload koji-relay")
	if out := b.run(t, "journalctl -u koji-relay --no-pager -n 8 -o cat"); !strings.Contains(out,
		packagedConfigPath+":12: ") {
		t.Errorf("the journal does not say where the mistake is:\n%s", out)
	}
	b.run(t, "cat /good >"+packagedConfigPath)
	b.prints(t, "active", "systemctl is-active koji-relay")
	b.run(t, "systemctl reload koji-relay")
}

// watchdogRestarts: what is frozen is ended and started again, while the hub goes on.
func watchdogRestarts(t *testing.T, b *box, bus *devbroker.Broker) {
	dropIn := "/etc/systemd/system/koji-relay.service.d/watchdog.conf"
	b.write(t, dropIn, "644", []byte("[Service]\nWatchdogSec=1\nRestartSec=100ms\n"))
	b.run(t, "systemctl daemon-reload; systemctl restart koji-relay")
	// Several times as long as the watchdog waits, it is content. Then the process hangs.
	b.run(t, "sleep 3; test $(systemctl show -P NRestarts koji-relay) = 0")
	socket := b.run(t, "stat -c %i /run/koji-relay/hub.sock")
	hub := b.hub(t, "www-data", "-workers", "8")
	commitsCome(t, bus)
	b.run(t, "kill -STOP $(systemctl show -P MainPID koji-relay)")
	b.becomes(t, "1 active", "echo $(systemctl show -P NRestarts koji-relay) $(systemctl is-active koji-relay)")
	b.prints(t, socket, "stat -c %i /run/koji-relay/hub.sock")
	commitsCome(t, bus)
	report := hub.stop(t)
	t.Logf("watchdog, 8 workers: %d commits taken, %d not, slowest %.0f ms: %v", report.Taken,
		report.fallbacks(), report.SlowestMS, report.Fallbacks)
	// Some waited in the frozen relay for longer than a hub waits. The socket was open all the time.
	for reason := range report.Fallbacks {
		if strings.Contains(reason, "dial ") {
			t.Errorf("the socket was closed meanwhile: %s", reason)
		}
	}
	arrivedAtLeastOnce(t, bus, report.Taken)
	out := b.run(t, "journalctl -u koji-relay --no-pager -n 3000 -o cat")
	if !strings.Contains(out, "SIGABRT") || !strings.Contains(out, "goroutine ") {
		t.Error("the journal does not show what the relay was doing")
	}
	b.run(t, "rm "+dropIn+"; systemctl daemon-reload; systemctl reset-failed koji-relay; systemctl restart "+
		"koji-relay")
}

// commitsCome waits for twenty more messages on the bus.
func commitsCome(t *testing.T, bus *devbroker.Broker) {
	t.Helper()
	before := len(bus.Received())
	eventually(t, 20*time.Second, "commits on the bus", func() error {
		if came := len(bus.Received()) - before; came < 20 {
			return fmt.Errorf("%d came", came)
		}
		return nil
	})
}

// staysAfterRemoval: just what operations.md says under "Remove", and a file that one kind of package leaves.
func staysAfterRemoval(t *testing.T, b *box, more string) {
	t.Helper()
	b.prints(t, more+packagedConfigPath+`
/etc/koji-relay
/etc/koji-relay/broker.password
/etc/koji-relay/broker.user
/etc/systemd/system/koji-relay.service.d
/etc/systemd/system/koji-relay.service.d/credentials.conf
/var/lib/koji-relay
/var/lib/koji-relay/queue.db
/var/lib/koji-relay/queue.db.history
/var/lib/koji-relay/queue.db.history/state.db
/var/lib/koji-relay/queue.db.reserve`,
		`find / -xdev \( -path '*koji?relay*' -o -name protonmsg.conf \) -not -path '/koji*' \
			-not -path '/root-folder*' | grep -v '/20[0-9-]*.db$' | sort`)
	b.prints(t, "koji-relay", "getent passwd koji-relay | cut -d: -f1")
}

func startLimitClosesTheSocket(t *testing.T, b *box) {
	b.run(t, "cp "+packagedConfigPath+" /good; echo nonsense >>"+packagedConfigPath)
	hub := b.hub(t, "www-data", "-workers", "8")
	b.fails(t, "systemctl restart koji-relay")
	b.becomes(t, "failed failed service-start-limit-hit",
		"echo $(systemctl is-active koji-relay.socket koji-relay.service) $(systemctl show -P Result "+
			"koji-relay.socket)")
	report := hub.stop(t)
	t.Logf("a relay that cannot start: %d commits taken before, %d not, slowest %.0f ms: %v", report.Taken,
		report.fallbacks(), report.SlowestMS, report.Fallbacks)
	refused := b.hub(t, "www-data", "-count", "100").stop(t)
	const atOnce = 1000 // ms; they wait 2 s for an answer
	if refused.Taken != 0 || !refused.because("connection refused") || refused.SlowestMS > atOnce {
		t.Errorf("with the socket closed: %+v; want each refused at once", refused)
	}
	b.run(t, "cat /good >"+packagedConfigPath+"; systemctl reset-failed koji-relay; systemctl start koji-relay")
	if r := b.hub(t, "www-data", "-count", "1").stop(t); r.Taken != 1 {
		t.Errorf("after the repair a commit was not taken: %v", r.Fallbacks)
	}
}
