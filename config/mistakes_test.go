package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files and docs/configuration.md anew")

// Each file of testdata/mistakes has one mistake (many-at-once has many); beside it stands what an
// administrator is told.
func TestEachMistakeIsExplained(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/mistakes/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".conf"), func(t *testing.T) {
			t.Parallel()
			got := explain(t, file)
			golden := strings.TrimSuffix(file, ".conf") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-%s +now):\n%s", golden, diff)
			}
			if got == "" {
				t.Error("nothing was found wrong")
			}
			if strings.Contains(strings.ReplaceAll(got, "with a secret", ""), "cret") {
				t.Errorf("a secret is printed:\n%s", got)
			}
		})
	}
}

// explain is every problem and warning, a line each, as check prints them.
func explain(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := parse("protonmsg.conf", string(text))
	var found *Error
	switch {
	case err == nil:
		found = &Error{Warnings: cfg.Warnings}
	case !errors.As(err, &found):
		t.Fatalf("load: %v", err)
	}
	var b strings.Builder
	for _, p := range found.Problems {
		b.WriteString("problem: " + p.String() + "\n")
	}
	for _, w := range found.Warnings {
		b.WriteString("warning: " + w.String() + "\n")
	}
	return b.String()
}
