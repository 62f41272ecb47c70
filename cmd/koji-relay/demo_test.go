package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"koji-relay/internal/demo"
)

// TestMain lets the test binary be the program where it is called koji-relay.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "koji-relay" {
		main()
	}
	os.Exit(m.Run())
}

func TestDemoLosesNothing(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	self, err := os.Executable() // see TestMain
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "koji-relay")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var screen bytes.Buffer
	err = runDemo(ctx, &screen, demo.Options{Pause: 5 * time.Millisecond, Program: program})
	out := screen.String()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`broker 1 is killed`, `broker 2 is killed`, `handed over +\d+ messages in \d+ commits`, `lost +0\n`,
		`hand-over +\d+\.\d ms p50, +\d+\.\d ms p99`, `Nothing was lost\.\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colour without a terminal")
	}
	if regexp.MustCompile(`://[^/\s]*@`).MatchString(out) {
		t.Error("a password is shown")
	}
	_, after, _ := strings.Cut(out, "its log is ")
	log, _, _ := strings.Cut(after, "\n")
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", log, err)
	}
}
