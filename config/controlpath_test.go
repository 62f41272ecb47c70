package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestControlPathIsFoundInAFileWithMistakes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[broker]\nurls = nonsense\n[relay]\ncontrol = /run/x.sock\nsocket_mode = 9\n": "/run/x.sock",
		"[message]\npriority = high\n":               "/run/koji-relay/control.sock",
		"[relay]\ncontrol = relative/control.sock\n": "/run/koji-relay/control.sock",
	} {
		path := filepath.Join(t.TempDir(), "relay.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ControlPath(path); err != nil || got != want {
			t.Errorf("%q gives %q, %v; want %q", text, got, err, want)
		}
	}
	if got, err := ControlPath(filepath.Join(t.TempDir(), "none.conf")); err == nil {
		t.Errorf("a file that is not there gives %q: a relay that was not meant", got)
	}
}
