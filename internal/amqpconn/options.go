package amqpconn

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/sasl"
)

// Options says how to connect to any of the brokers. The configuration has the defaults; nothing is filled in
// here.
type Options struct {
	TopicPrefix string
	Dialect     string // one of dialect.Names(); auto chooses by what the broker says of itself

	// VirtualHost is RabbitMQ's, for URLs that name none. Empty means the broker's default.
	VirtualHost string

	SASL string // one of sasl.Policies()
	// The files are read at each connect, for URLs that carry no user.
	UserFile, PasswordFile string
	// Cert, Key and CACert are PEM files, read at each connect. Cert may hold the key as well; CACert may be
	// a directory.
	Cert, Key, CACert string
	// LegacyTLS takes server certificates with a common name only, and RSA key exchange.
	LegacyTLS bool

	ConnectTimeout time.Duration // for one connection from TCP to a link that takes messages
	SendTimeout    time.Duration // for one write
	IdleTimeout    time.Duration // silence after which a connection is dead
}

// Check refuses what nothing could be done with, all of it at once.
func (o *Options) Check() error {
	var errs []error
	if o.TopicPrefix == "" {
		errs = append(errs, errors.New("topic_prefix is empty: set it to the address that topics begin with"))
	}
	if names := dialect.Names(); !slices.Contains(names, o.Dialect) {
		errs = append(errs, fmt.Errorf("dialect = %q is not one of %q", o.Dialect, names))
	}
	if words := sasl.Policies(); !slices.Contains(words, o.SASL) {
		errs = append(errs, fmt.Errorf("sasl = %q is not one of %q", o.SASL, words))
	}
	if min(o.ConnectTimeout, o.SendTimeout, o.IdleTimeout) <= 0 {
		errs = append(errs, errors.New("connect_timeout, send_timeout and idle_timeout must be above 0"))
	}
	return errors.Join(errs...)
}
