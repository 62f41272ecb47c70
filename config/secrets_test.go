package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// verified loads and verifies a file in a directory of its own; DIR in the texts stands for that.
func verified(t *testing.T, text string, files map[string]string, modes map[string]os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	files["protonmsg.conf"] = text
	for name, content := range files {
		path := filepath.Join(dir, name)
		writeFile(t, path, strings.ReplaceAll(content, "DIR", dir))
		mode := os.FileMode(0o600)
		if m, ok := modes[name]; ok {
			mode = m
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(filepath.Join(dir, "protonmsg.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, w := range c.Warnings {
		lines = append(lines, strings.ReplaceAll(w.String(), dir+"/", ""))
	}
	return strings.Join(lines, "\n")
}

func TestSecretsThatOthersCanReadAreNamed(t *testing.T) {
	t.Parallel()
	cert, key := keyPair(t)
	const rest = "topic_prefix = topic://koji\n[queue]\nstore = file\npath = DIR/queue.db\n"
	login := "[broker]\nurls = amqps://b\nuser_file = DIR/user\npassword_file = DIR/password\n" + rest
	inURL := "[broker]\nurls = amqps://u:sesame@b\n" + rest
	remedy := func(group, file string) string {
		if os.Getuid() != 0 {
			return "chmod 600 " + file
		}
		return "chgrp " + group + " " + file + "; chmod 640 " + file
	}
	world := func(name string) map[string]os.FileMode { return map[string]os.FileMode{name: 0o644} }
	for name, tt := range map[string]struct {
		text  string
		files map[string]string
		modes map[string]os.FileMode
		want  string // empty: no warning
	}{
		"a password file": {login, map[string]string{"user": "u", "password": "p"}, world("password"),
			"protonmsg.conf:4: [broker] password_file = password: every local user can read a password there (mode " +
				"0644); " + remedy("koji-relay", "password")},
		"a user's name": {login, map[string]string{"user": "u", "password": "p"}, world("user"), ""},
		"a group may": {login, map[string]string{"user": "u", "password": "p"},
			map[string]os.FileMode{"password": 0o640}, ""},
		"a key file": {"[broker]\nurls = amqps://b\ncert = DIR/c\nkey = DIR/k\n" + rest,
			map[string]string{"c": cert, "k": key}, world("k"),
			"[broker] key = k: every local user can read a private key"},
		"a certificate": {"[broker]\nurls = amqps://b\ncert = DIR/c\nkey = DIR/k\n" + rest,
			map[string]string{"c": cert, "k": key}, world("c"), ""},
		"a key beside its cert": {"[broker]\nurls = amqps://b\ncert = DIR/c\n" + rest,
			map[string]string{"c": cert + key}, world("c"),
			"[broker] cert = c: every local user can read a private key"},
		"a password in a URL": {inURL, map[string]string{}, world("protonmsg.conf"),
			"protonmsg.conf:2: [broker] urls = amqps://***@b:5671: every local user can read the password in this " +
				"file (mode 0644); " + remedy(webGroup(), "protonmsg.conf")},
		"no password": {"[broker]\nurls = amqps://b\n" + rest, map[string]string{}, world("protonmsg.conf"),
			""},
		"the database's": {"[broker]\nurls = amqps://b\ntopic_prefix = koji\n[queue]\ndatabase = host=db " +
			"password='sesame'\n", map[string]string{}, world("protonmsg.conf"),
			"[queue] database = host=db password=***: every local user"},
		"the database's URL": {"[broker]\nurls = amqps://b\ntopic_prefix = koji\n[queue]\ndatabase = " +
			"postgres://u:sesame@db/koji\n", map[string]string{}, world("protonmsg.conf"),
			"[queue] database = postgres://***@db/koji: every local user"},
		"a database without": {"[broker]\nurls = amqps://b\ntopic_prefix = koji\n[queue]\ndatabase = " +
			"postgres://u@db/koji\n", map[string]string{}, world("protonmsg.conf"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := verified(t, tt.text, tt.files, tt.modes)
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" || strings.Contains(got, "sesame") {
				t.Errorf("warnings:\n%s", got)
			}
		})
	}
}

func TestRemedyForAReadableSecretLeavesItToTheRelay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "password")
	writeFile(t, path, "sesame")
	owner := os.Getuid()
	if owner == 0 {
		owner = 4711
		if err := os.Chown(path, owner, -1); err != nil {
			t.Fatal(err)
		}
	}
	group := "chgrp koji-relay " + path + "; chmod 640 " + path
	for uid, want := range map[int]string{owner: "chmod 600 " + path, owner + 1: group, 0: group} {
		if got := narrow(uid, "koji-relay", path); got != want {
			t.Errorf("for user %d: %s", uid, got)
		}
	}
}

func TestPasswordOnAPlainWireIsNamed(t *testing.T) {
	t.Parallel()
	for urls, want := range map[string]string{
		"amqp://u:p@broker.example.com": "urls = amqp://***@broker.example.com:5672: the password " +
			"crosses the network unencrypted; use amqps://broker.example.com",
		"amqps://u:p@a amqp://u:p@192.0.2.1":    "use amqps://192.0.2.1",
		"amqp://u:p@localhost":                  "",
		"amqp://u:p@127.0.0.1 amqp://u:p@[::1]": "",
		"amqp://broker.example.com":             "",
		"amqps://u:p@broker.example.com":        "",
	} {
		got := verified(t, "[broker]\nurls = "+urls+"\ntopic_prefix = koji\n[queue]\nenabled = off\n",
			map[string]string{}, nil)
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %s", urls, got)
		}
	}
}

// The plugin would collect nothing, and the relay would never hear of it.
func TestPluginPatternsThatMatchNothingAreNamed(t *testing.T) {
	t.Parallel()
	const text = "[broker]\nurls = amqp://b\ntopic_prefix = koji\n[queue]\nenabled = off\n"
	for callbacks, want := range map[string]string{
		"*":            "",
		"post* preTag": "",
		"posttag postT*": "koji_relay.conf:2: [koji_relay] callbacks = posttag: matches none of Koji's " +
			"callbacks, so that it publishes nothing; did you mean postTag?",
		"protonmsg":       "callbacks = protonmsg: matches none",
		"postTag, preTag": "a comma in it",
	} {
		got := verified(t, text, map[string]string{"koji_relay.conf": "[koji_relay]\ncallbacks = " + callbacks +
			"\n"}, nil)
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: %s", callbacks, got)
		}
	}
}
