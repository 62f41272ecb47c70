package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return Load(confFile(t, "[broker]\nurls = amqp://b:5672\ntopic_prefix = topic://koji\n"+text))
}

func TestRelayWithANameSharesNothingButTheOutbox(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, "[relay]\nname = new-bus\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.Queue.Store != StoreFile || c.Queue.Path != "/var/lib/koji-relay-new-bus/queue.db" ||
		c.HistoryDir() != "/var/lib/koji-relay-new-bus/queue.db.history" ||
		c.Relay.Socket != "/run/koji-relay-new-bus/hub.sock" ||
		c.Relay.Control != "/run/koji-relay-new-bus/control.sock" || c.Relay.Admin != "" || !c.ReadsOutbox() {
		t.Errorf("it has %+v, %+v", c.Queue, c.Relay)
	}
	for _, s := range c.Settings() {
		if s.Key == "control" && (s.Value != c.Relay.Control || s.Source != "[relay] name") {
			t.Errorf("check shows %+v", s)
		}
	}
	c, err = loadText(t, "[queue]\nstore = file\npath = /srv/q.db\n[relay]\nname = 2\nadmin = 127.0.0.1:9764\n"+
		"control = /run/c.sock\n")
	if err != nil || c.Queue.Path != "/srv/q.db" || c.Relay.Admin != "127.0.0.1:9764" ||
		c.Relay.Control != "/run/c.sock" || c.Relay.Socket != "/run/koji-relay-2/hub.sock" {
		t.Errorf("what the file says was not taken: %+v (%v)", c, err)
	}
}

func TestRelayWithoutANameHasTheDefaultsOfAlways(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "[relay]\nname =\n"} {
		c, err := loadText(t, text)
		if err != nil || c.Queue.Store != StorePostgres || c.Relay.Control != "/run/koji-relay/control.sock" ||
			c.Relay.Admin != "127.0.0.1:9763" {
			t.Errorf("%q: %+v (%v)", text, c, err)
		}
	}
}

func TestNameThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[relay]\nname = New":                               "not a name",
		"[relay]\nname = ../x":                              "not a name",
		"[relay]\nname = -x":                                "not a name",
		"[relay]\nname = a b":                               "not a name",
		"[relay]\nname = " + strings.Repeat("n", 32):        "not a name",
		"[queue]\nstore = postgres\n[relay]\nname = new":    "proton_queue belongs to the relay without a name",
		"[queue]\nenabled = off\n[relay]\nname = new":       "needs its queue",
		"[queue]\nstore = postgres\n[relay]\nname = NEW-ER": "not a name",
	} {
		_, err := loadText(t, text+"\n")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%q gave %v, want one problem with %q", text, err, want)
		}
	}
}

func TestControlPathOfARelayWithAName(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[relay]\nname = new\n":                          "/run/koji-relay-new/control.sock",
		"[relay]\nname = new\ncontrol = /run/c.sock\n":   "/run/c.sock",
		"[relay]\nname = NO\n":                           "/run/koji-relay/control.sock",
		"[relay]\nname = new\ncontrol = relative.sock\n": "/run/koji-relay-new/control.sock",
	} {
		if got, err := ControlPath(confFile(t, text)); err != nil || got != want {
			t.Errorf("%q: %s (%v), want %s", text, got, err, want)
		}
	}
}

func confFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relay.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
