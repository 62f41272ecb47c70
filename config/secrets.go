package config

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// exposed warns of secrets that others can read: in files, and on the wire.
func (v *verification) exposed() {
	b := &v.config.Broker
	v.readable("broker", "password_file", b.PasswordFile, "a password")
	if b.Key != "" {
		v.readable("broker", "key", b.Key, "a private key")
	}
	if text, err := os.ReadFile(b.Cert); err == nil && b.Cert != "" && hasBlock(text, "PRIVATE KEY") {
		v.readable("broker", "cert", b.Cert, "a private key")
	}
	for _, u := range b.URLs {
		if u.password != "" {
			v.readableConfig("broker", "urls")
			break
		}
	}
	if v.config.Queue.Enabled && v.config.Queue.Store == StorePostgres && v.config.Queue.Database.hasPassword() {
		v.readableConfig("queue", "database")
	}
	v.plain()
}

// readable warns of a file with a secret that every local user can read.
func (v *verification) readable(section, name, path, secret string) {
	if !filepath.IsAbs(path) {
		return
	}
	if mode := worldReadable(path); mode != 0 {
		v.warn(section, name, fmt.Sprintf("every local user can read %s there (mode %04o); chmod o-rwx %s",
			secret, mode, path))
	}
}

// readableConfig does the same for the file that sets a key.
func (v *verification) readableConfig(section, name string) {
	path := v.config.at(section, name, "").File
	if mode := worldReadable(path); mode != 0 {
		v.warn(section, name, fmt.Sprintf(
			"every local user can read the password in this file (mode %04o); chmod o-rwx %s",
			mode, path))
	}
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
