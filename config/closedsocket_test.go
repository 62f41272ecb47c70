package config

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketThatTheHubCannotOpenIsNamed(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "kra") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("unix", path("hub.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	writeFile(t, path("hub.conf"), "")
	writeFile(t, path("protonmsg.conf"),
		"[broker]\nurls = amqp://b\ntopic_prefix = koji\n[queue]\nenabled = off\n"+
			"[relay]\nsocket = "+path("hub.sock")+"\n")
	c, err := Load(path("protonmsg.conf"))
	if err != nil {
		t.Fatal(err)
	}
	const own = 4711 // the relay's; the socket's group is that of the test
	uid, gid := os.Getuid(), os.Getgid()
	if gid == 0 { // nobody's group is root's; a web server's is another one
		if err := os.Chown(path("hub.sock"), -1, own); err != nil {
			t.Fatal(err)
		}
		gid = own
	}
	relay := fmt.Sprintf("root:x:0:0::/:/bin/sh\nkoji-relay:x:%d:%d::/:/bin/false\n", uid+1<<20, gid)
	if uid != 0 {
		relay = fmt.Sprintf("koji-relay:x:%d:%d::/:/bin/false\n", uid, gid)
	} else if err := os.Chown(path("hub.sock"), uid+1<<20, -1); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		passwd, group string
		mode          os.FileMode
		want          string // of the warning; empty for none
	}{
		"the relay's own group": {relay + "apache:x:48:48::/:/bin/false\n",
			fmt.Sprintf("koji-relay:x:%d:\napache:x:48:\n", gid), 0o660,
			"no user but koji-relay can open it (group koji-relay, mode 0660), so that the hub can use the outbox " +
				"only; give it the web server's group: SocketGroup=apache by"},
		"no web server is known": {relay, fmt.Sprintf("koji-relay:x:%d:\n", gid), 0o660, "SocketGroup=GROUP by"},
		"the group's own user": {relay + fmt.Sprintf("www-data:x:33:%d::/:/bin/false\n", gid),
			fmt.Sprintf("www-data:x:%d:\n", gid), 0o660, ""},
		"a member of the group": {relay, fmt.Sprintf("koji:x:%d:koji-relay,kojihub\n", gid), 0o660, "no user but"},
		"a member that exists": {relay + "kojihub:x:77:77::/:/bin/false\n",
			fmt.Sprintf("koji:x:%d:koji-relay,kojihub\n", gid), 0o660, ""},
		"a mode without the group": {relay + "apache:x:48:48::/:/bin/false\n",
			fmt.Sprintf("koji:x:%d:apache\n", gid), 0o600, "mode 0600"},
		"a mode for everybody":   {relay, fmt.Sprintf("koji-relay:x:%d:\n", gid), 0o666, ""},
		"a group from elsewhere": {relay, "apache:x:48:\n", 0o660, ""},
	} {
		writeFile(t, path("passwd"), tt.passwd+"a line that is none\n")
		writeFile(t, path("group"), tt.group)
		if err := os.Chmod(path("hub.sock"), tt.mode); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, p := range c.closedSocket(path("hub.conf"), path("passwd"), path("group")) {
			got += p.String()
		}
		if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("%s: %q", name, got)
		}
		if got := c.closedSocket(path("no hub"), path("passwd"), path("group")); got != nil {
			t.Errorf("%s, without a hub: %v", name, got)
		}
	}
}
