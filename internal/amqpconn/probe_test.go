package amqpconn

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/certtest"
	"koji-relay/internal/devbroker"
)

func TestProbeTellsAllAboutAGoodBroker(t *testing.T) {
	t.Parallel()
	a := certtest.New(t)
	b := startBroker(t, devbroker.Options{
		Product: "RabbitMQ", Version: "4.0.5", MaxMessageSize: 1 << 24, Mechanisms: []string{"PLAIN", "EXTERNAL"},
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.Issue("127.0.0.1")},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool()},
	})
	o := testOptions()
	o.CACert, o.Cert = a.Write("ca.pem", a.Cert), a.WritePair("client.pem", a.Issue("hub"))
	r := Probe(t.Context(), o, b.URL())
	if r.Err != nil {
		t.Fatalf("%s: %v", r.Stage, r.Err)
	}
	if r.Broker != b.Addr() || r.Remote != b.Addr() || r.Login != "EXTERNAL" ||
		strings.Join(r.Offered, " ") != "PLAIN EXTERNAL" ||
		r.Product != "RabbitMQ" || r.Version != "4.0.5" || r.Dialect != dialect.RabbitMQ ||
		r.Target != "/exchanges/amq.topic/koji.build.tag" || r.MaxSize != 1<<24 || !r.Credit || r.RoundTrip == "" {
		t.Errorf("%+v", r)
	}
	if r.TLS == nil || r.TLS.Server.Names[1] != "127.0.0.1" ||
		!strings.Contains(r.TLS.Server.Issuer, "test CA") || !strings.Contains(r.Client.Subject, "hub") {
		t.Errorf("TLS %+v, client %+v", r.TLS, r.Client)
	}
	if len(r.Warnings) != 2 { // both certificates end within the hour
		t.Errorf("warnings %q", r.Warnings)
	}
	if n := b.Stats().Messages; n != 0 {
		t.Errorf("%d messages were sent", n)
	}
}

func TestProbeNamesTheStageThatFails(t *testing.T) {
	t.Parallel()
	a := certtest.New(t)
	stopped := startBroker(t, devbroker.Options{})
	stopped.Stop()
	secret := func(text string) string {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, row := range []struct {
		name, stage, want string
		broker            *devbroker.Broker
		adjust            func(*Options)
	}{
		{"nobody there", stageTCP, "connection refused", stopped, nil},
		{"TLS", stageTLS, "unknown authority", startBroker(t, devbroker.Options{
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.Issue("127.0.0.1")}}}), nil},
		{"client certificate", stageTLS, "read cert", startBroker(t, devbroker.Options{
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.Issue("127.0.0.1")}}}),
			func(o *Options) { o.Cert = "/nonexistent" }},
		{"login", stageSASL, "refused the credentials",
			startBroker(t, devbroker.Options{Users: map[string]string{"u": "p"}}),
			func(o *Options) { o.UserFile, o.PasswordFile = secret("u"), secret("wrong-s3cret") }},
		{"prefix", stagePrefix, "set topic_prefix = /topic/koji",
			startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "3.10.8"}),
			func(o *Options) { o.TopicPrefix = "koji" }},
		{"options", "read options", "topic_prefix is empty", stopped, func(o *Options) { o.TopicPrefix = "" }},
	} {
		o := testOptions()
		if row.adjust != nil {
			row.adjust(&o)
		}
		r := Probe(t.Context(), o, row.broker.URL())
		if r.Err == nil || r.Stage != row.stage || !strings.Contains(r.Err.Error(), row.want) ||
			strings.Contains(r.Err.Error(), "s3cret") {
			t.Errorf("%s: at %q: %v", row.name, r.Stage, r.Err)
		}
	}
	refusing := startBroker(t, devbroker.Options{})
	refusing.Script("#", devbroker.Behaviour{
		Refuse: devbroker.RefuseSession, RefuseCause: devbroker.Cause{Condition: "amqp:unauthorized-access"},
	})
	if r := Probe(t.Context(), testOptions(), refusing.URL()); r.Stage != stageAttach ||
		!strings.Contains(r.Err.Error(), "permissions") {
		t.Errorf("attach: at %q: %v", r.Stage, r.Err)
	}
	silent := startBroker(t, devbroker.Options{})
	silent.ScriptConnections(devbroker.ConnBehaviour{StallAt: devbroker.StageOpen})
	o := testOptions()
	o.ConnectTimeout = 100 * time.Millisecond
	if r := Probe(t.Context(), o, silent.URL()); r.Stage != stageOpen ||
		!strings.Contains(r.Err.Error(), "connect_timeout") {
		t.Errorf("silent: at %q: %v", r.Stage, r.Err)
	}
	for stage, url := range map[string]string{stageSASL: "amqp://", stageTLS: "amqps://"} {
		port := startBroker(t, devbroker.Options{})
		port.Freeze()
		if r := Probe(t.Context(), o, url+port.Addr()); r.Stage != stage ||
			!strings.Contains(r.Err.Error(), "check that the port in urls") {
			t.Errorf("a silent port: at %q: %v", r.Stage, r.Err)
		}
	}
	if r := Probe(t.Context(), o, "http://broker"); r.Err == nil {
		t.Error("no error for what is no broker's URL")
	}
}

func TestProbeSeesABlockedPublisher(t *testing.T) {
	t.Parallel()
	credit := startBroker(t, devbroker.Options{})
	credit.Script("#", devbroker.Behaviour{NoCredit: true})
	window := startBroker(t, devbroker.Options{Product: "RabbitMQ", Version: "4.0.5", ShutWindow: true})
	for name, b := range map[string]*devbroker.Broker{"no credit": credit, "no window": window} {
		r := Probe(t.Context(), testOptions(), b.URL())
		if r.Err != nil || r.Credit || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "no credit") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
