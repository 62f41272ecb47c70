package config

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
)

// exposed warns of secrets that others can read: in files, and on the wire.
func (v *verification) exposed() {
	b := &v.config.Broker
	v.readable("broker", "password_file", b.PasswordFile, "a password", relayGroup)
	if b.Key != "" {
		v.readable("broker", "key", b.Key, "a private key", webGroup())
	}
	if text, err := os.ReadFile(b.Cert); err == nil && b.Cert != "" && hasBlock(text, "PRIVATE KEY") {
		v.readable("broker", "cert", b.Cert, "a private key", webGroup())
	}
	for _, u := range b.URLs {
		if u.password != "" {
			v.readableConfig("broker", "urls")
			break
		}
	}
	if v.config.ReadsOutbox() && v.config.Queue.Database.hasPassword() {
		v.readableConfig("queue", "database")
	}
	v.plain()
}

// readable warns of a file with a secret that every local user can read. It names the group that shall.
func (v *verification) readable(section, name, path, secret, group string) {
	if !filepath.IsAbs(path) {
		return
	}
	if mode := worldReadable(path); mode != 0 {
		v.warn(section, name, fmt.Sprintf("every local user can read %s there (mode %04o); %s", secret, mode,
			narrow(os.Getuid(), group, path)))
	}
}

// readableConfig does the same for the file that sets a key.
func (v *verification) readableConfig(section, name string) {
	path := v.config.at(section, name, "").File
	if mode := worldReadable(path); mode != 0 {
		v.warn(section, name, fmt.Sprintf(
			"every local user can read the password in this file (mode %04o); %s", mode,
			narrow(os.Getuid(), webGroup(), path)))
	}
}

// relayGroup is the group that the packages make for the relay's user.
const relayGroup = "koji-relay"

// webGroup is the web server's group, in which the packages put the relay's user: what protonmsg read is for
// it.
func webGroup() string {
	for _, name := range webUsers {
		if _, err := user.LookupGroup(name); err == nil {
			return name
		}
	}
	return webUsers[0]
}

// narrow says how to keep others from a file. To take their right away is not enough: the relay may have
// read it by that. Who runs the relay and owns the file needs no group.
func narrow(uid int, group, path string) string {
	if info, err := os.Stat(path); err == nil && uid != 0 {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) == uid {
			return "chmod 600 " + path
		}
	}
	return fmt.Sprintf("chgrp %s %s; chmod 640 %s", group, path, path)
}

// worldReadable is the mode of a file that everybody can read, else 0.
func worldReadable(path string) os.FileMode {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return 0
	}
	return info.Mode().Perm()
}

// plain warns of a password that crosses a network in the clear.
func (v *verification) plain() {
	b := &v.config.Broker
	if b.SASL != Auto && b.SASL != SASLPlain {
		return
	}
	for _, u := range b.URLs {
		if !u.TLS && (u.password != "" || !u.HasUser && b.UserFile != "") && !local(u.Host) {
			p := v.config.at("broker", "urls", "the password crosses the network unencrypted; use amqps://"+u.Host)
			p.Value = u.String()
			v.config.Warnings = append(v.config.Warnings, p)
		}
	}
}

// local reports whether a host is this machine by its name alone.
func local(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasPrefix(host, "localhost.") || strings.HasSuffix(host, ".localhost")
}
