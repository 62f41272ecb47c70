package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"koji-relay/config"
	"koji-relay/internal/amqpconn/sasl"
	"koji-relay/relay"
)

// loaded reads a configuration with these lines in its section broker, which is the first, and behind it.
func loaded(t *testing.T, lines string) (*config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "protonmsg.conf")
	if err := os.WriteFile(path, []byte("[broker]\ntopic_prefix = koji\n"+lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Load(path)
}

// The configuration may not import what logs in, so that the words stand twice.
func TestConfigurationHasTheWordsOfTheLogin(t *testing.T) {
	t.Parallel()
	with := map[string]string{
		sasl.Plain: "urls = amqp://u:p@broker\n", sasl.External: "urls = amqps://broker\ncert = /client.pem\n",
	}
	for _, policy := range sasl.Policies() {
		lines := with[policy]
		if lines == "" {
			lines = "urls = amqp://broker\n"
		}
		c, err := loaded(t, lines+"sasl = "+policy+"\n")
		if err != nil {
			t.Errorf("sasl = %s: %v", policy, err)
			continue
		}
		if _, err := relay.New(RelayOptions(c, slog.New(slog.DiscardHandler))); err != nil {
			t.Errorf("sasl = %s: %v", policy, err)
		}
	}
	_, err := loaded(t, "urls = amqp://broker\nsasl = none\n")
	for _, policy := range sasl.Policies() {
		if err == nil || !strings.Contains(err.Error(), policy) {
			t.Errorf("another word: %v does not name %s", err, policy)
		}
	}
}

func TestWordsBecomeWhatTheRelayDoes(t *testing.T) {
	t.Parallel()
	c, err := loaded(t, "urls = amqp://broker\n")
	if err != nil {
		t.Fatal(err)
	}
	if o := RelayOptions(c, nil); o.Shuffle || o.DropUnroutable || o.BodyAsData {
		t.Errorf("by default %+v", o)
	}
	c, err = loaded(t, "urls = amqp://broker\nurl_order = random\nunroutable = drop\n"+
		"[message]\nbody_section = data\n")
	if err != nil {
		t.Fatal(err)
	}
	if o := RelayOptions(c, nil); !o.Shuffle || !o.DropUnroutable || !o.BodyAsData {
		t.Errorf("%+v", o)
	}
}
