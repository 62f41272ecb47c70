package config

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"koji-relay/internal/pemfile"
)

// Verify looks at what the configuration names outside itself: certificates, credentials, the hub's
// configuration, the directory of the queue's file. It reads files and connects to nothing. Commands that
// only need values do without it; serve and check do not. It adds to Warnings, so that it comes before the
// configuration is shared. The error is an *Error.
func (c *Config) Verify() error {
	v := verification{config: c, hubConfig: HubConfigPath}
	v.certificates()
	for _, f := range []struct{ section, key, path string }{
		{"broker", "user_file", c.Broker.UserFile},
		{"broker", "password_file", c.Broker.PasswordFile},
	} {
		v.secret(f.section, f.key, f.path)
	}
	v.store()
	v.history()
	v.hubTime()
	v.exposed()
	v.pluginCallbacks()
	if len(v.problems) > 0 {
		return &Error{Problems: v.problems, Warnings: c.Warnings}
	}
	return nil
}

type verification struct {
	config    *Config
	hubConfig string // path of hub.conf
	problems  []Problem
}

func (v *verification) complain(section, name, text string) {
	v.problems = append(v.problems, v.config.at(section, name, text))
}

func (v *verification) warn(section, name, text string) {
	v.config.Warnings = append(v.config.Warnings, v.config.at(section, name, text))
}

// at is a problem with a key, at the place it was set.
func (c *Config) at(section, name, text string) Problem {
	p := Problem{File: c.Path, Section: section, Key: name, Text: text}
	for i, s := range c.settings {
		if s.Section != section || s.Key != name {
			continue
		}
		p.Value = s.Value
		if c.places[i].file != "" {
			p.File, p.Line = c.places[i].file, c.places[i].line
		}
	}
	return p
}

func (v *verification) certificates() {
	b := &v.config.Broker
	if b.Cert != "" {
		keyFile, keyName := b.Cert, "cert"
		if b.Key != "" {
			keyFile, keyName = b.Key, "key"
		}
		cert, okCert := v.readPEM("cert", b.Cert)
		key, okKey := cert, okCert
		if b.Key != "" {
			key, okKey = v.readPEM("key", b.Key)
		}
		if okCert && okKey {
			v.keyPair(cert, key, keyName, keyFile)
		}
	}
	if b.CACert != "" {
		v.authorities(b.CACert)
	}
}

// authorities looks at cacert, a file or a directory.
func (v *verification) authorities(path string) {
	_, err := pemfile.Pool(path)
	switch {
	case errors.Is(err, pemfile.ErrNoCertificate):
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			if _, ok := v.readPEM("cacert", path); !ok {
				return
			}
		}
		v.complain("broker", "cacert",
			"holds no certificate; give the PEM file of the authority that signed the brokers' certificates")
	case err != nil:
		v.complain("broker", "cacert", cause(err)+"; "+fileRemedy(err))
	}
}

func (v *verification) keyPair(cert, key []byte, keyName, keyFile string) {
	switch {
	case !hasBlock(cert, "CERTIFICATE"):
		v.complain("broker", "cert", "holds no certificate; give a PEM file with a CERTIFICATE block")
	case !hasBlock(key, "PRIVATE KEY"):
		remedy := "append the private key to it, or name its file with key"
		if keyName == "key" {
			remedy = "give a PEM file with a PRIVATE KEY block"
		}
		v.complain("broker", keyName, "holds no private key; "+remedy)
	case hasBlock(key, "ENCRYPTED PRIVATE KEY") || bytes.Contains(key, []byte("Proc-Type: 4,ENCRYPTED")):
		v.complain("broker", keyName,
			"holds a private key with a passphrase, which a daemon cannot type; remove it with: openssl pkey -in "+
				keyFile)
	default:
		if _, err := pemfile.KeyPair(cert, key); err != nil {
			v.complain("broker", keyName, "does not go with the certificate: "+
				strings.TrimPrefix(err.Error(), "tls: ")+"; give the key that the certificate was made for")
		}
	}
}

// hasBlock finds a PEM block whose type ends with kind ("RSA PRIVATE KEY" is a "PRIVATE KEY").
func hasBlock(text []byte, kind string) bool {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, kind) {
			return true
		}
	}
	return false
}

func (v *verification) readPEM(name, path string) ([]byte, bool) {
	text, ok := v.readFile("broker", name, path)
	if !ok {
		return nil, false
	}
	if block, _ := pem.Decode(text); block == nil {
		v.complain("broker", name, "is not a PEM file; convert it, for example with openssl x509 or openssl pkcs12")
		return nil, false
	}
	return text, true
}

func (v *verification) readFile(section, name, path string) ([]byte, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		v.complain(section, name, cause(err)+"; "+fileRemedy(err))
		return nil, false
	}
	return text, true
}

// LacksCredentials reports whether c names credentials of systemd that this process was not given.
func (c *Config) LacksCredentials() bool {
	lacks := func(path string) bool { return path != "" && !filepath.IsAbs(path) }
	return lacks(c.Broker.UserFile) || lacks(c.Broker.PasswordFile)
}

func (v *verification) secret(section, name, path string) {
	if path == "" {
		return
	}
	if !filepath.IsAbs(path) {
		v.complain(section, name, "names a systemd credential, but this process has none; begin it with / or "+
			"start the relay with LoadCredential="+path+":FILE")
		return
	}
	if text, ok := v.readFile(section, name, path); ok && len(bytes.TrimSpace(text)) == 0 {
		v.complain(section, name, "is an empty file; write the value into it")
	}
}

// store proves that the queue's store can be named; whether it answers is found out by connecting.
func (v *verification) store() {
	q := &v.config.Queue
	switch {
	case !q.Enabled:
	case q.Store == StoreFile:
		dir := filepath.Dir(q.Path)
		info, err := os.Stat(dir)
		switch {
		case v.madeLater(dir, err):
		case err != nil:
			v.complain("queue", "path", "its directory: "+cause(err)+"; create "+dir+" for the relay's user")
		case !info.IsDir():
			v.complain("queue", "path", dir+" is not a directory; give a path in a directory of the relay's user")
		}
	}
	if v.config.ReadsOutbox() && q.Database == HubDatabase {
		if _, err := LoadHubDatabase(v.hubConfig); err != nil {
			v.hubDatabase(err)
		}
	}
}

// madeLater reports whether dir is missing because no relay of this name has been started yet: its unit makes
// it (StateDirectory=).
func (v *verification) madeLater(dir string, err error) bool {
	return v.config.Relay.Name != "" && dir == stateDirectory(v.config.Relay.Name) &&
		errors.Is(err, fs.ErrNotExist)
}

// history proves that the directory of a history in files can be made.
func (v *verification) history() {
	dir := v.config.HistoryDir()
	if dir == "" || !v.config.HistoryKept() {
		return
	}
	dir = filepath.Dir(dir)
	info, err := os.Stat(dir)
	if !v.madeLater(dir, err) && (err != nil || !info.IsDir()) {
		v.complain("history", "path", "the directory that it is in is not there; create "+dir+
			" for the relay's user")
	}
}

func (v *verification) hubDatabase(err error) {
	const remedy = "set database to a connection string, or write store = file to try the relay out"
	var problems *Error
	if !errors.As(err, &problems) {
		v.complain("queue", "database", fmt.Sprintf("%s: %s; let the relay's user read it, %s", v.hubConfig,
			cause(err), remedy))
		return
	}
	v.problems = append(v.problems, problems.Problems...)
	v.complain("queue", "database", v.hubConfig+" cannot be used; correct it, or "+remedy)
}

// The hub plugin's configuration stands beside ours. Its timeout is what one commit may cost a hub worker.
const (
	pluginFile    = "koji_relay.conf"
	pluginSection = "koji_relay"
	pluginTimeout = 2 * time.Second // its default
)

// hubTime keeps what one commit can take below what the plugin waits: one that the plugin gave up would go
// to the outbox although it is being dealt with.
func (v *verification) hubTime() {
	handoff, store := v.config.Relay.HandoffTimeout, v.config.Queue.StoreTimeout
	limit := v.config.pluginTimeout()
	if handoff+store < limit {
		return
	}
	inSeconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	const text = "plus [%s] %s = %s is not less than the hub plugin's timeout of %s s; lower one of the two, " +
		"or raise timeout in " + pluginFile
	section, name, other := "relay", "handoff_timeout",
		[]any{"queue", "store_timeout", inSeconds(store), inSeconds(limit)}
	if v.config.at(section, name, "").Line == 0 { // the default; the other one is to blame
		section, name, other = "queue", "store_timeout",
			[]any{"relay", "handoff_timeout", inSeconds(handoff), inSeconds(limit)}
	}
	v.complain(section, name, fmt.Sprintf(text, other...))
}

// plugin is what the hub plugin's configuration says of a key; nil where it says nothing, or cannot be read.
// What is wrong with that file is the plugin's to say; it then uses its defaults.
func (c *Config) plugin(key string) *entry {
	path := filepath.Join(filepath.Dir(c.Path), pluginFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	doc := newDocument()
	doc.read(path, text)
	return doc.lookup(pluginSection, key)
}

// pluginTimeout is what a commit may cost a hub worker.
func (c *Config) pluginTimeout() time.Duration {
	if e := c.plugin("timeout"); e != nil {
		if timeout, err := seconds(0, maxSeconds)(e.raw); err == nil && timeout > 0 {
			return timeout
		}
	}
	return pluginTimeout
}

// pluginCallbacks warns of patterns by which the plugin collects nothing: such events never reach the relay.
func (v *verification) pluginCallbacks() {
	e := v.config.plugin("callbacks")
	if e == nil {
		return
	}
	p := Problem{File: e.place.file, Line: e.place.line, Section: pluginSection, Key: e.name, Value: e.raw}
	found := unmatched(e.raw, "")
	if _, err := patternList(e.raw); err != nil {
		found = valueErrors{{text: err.Error()}}
	}
	v.config.Warnings = append(v.config.Warnings, p.each(found)...)
}

// cause is the operating system's word without the path, which stands beside it.
func cause(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

func fileRemedy(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "give the path of a file that is there"
	case errors.Is(err, os.ErrPermission):
		return "let the relay's user read it"
	}
	return "give the path of a readable file"
}
