package integration

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

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
	staysAfterRemoval(t, b, "/etc/koji-hub/plugins/koji_relay.conf.rpmsave\n")
}

// rpmIsOlder asks rpm whether the old version is older; ok is false where rpm cannot tell.
func rpmIsOlder(b *box) (older, ok bool) {
	out, err := b.try(`rpm --eval '%{lua: print(rpm.vercmp("` + oldVersion + `", "` + newVersion + `"))}'`)
	n, convErr := strconv.Atoi(out)
	return n < 0, err == nil && convErr == nil
}
