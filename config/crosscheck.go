package config

import (
	"fmt"
	"strconv"
	"time"
)

// PluginTimeout is the hub plugin's `timeout` unless its own configuration says otherwise: what one commit
// may cost a hub worker.
const PluginTimeout = 2 * time.Second

// protonmsgMaxAge is what max_age = 0 means.
const protonmsgMaxAge = 24 * time.Hour

// crossCheck looks at how values that are right in themselves go together.
func (r *reading) crossCheck() {
	c := r.config
	r.maxAge()
	r.checkHubTime()
	if c.Relay.MaxInflightBytes < c.Relay.MaxRequestBytes {
		r.complain("relay", "max_inflight_bytes", fmt.Sprintf("less than max_request_bytes = %d, so that such a request could never be taken; raise it or lower that", c.Relay.MaxRequestBytes))
	}
	if c.Relay.Socket == "" && c.Relay.Listen == "" {
		r.complain("relay", "socket", "empty, and so is listen, so that the hub has no way in; set one of them")
	}
	if c.Relay.Listen != "" && c.Relay.TokenFile == "" {
		r.complain("relay", "listen", "set without token_file, so that every local user could publish; set token_file")
	}
	if c.Broker.Key != "" && c.Broker.Cert == "" {
		r.complain("broker", "key", "set without cert; set cert to the certificate that belongs to it")
	}
	r.checkLogin()
	c.effective()
}

// checkHubTime keeps what one commit can cost below what the plugin waits: a commit that the plugin gave up
// would be put into the outbox although it is being dealt with.
func (r *reading) checkHubTime() {
	handoff, store := r.config.Relay.HandoffTimeout, r.config.Queue.StoreTimeout
	if handoff+store < PluginTimeout {
		return
	}
	const text = "plus [%s] %s = %s is not less than the hub plugin's timeout of %s s; lower one of them"
	if r.doc.lookup("relay", "handoff_timeout") != nil {
		r.complain("relay", "handoff_timeout", fmt.Sprintf(text, "queue", "store_timeout", inSeconds(store), inSeconds(PluginTimeout)))
		return
	}
	r.complain("queue", "store_timeout", fmt.Sprintf(text, "relay", "handoff_timeout", inSeconds(handoff), inSeconds(PluginTimeout)))
}

// maxAge follows protonmsg: max_age, unless it is absent or 0; then age; then 24 hours.
func (r *reading) maxAge() {
	q := &r.config.Queue
	set, retired := r.doc.lookup("queue", "max_age"), r.doc.lookup("queue", "age")
	switch {
	case set != nil && q.MaxAge > 0:
	case retired != nil:
		q.MaxAge = q.retiredAge
		r.config.setPlace("queue", "max_age", retired.place)
	case q.MaxAge == 0:
		q.MaxAge = protonmsgMaxAge
	}
}

func (r *reading) checkLogin() {
	b := &r.config.Broker
	if (b.UserFile == "") != (b.PasswordFile == "") {
		set, missing := "user_file", "password_file"
		if b.UserFile == "" {
			set, missing = missing, set
		}
		r.complain("broker", set, "set without "+missing+"; set both or none")
	}
	user, tls := b.UserFile != "", false
	for _, u := range b.URLs {
		if u.HasUser && b.UserFile != "" {
			r.complain("broker", "user_file", "set although "+u.String()+" names a user; keep one of the two")
			break
		}
		user, tls = user || u.HasUser, tls || u.TLS
	}
	switch {
	case b.SASL == SASLPlain && !user:
		r.complain("broker", "sasl", "needs a user; set user_file and password_file, or write user:password@ into urls")
	case b.SASL == SASLAnon && user:
		r.complain("broker", "sasl", "contradicts the user that is set; remove the user, or write plain")
	case b.SASL == SASLExternal && (b.Cert == "" || !tls):
		r.complain("broker", "sasl", "needs a client certificate; set cert and use amqps:// URLs")
	}
}

// complain adds a problem at the place where the key is set, or at its section if the default is at fault.
func (r *reading) complain(section, name, text string) {
	p := Problem{File: r.doc.lastFile(), Section: section, Key: name, Text: text}
	k := findKey(section, name)
	if e := r.doc.lookup(section, name); e != nil {
		value, _ := r.doc.expand(section, e)
		p.File, p.Line, p.Value = e.place.file, e.place.line, k.show(value)
	} else {
		p.Value = k.def
	}
	r.problems = append(r.problems, p)
}

func inSeconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
