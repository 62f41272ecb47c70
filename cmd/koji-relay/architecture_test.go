package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Where a change begins is looked up in the table of docs/architecture.md by someone who does not know the
// code.
func TestArchitectureNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 {
			return filepath.SkipDir
		}
		path = strings.TrimPrefix(path, "../../")
		for known[path] = true; strings.Contains(path, "/"); known[path] = true {
			_, path, _ = strings.Cut(path, "/") // a file is named without its folder where that is clear
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	file := regexp.MustCompile("`([\\w./-]+(?:\\.(?:go|py|md|example)|/[\\w-]+))`")
	for _, m := range file.FindAllStringSubmatch(string(text), -1) {
		if named++; !known[m[1]] && m[1] != "net/http" && m[1] != "gopkg.in/ini.v1" {
			t.Errorf("%s is not there", m[1])
		}
	}
	if named < 50 {
		t.Errorf("only %d files are found in the text", named)
	}
	within := regexp.MustCompile("`(\\w+)` in\\s+`([\\w/-]+\\.go)`")
	for _, m := range within.FindAllStringSubmatch(string(text), -1) {
		source, err := os.ReadFile("../../" + m[2])
		if err != nil {
			t.Errorf("%s in %s: %v", m[1], m[2], err)
		} else if !regexp.MustCompile(`\b` + m[1] + `\b`).Match(source) {
			t.Errorf("%s is not in %s", m[1], m[2])
		}
	}
	if n := len(within.FindAllString(string(text), -1)); n < 3 {
		t.Errorf("only %d names within a file are found in the text", n)
	}
}

// Each work-around for the driver is found from its note, and the note from the work-around.
func TestUpstreamNotesHaveTheirWorkAround(t *testing.T) {
	t.Parallel()
	notes, err := os.ReadFile("../../docs/upstream.md")
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(\d+)\. `).FindAllStringSubmatch(string(notes), -1) {
		written[m[1]] = true
	}
	done := map[string]bool{}
	err = filepath.WalkDir("../../internal/amqpconn", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, group := range regexp.MustCompile(`\(upstream ([^)]*)\)`).FindAllSubmatch(text, -1) {
			for _, n := range regexp.MustCompile(`\d+`).FindAllString(string(group[1]), -1) {
				if done[n] = true; !written[n] {
					t.Errorf("%s: upstream %s has no note", path, n)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for n := range written {
		if !done[n] {
			t.Errorf("note %s has no work-around in internal/amqpconn", n)
		}
	}
	if len(written) < 10 {
		t.Errorf("only %d notes are found", len(written))
	}
}
