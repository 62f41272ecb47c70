package config

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/amqpconn/dialect"
)

// protonmsgMaxAge is what max_age = 0 means.
const protonmsgMaxAge = 24 * time.Hour

// crossCheck looks at how values that are right in themselves go together. A value that could not be taken
// takes no part: what it lacks would be reported as the fault of others.
func (r *reading) crossCheck() {
	c := r.config
	r.maxAge()
	r.named()
	r.checkDialect()
	if c.Relay.MaxInflightBytes < c.Relay.MaxRequestBytes &&
		r.right("relay.max_inflight_bytes", "relay.max_request_bytes") {
		r.complain("relay", "max_inflight_bytes", fmt.Sprintf("less than max_request_bytes = %d, so that such a "+
			"request could never be taken; raise it or lower that", c.Relay.MaxRequestBytes))
	}
	if c.Broker.Key != "" && c.Broker.Cert == "" && r.right("broker.cert") {
		r.complain("broker", "key", "set without cert; set cert to the certificate that belongs to it")
	}
	if r.right("broker.user_file", "broker.password_file") {
		r.checkCredentialFiles()
		if r.right("broker.urls", "broker.sasl", "broker.cert") {
			r.checkLogin()
		}
	}
}

// checkDialect finds a prefix that the dialect chosen by name cannot express: no message could be sent.
func (r *reading) checkDialect() {
	b := &r.config.Broker
	var wrong *dialect.PrefixError
	if b.Dialect == Auto || !r.right("broker.topic_prefix", "broker.dialect") {
		return
	}
	if _, err := dialect.Choose(b.Dialect, b.TopicPrefix, dialect.Peer{}); errors.As(err, &wrong) {
		r.complain("broker", "topic_prefix", "means nothing with dialect = "+b.Dialect+"; "+wrong.Remedy)
	}
}

// right reports whether all of these values could be taken.
func (r *reading) right(ids ...string) bool {
	return !slices.ContainsFunc(ids, func(id string) bool { return r.wrong[id] })
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

func (r *reading) checkCredentialFiles() {
	b := &r.config.Broker
	switch {
	case b.UserFile != "" && b.PasswordFile == "":
		r.complain("broker", "user_file", "set without password_file; set both or none")
	case b.UserFile == "" && b.PasswordFile != "":
		r.complain("broker", "password_file", "set without user_file; set both or none")
	}
}

func (r *reading) checkLogin() {
	b := &r.config.Broker
	withUser, tls := 0, false
	for _, u := range b.URLs {
		if u.HasUser {
			withUser++
		}
		tls = tls || u.TLS
	}
	if b.UserFile != "" && withUser == len(b.URLs) {
		r.complain("broker", "user_file",
			"set although every URL has a user of its own, which goes before it; keep one of the two")
	}
	user := b.UserFile != "" || withUser > 0
	switch {
	case b.SASL == SASLPlain && !user:
		r.complain("broker", "sasl",
			"needs a user; set user_file and password_file, or write user:password@ into urls")
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
