package config

import (
	"regexp"
	"strings"
)

// readerPattern keeps a name fit for file names, unit names, SQL and labels of metrics.
var readerPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,30}$`)

func readerName(text string) (string, error) {
	if text != "" && !readerPattern.MatchString(text) {
		return "", bad("not a name; write up to 31 of a-z, 0-9, _ and -, the first one a letter or a digit")
	}
	return text, nil
}

// stateDirectory is where koji-relay@NAME.service lets a relay with a name write.
func stateDirectory(name string) string { return "/var/lib/koji-relay-" + name }

// namedDefaults are the defaults of a relay with a name, where they differ: nothing is shared but the outbox.
var namedDefaults = []struct{ section, key, value string }{
	{"queue", "store", StoreFile},
	{"queue", "path", "/var/lib/koji-relay-NAME/queue.db"},
	{"history", "path", "/var/lib/koji-relay-NAME/history"},
	{"relay", "socket", "/run/koji-relay-NAME/hub.sock"},
	{"relay", "control", "/run/koji-relay-NAME/control.sock"},
	{"relay", "admin", ""}, // the port belongs to the relay without a name
}

// named gives a relay with a name its defaults, and refuses what it cannot share.
func (r *reading) named() {
	c := r.config
	if c.Relay.Name == "" || !r.right("relay.name") {
		return
	}
	for _, d := range namedDefaults {
		if r.doc.lookup(d.section, d.key) == nil {
			r.byName(d.section, d.key, strings.ReplaceAll(d.value, "NAME", c.Relay.Name))
		}
	}
	if c.Queue.Store != StoreFile && r.right("queue.store") {
		r.complain("queue", "store", "proton_queue belongs to the relay without a name, and this one is called "+
			c.Relay.Name+"; remove the line, or write file")
	}
	if !c.Queue.Enabled && r.right("queue.enabled") {
		r.complain("queue", "enabled", "a relay with a name needs its queue, for what it takes from the outbox; "+
			"remove the line")
	}
}

// byName replaces the default of a key.
func (r *reading) byName(section, name, value string) {
	k := findKey(section, name)
	if err := k.set(r.config, value); err != nil {
		panic("default of [" + section + "] " + name + ": " + err.Error())
	}
	for i, s := range r.config.settings {
		if s.Section == section && s.Key == name {
			r.config.settings[i].Value, r.config.settings[i].Changed = k.show(value), true
			r.config.settings[i].Source = "[relay] name"
		}
	}
}

// ReadsOutbox reports whether the relay takes events from the outbox.
func (c *Config) ReadsOutbox() bool {
	return c.Queue.Enabled && (c.Queue.Store == StorePostgres || c.Relay.Name != "")
}

func namedDefault(section, key string) string {
	for _, d := range namedDefaults {
		if d.section == section && d.key == key {
			return d.value
		}
	}
	return ""
}
