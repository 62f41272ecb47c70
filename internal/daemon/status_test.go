package daemon

import (
	"path/filepath"
	"testing"

	"koji-relay/config"
)

func TestConfigOptionIsForAnyFileButTheDefaultOne(t *testing.T) {
	t.Parallel()
	here, err := filepath.Abs("new.conf")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		config.DefaultPath:             "",
		"/etc/koji-relay/new-bus.conf": "--config /etc/koji-relay/new-bus.conf",
		"/srv/it's here.conf":          `--config '/srv/it'\''s here.conf'`,
		"new.conf":                     "--config " + here,
	} {
		if got := configOption(path); got != want {
			t.Errorf("%s: %q, not %q", path, got, want)
		}
	}
}
