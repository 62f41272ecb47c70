package integration

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"testing"
)

// TestSecurityClaimsHaveTheirTests: each claim of docs/security.md names a test, and each test is there.
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
	for line := range bytes.Lines(text) {
		isClaim := bytes.HasPrefix(line, []byte("| ")) && !bytes.HasPrefix(line, []byte("| what somebody"))
		if isClaim && !bytes.Contains(line, []byte("`Test")) && !bytes.Contains(line, []byte("`Fuzz")) &&
			!bytes.Contains(line, []byte("`test_")) {
			t.Errorf("a claim without a test: %s", line)
		}
	}
	if len(named) < 40 {
		t.Errorf("docs/security.md names %d tests", len(named))
	}
	for _, match := range named {
		if name := string(match[1]); !there[name] {
			t.Errorf("docs/security.md names %s, which there is not", name)
		}
	}
}
