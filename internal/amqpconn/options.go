package amqpconn

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"koji-relay/internal/amqpconn/dialect"
)

// Values of Options.SASL. The zero value means the first.
const (
	SASLAuto      = "auto"
	SASLPlain     = "plain"
	SASLExternal  = "external"
	SASLAnonymous = "anonymous"
)

// Options says how to connect to any of the brokers. The zero value of a field but TopicPrefix is a working default.
type Options struct {
	TopicPrefix string
	Dialect     string // one of dialect.Names(); auto chooses by what the broker says of itself

	// VirtualHost is RabbitMQ's, for URLs that name none. Empty means the broker's default.
	VirtualHost string

	SASL string
	// User and Password are used for URLs that carry none. The files, read at each connect, go before them.
	User, Password         string
	UserFile, PasswordFile string
	// Cert, Key and CACert are PEM files, read at each connect. Cert may hold the key as well; CACert may be a directory.
	Cert, Key, CACert string
	// LegacyTLS takes server certificates with a common name only, and RSA key exchange.
	LegacyTLS bool

	ConnectTimeout time.Duration // for one connection from TCP to a link that takes messages; 10 s
	SendTimeout    time.Duration // for one write; 60 s
	IdleTimeout    time.Duration // silence after which a connection is dead; 30 s
}

// Complete fills in defaults and refuses values that nothing could be done with.
func (o *Options) Complete() error {
	setDefault(&o.Dialect, dialect.Auto)
	setDefault(&o.SASL, SASLAuto)
	setDefault(&o.ConnectTimeout, 10*time.Second)
	setDefault(&o.SendTimeout, 60*time.Second)
	setDefault(&o.IdleTimeout, 30*time.Second)

	var errs []error
	if o.TopicPrefix == "" {
		errs = append(errs, errors.New("topic_prefix is empty: set it to the address that topics begin with"))
	}
	if names := dialect.Names(); !slices.Contains(names, o.Dialect) {
		errs = append(errs, fmt.Errorf("dialect = %q is not one of %q", o.Dialect, names))
	}
	if words := []string{SASLAuto, SASLPlain, SASLExternal, SASLAnonymous}; !slices.Contains(words, o.SASL) {
		errs = append(errs, fmt.Errorf("sasl = %q is not one of %q", o.SASL, words))
	}
	return errors.Join(errs...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
