// Package schema holds the numbered steps of the database schema koji_relay. A step that was released is
// never edited: what changes is a new file with the next number.
package schema

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed *.sql
var files embed.FS

// Steps are the texts of the steps in order: Steps[0] leads to version 1.
var Steps = read()

// Version is the version that all steps together lead to.
func Version() int { return len(Steps) }

func read() []string {
	names, err := fs.Glob(files, "*.sql") // sorted by name
	if err != nil {
		panic(err)
	}
	steps := make([]string, len(names))
	for i, name := range names {
		if !strings.HasPrefix(name, fmt.Sprintf("%04d_", i+1)) {
			panic("schema steps are not numbered in order: " + name)
		}
		text, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		steps[i] = string(text)
	}
	return steps
}
