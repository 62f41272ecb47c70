package config

import (
	"testing"
	"time"
)

const minimal = "[broker]\nurls = amqp://broker.example.com\ntopic_prefix = topic://koji\n"

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("protonmsg.conf", []byte(text))
	if err != nil {
		t.Fatalf("parse:\n%s\n%v", text, err)
	}
	return c
}

func TestProtonmsgConfWorksUnchanged(t *testing.T) {
	t.Parallel()
	c := mustParse(t, `
[broker]
urls = amqps://broker1.example.com:5671 amqps://broker2.example.com:5671
cert = /etc/koji-hub/plugins/client.pem
cacert = /etc/koji-hub/plugins/ca.pem
topic_prefix = topic://koji
connect_timeout = 15
send_timeout = 45

[message]
extra_limit = -500
ttl = 86400.5

[queue]
enabled = true
batch_size = 50
max_age = 48
`)
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	if len(c.Broker.URLs) != 2 || c.Broker.URLs[1].Address() != "broker2.example.com:5671" || !c.Broker.URLs[1].TLS {
		t.Errorf("urls: %v", c.Broker.URLs)
	}
	if c.Broker.ConnectTimeout != 15*time.Second || c.Message.ExtraLimit != 500 ||
		c.Message.TTL != 86400500*time.Millisecond || c.Queue.MaxAge != 48*time.Hour || c.Queue.BatchSize != 50 {
		t.Errorf("values: %+v", c)
	}
}
