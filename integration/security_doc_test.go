package integration

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// TestSecurityClaimsHaveTheirTests: each test that docs/security.md names is there.
func TestSecurityClaimsHaveTheirTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("git", "grep", "-hoE", "^(func|def) (Test|Fuzz|test_)[A-Za-z0-9_]+", "--", "*_test.go",
		"*.py")
	cmd.Dir = ".."
	defined, err := cmd.Output()
	if err != nil {
		t.Fatalf("list the tests: %v", err)
	}
	there := make(map[string]bool)
	for line := range bytes.Lines(defined) {
		there[string(bytes.Fields(line)[1])] = true
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|test_)[A-Za-z0-9_]+)`").FindAllSubmatch(text, -1)
	if len(named) < 40 {
		t.Errorf("docs/security.md names %d tests", len(named))
	}
	for _, match := range named {
		if name := string(match[1]); !there[name] {
			t.Errorf("docs/security.md names %s, which there is not", name)
		}
	}
}
