package daemon

import (
	"log/slog"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/internal/amqpconn"
	"koji-relay/internal/subscribe"
	"koji-relay/queue"
	"koji-relay/queue/drain"
	"koji-relay/relay"
)

// This file maps the configuration to the options of the parts: the one place where both are known.

// RulesOptions are what c says about translation; the command translate uses them as well.
func RulesOptions(c *config.Config) callbacks.Options {
	return callbacks.Options{
		Events:      c.Message.Events,
		ExtraLimit:  c.Message.ExtraLimit,
		ExtraKeep:   c.Message.ExtraKeep,
		ExcludeTags: c.Message.ExcludeTags,
	}
}

// RelayOptions are what c says about brokers and sending. Commands that talk to the brokers by themselves
// (check --connect) use them as well, so that they see what serve sees.
func RelayOptions(c *config.Config, log *slog.Logger) relay.Options {
	o := relay.Options{
		Options: amqpconn.Options{
			TopicPrefix:    c.Broker.TopicPrefix,
			VirtualHost:    c.Broker.VirtualHost,
			Dialect:        c.Broker.Dialect,
			SASL:           c.Broker.SASL,
			UserFile:       c.Broker.UserFile,
			PasswordFile:   c.Broker.PasswordFile,
			Cert:           c.Broker.Cert,
			Key:            c.Broker.Key,
			CACert:         c.Broker.CACert,
			LegacyTLS:      c.Broker.LegacyTLS,
			ConnectTimeout: c.Broker.ConnectTimeout,
			SendTimeout:    c.Broker.SendTimeout,
			IdleTimeout:    c.Broker.IdleTimeout,
		},
		HandoffTimeout:   c.Relay.HandoffTimeout,
		Shuffle:          c.Broker.URLOrder == config.OrderRandom,
		DropUnroutable:   c.Broker.Unroutable == config.Drop,
		PreserveOrder:    c.Queue.PreserveOrder,
		TTL:              c.Message.TTL,
		Durable:          c.Message.Durable,
		Priority:         c.Message.Priority,
		BodyAsData:       c.Message.BodySection == config.SectionData,
		TestMode:         c.Broker.TestMode,
		TestModeFail:     c.Broker.TestModeFail,
		MaxInflightBytes: c.Relay.MaxInflightBytes,
		Logger:           log,
	}
	for _, u := range c.Broker.URLs {
		o.Brokers = append(o.Brokers, relay.Broker{URL: u.Reveal()})
	}
	return o
}

// SubscribeOptions are what c says about the brokers, for tail.
func SubscribeOptions(c *config.Config, log *slog.Logger) subscribe.Options {
	o := subscribe.Options{Options: RelayOptions(c, log).Options, Logger: log}
	for _, u := range c.Broker.URLs {
		o.URLs = append(o.URLs, u.Reveal())
	}
	return o
}

func limits(c *config.Config) queue.Limits {
	return queue.Limits{MaxBytes: c.Queue.MaxBytes, MaxAttempts: c.Queue.MaxAttempts}
}

func (d *Daemon) drainOptions(c *config.Config) drain.Options {
	return drain.Options{
		BatchSize:   c.Queue.BatchSize,
		BatchBytes:  int(c.Queue.BatchBytes),
		Interval:    c.Queue.Interval,
		RateLimit:   float64(c.Queue.RateLimit),
		MaxAttempts: c.Queue.MaxAttempts,
		Expiry: queue.Expiry{
			MaxAge:     c.Queue.MaxAge,
			ToDead:     c.Queue.Expired == config.DeadLetter,
			DeadMaxAge: c.Queue.DeadMaxAge,
			Each:       d.watch.expiredOne,
		},
		Logger:         d.log,
		Observe:        d.watch.drained,
		ObserveExpired: d.watch.expired,
	}
}
