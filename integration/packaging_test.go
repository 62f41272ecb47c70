package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"koji-relay/internal/devbroker"
)

// The versions that are built: an upgrade goes from the one to the other.
const oldVersion, newVersion = "1.0.0~rc1", "1.0.0+3.gabcdef0"

// packages is a directory with the packages of one version.
type packages string

// buildPackages runs packaging/build in the directory top.
func buildPackages(top, out, version string, env ...string) (packages, error) {
	cmd := exec.Command(filepath.Join(top, "packaging", "build"), out)
	cmd.Env = append(append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1700000000"), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("packaging/build: %w\n%s", err, text)
	}
	return packages(out), nil
}

var oldPackages = sync.OnceValues(func() (packages, error) {
	return buildPackages("..", filepath.Join(scratch, "old"), oldVersion)
})

var newPackages = sync.OnceValues(func() (packages, error) {
	return buildPackages("..", filepath.Join(scratch, "new"), newVersion)
})

// built gives both versions.
func built(t testing.TB) (older, newer packages) {
	t.Helper()
	older, err := oldPackages()
	if err == nil {
		newer, err = newPackages()
	}
	if err != nil {
		t.Fatal(err)
	}
	return older, newer
}

// file is the package's only file that matches.
func (p packages) file(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(string(p), pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: want one file %s, got %v %v", p, pattern, found, err)
	}
	return found[0]
}

func (p packages) deb(t testing.TB) string       { return p.file(t, "koji-relay_*.deb") }
func (p packages) pluginDeb(t testing.TB) string { return p.file(t, "koji-relay-hub-plugin_*.deb") }
func (p packages) rpm(t testing.TB) string       { return p.file(t, "koji-relay-1*.rpm") }
func (p packages) pluginRPM(t testing.TB) string { return p.file(t, "koji-relay-hub-plugin-*.rpm") }

// TestPackagesAreReproducible builds once more, elsewhere, later, and as someone else.
func TestPackagesAreReproducible(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	_, first := built(t)
	top := filepath.Join(t.TempDir(), "a copy") // with a space, as a home directory may have
	copySources(t, top)
	second, err := buildPackages(top, t.TempDir(), newVersion, "TZ=Asia/Kathmandu", "LANG=C.UTF-8",
		"HOSTNAME=elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"koji-relay_*.deb", "koji-relay-hub-plugin_*.deb", "koji-relay-1*.rpm",
		"koji-relay-hub-plugin-*.rpm"} {
		a, b := first.file(t, pattern), second.file(t, pattern)
		if filepath.Base(a) != filepath.Base(b) || fileSum(t, a) != fileSum(t, b) {
			t.Errorf("%s and %s, of the same sources, differ", a, b)
		}
	}
}

// copySources copies what git knows or would, with the tools that are built already.
func copySources(t testing.TB, top string) {
	t.Helper()
	script := `mkdir -p "$1/.cache/bin"; cp .cache/bin/nfpm-* "$1/.cache/bin/" || true
	git ls-files -z --cached --others --exclude-standard |
	xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' - |
		tar --null -T - -c | (umask 077; tar -x --no-same-permissions -C "$1")`
	cmd := exec.Command("sh", "-ec", script, "-", top)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy the sources: %v\n%s", err, out)
	}
}

func fileSum(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(text)
}

// TestVendorArchiveIsCompleteAndReproducible: with it, no module has to be fetched.
func TestVendorArchiveIsCompleteAndReproducible(t *testing.T) {
	t.Parallel()
	if _, err := where(); err != nil {
		skipOrFail(t, "the packages are tried where servers are: %v", err)
	}
	archive := func(dir string) string {
		cmd := exec.Command("../packaging/vendor-archive", dir)
		cmd.Env = append(os.Environ(), "VERSION="+newVersion, "SOURCE_DATE_EPOCH=1700000000")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("packaging/vendor-archive: %v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	first, second := archive(t.TempDir()), archive(t.TempDir())
	if fileSum(t, first) != fileSum(t, second) {
		t.Errorf("%s and %s, of the same sources, differ", first, second)
	}
	top := t.TempDir()
	copySources(t, top)
	if out, err := exec.Command("tar", "-xzf", first, "-C", top).CombinedOutput(); err != nil {
		t.Fatalf("unpack the archive: %v\n%s", err, out)
	}
	// Every package of the program and of its tests is found. Compiling all of it again would show no more.
	list := exec.Command("go", "list", "-mod=vendor", "-deps", "-test", "./...")
	list.Dir = top
	list.Env = append(os.Environ(), "GOPROXY=off", "GOMODCACHE="+t.TempDir(), "GOFLAGS=")
	if out, err := list.CombinedOutput(); err != nil {
		t.Errorf("the dependencies are not complete: %v\n%s", err, out)
	}
}

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

// TestDebUnderSystemd: what a site runs. Its steps follow each other. It measures time, so nothing runs
// beside it.
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
	t.Run("reload", func(t *testing.T) { reloadIsChecked(t, b) })
	t.Run("ten restarts are unnoticed", func(t *testing.T) {
		hub := b.hub(t, "www-data", "-workers", "8")
		for range 10 {
			before := len(bus.Received())
			eventually(t, 20*time.Second, "commits between two restarts", func() error {
				if came := len(bus.Received()) - before; came < 20 {
					return fmt.Errorf("%d came", came)
				}
				return nil
			})
			b.run(t, "systemctl reset-failed koji-relay; systemctl restart koji-relay")
		}
		report := hub.stop(t)
		report.unnoticed(t, "ten restarts under systemd, 8 workers")
		arrivedAtLeastOnce(t, bus, report.Taken)
	})
	t.Run("watchdog", func(t *testing.T) { watchdogRestarts(t, b) })
	t.Run("start limit", func(t *testing.T) { startLimitClosesTheSocket(t, b) })
	t.Run("upgrade is unnoticed", func(t *testing.T) {
		file := b.put(t, newer.deb(t))
		pid := b.run(t, "systemctl show -P MainPID koji-relay")
		hub := b.hub(t, "www-data", "-workers", "8")
		b.run(t, "dpkg -i "+file)
		b.becomes(t, "active", "systemctl is-active koji-relay")
		if now := b.run(t, "systemctl show -P MainPID koji-relay"); now == pid {
			t.Error("the old version still runs")
		}
		if v := site.version(t); v != newVersion {
			t.Errorf("version %s runs, want %s", v, newVersion)
		}
		hub.stop(t).unnoticed(t, "upgrade, 8 workers")
	})
	t.Run("removal", func(t *testing.T) {
		b.run(t, "dpkg -r koji-relay")
		b.becomes(t, "inactive\ninactive", "systemctl is-active koji-relay.socket koji-relay.service")
		b.prints(t, "", "pidof koji-relay || true")
		b.prints(t, "", "find /run/koji-relay /etc/systemd/system/*.wants -name '*koji-relay.*' -o -name '*.sock'")
	})
}

// unitsAreSound lets systemd read the units.
func unitsAreSound(t *testing.T, b *box) {
	b.prints(t, "", "systemd-analyze verify --man=no /usr/lib/systemd/system/koji-relay.service "+
		"/usr/lib/systemd/system/koji-relay.socket")
	out, err := b.try("systemd-analyze security --no-pager --threshold=15 koji-relay.service")
	if err != nil {
		t.Errorf("the service is exposed more than 1.5:\n%s", out)
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

func watchdogRestarts(t *testing.T, b *box) {
	dropIn := "/etc/systemd/system/koji-relay.service.d/watchdog.conf"
	b.write(t, dropIn, "644", []byte("[Service]\nWatchdogSec=1\nRestartSec=100ms\n"))
	b.run(t, "systemctl daemon-reload; systemctl restart koji-relay")
	// Several times as long as the watchdog waits, it is content. Then the process hangs.
	b.run(t, "sleep 3; test $(systemctl show -P NRestarts koji-relay) = 0")
	b.run(t, "kill -STOP $(systemctl show -P MainPID koji-relay)")
	b.becomes(t, "1 active", "echo $(systemctl show -P NRestarts koji-relay) $(systemctl is-active koji-relay)")
	out := b.run(t, "journalctl -u koji-relay --no-pager -n 3000 -o cat")
	if !strings.Contains(out, "SIGABRT") || !strings.Contains(out, "goroutine ") {
		t.Error("the journal does not show what the relay was doing")
	}
	b.run(t, "rm "+dropIn+"; systemctl daemon-reload; systemctl reset-failed koji-relay; systemctl restart "+
		"koji-relay")
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
	if refused.Taken != 0 || !refused.because("connection refused") || refused.SlowestMS > 100 {
		t.Errorf("with the socket closed: %+v; want each refused at once", refused)
	}
	b.run(t, "cat /good >"+packagedConfigPath+"; systemctl reset-failed koji-relay; systemctl start koji-relay")
	if r := b.hub(t, "www-data", "-count", "1").stop(t); r.Taken != 1 {
		t.Errorf("after the repair a commit was not taken: %v", r.Fallbacks)
	}
}

// TestRPM: rpm's own look at the packages, and their life under rpm and systemd, on a Debian since that is
// what there is: with --nodeps, since nothing here was installed by rpm.
func TestRPM(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	if b == nil {
		t.Log("not shown here: rpm in a clean system needs a container engine")
		return
	}
	older, newer := built(t)
	program, err := workersBinary()
	if err != nil {
		t.Fatal(err)
	}
	b.put(t, program)
	oldFile, oldPlugin, newFile := b.put(t, older.rpm(t)), b.put(t, older.pluginRPM(t)), b.put(t, newer.rpm(t))

	b.run(t, "rpm -K --nosignature "+oldFile+" "+oldPlugin)
	b.prints(t, "koji-relay 1.0.0~rc1 1 Apache-2.0 koji-relay",
		"rpm -qp --qf '%{NAME} %{VERSION} %{RELEASE} %{LICENSE} %{BUILDHOST}' "+oldFile)
	b.prints(t, "noarch", "rpm -qp --qf '%{ARCH}' "+oldPlugin)
	b.prints(t, "/etc/koji-hub/plugins/koji_relay.conf", "rpm -qp --configfiles "+oldPlugin)
	files := strings.Split(b.run(t, "rpm -qlp "+oldFile), "\n")
	for _, want := range []string{
		"/usr/bin/koji-relay", "/usr/lib/systemd/system/koji-relay.service",
		"/usr/lib/systemd/system/koji-relay.socket", "/usr/lib/sysusers.d/koji-relay.conf",
		"/usr/lib/tmpfiles.d/koji-relay.conf", "/usr/share/man/man1/koji-relay-serve.1.gz",
		"/usr/share/bash-completion/completions/koji-relay", "/usr/share/zsh/site-functions/_koji-relay",
		"/usr/share/fish/vendor_completions.d/koji-relay.fish", "/usr/share/doc/koji-relay/protonmsg.conf.example",
		"/usr/share/licenses/koji-relay/LICENSE", "/etc/koji-relay",
	} {
		if !slices.Contains(files, want) {
			t.Errorf("the .rpm has no %s", want)
		}
	}
	if slices.Contains(files, packagedConfigPath) {
		t.Errorf("the .rpm has %s, which is of koji-hub-plugins", packagedConfigPath)
	}
	if now, ok := rpmIsOlder(b); ok && !now {
		t.Errorf("rpm does not take %s for newer than %s", newVersion, oldVersion)
	}

	// Into a root folder, with all files and their owners as rpm sees them.
	b.run(t, "mkdir /root-folder; rpm -i --root /root-folder --nodeps --noscripts --nosignature "+oldFile+" "+
		oldPlugin+
		"; rpm -V --root /root-folder --nodeps koji-relay koji-relay-hub-plugin; "+
		"/root-folder/usr/bin/koji-relay --version")

	// And into the system.
	b.run(t, "rpm -i --nodeps --nosignature "+oldFile+" "+oldPlugin+
		"; rpm -V --nodeps koji-relay koji-relay-hub-plugin")
	b.prints(t, "koji-relay apache\napache:48", "id -Gn koji-relay; getent group apache | cut -d: -f1,3")
	unitsAreSound(t, b)
	site := startPackaged(t, b, "apache")
	b.prints(t, "660 koji-relay:apache", "stat -c '%a %U:%G' /run/koji-relay/hub.sock")
	b.run(t, "echo '# changed' >>/etc/koji-hub/plugins/koji_relay.conf; rpm -U --nodeps --nosignature "+newFile+
		" "+b.put(t, newer.pluginRPM(t)))
	b.prints(t, "# changed", "tail -n 1 /etc/koji-hub/plugins/koji_relay.conf")
	b.becomes(t, "active", "systemctl is-active koji-relay")
	if v := site.version(t); v != newVersion {
		t.Errorf("version %s runs, want %s", v, newVersion)
	}
	if r := b.hub(t, "", "-count", "1").stop(t); r.Taken != 1 {
		t.Errorf("after the upgrade a commit was not taken: %v", r.Fallbacks)
	}
	b.run(t, "rpm -e --nodeps koji-relay koji-relay-hub-plugin")
	b.becomes(t, "inactive\ninactive", "systemctl is-active koji-relay.socket koji-relay.service")
	b.fails(t, "ls /usr/bin/koji-relay /usr/lib/systemd/system/koji-relay.socket")
}

// rpmIsOlder asks rpm whether the old version is older; ok is false where rpm cannot tell.
func rpmIsOlder(b *box) (older, ok bool) {
	out, err := b.try(`rpm --eval '%{lua: print(rpm.vercmp("` + oldVersion + `", "` + newVersion + `"))}'`)
	n, convErr := strconv.Atoi(out)
	return n < 0, err == nil && convErr == nil
}
