package config

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// webUsers are the users as whom web servers run, on Fedora and RHEL and on Debian.
var webUsers = []string{"apache", "www-data"}

// ClosedSocket warns when the hub's socket is there and no user but its owner can open it. It knows what
// /etc/passwd and /etc/group say, and says nothing where these or hub.conf are absent: the hub then runs
// elsewhere.
func (c *Config) ClosedSocket() []Problem {
	return c.closedSocket(HubConfigPath, "/etc/passwd", "/etc/group")
}

func (c *Config) closedSocket(hubConfig, passwd, group string) []Problem {
	if _, err := os.Stat(hubConfig); err != nil {
		return nil
	}
	info, err := os.Stat(c.Relay.Socket)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return nil
	}
	a, err := readAccounts(passwd, group)
	if err != nil {
		return nil
	}
	why := a.closed(info)
	if why == "" {
		return nil
	}
	return []Problem{c.at("relay", "socket", why+", so that the hub can use the outbox only; give it the web "+
		"server's group: "+a.remedy())}
}

// accounts are the users and groups of this host.
type accounts struct {
	users  []account
	groups map[int]localGroup // by number
}

type account struct {
	name       string
	uid, group int
}

type localGroup struct {
	name    string
	members []string
}

// readAccounts reads files as of passwd(5) and group(5). It passes over lines that are none.
func readAccounts(passwd, group string) (a accounts, err error) {
	a.groups = make(map[int]localGroup)
	for _, f := range []struct {
		path   string
		fields int
		add    func(fields []string, id int)
	}{
		{passwd, 4, func(f []string, uid int) {
			if gid, err := strconv.Atoi(f[3]); err == nil {
				a.users = append(a.users, account{f[0], uid, gid})
			}
		}},
		{group, 4, func(f []string, gid int) {
			a.groups[gid] = localGroup{f[0], strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' })}
		}},
	} {
		text, err := os.ReadFile(f.path)
		if err != nil {
			return a, err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) < f.fields {
				continue
			}
			if id, err := strconv.Atoi(fields[2]); err == nil {
				f.add(fields, id)
			}
		}
	}
	return a, nil
}

// closed says why no user but a socket's owner can connect to it, which takes the right to write; empty when
// another can, or when that is not known. root can always, and is no web server.
func (a accounts) closed(info fs.FileInfo) string {
	owner, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	if !ok || mode&0o002 != 0 {
		return ""
	}
	group, known := a.groups[int(owner.Gid)]
	if !known {
		return ""
	}
	name := strconv.Itoa(int(owner.Uid))
	for _, u := range a.users {
		switch {
		case u.uid == int(owner.Uid):
			if name = u.name; slices.Contains(webUsers, name) {
				return "" // the hub runs as the relay's own user
			}
		case u.uid == 0:
		case mode&0o020 != 0 && owner.Gid != 0 &&
			(u.group == int(owner.Gid) || slices.Contains(group.members, u.name)):
			return ""
		}
	}
	return fmt.Sprintf("no user but %s can open it (group %s, mode %04o)", name, group.name, mode)
}

// remedy names the web server's group where there is one.
func (a accounts) remedy() string {
	group := "GROUP"
	for _, g := range a.groups {
		if slices.Contains(webUsers, g.name) {
			group = g.name
		}
	}
	return fmt.Sprintf("SocketGroup=%s by 'systemctl edit koji-relay.socket', or socket_group = %s where "+
		"systemd does not open it", group, group)
}
