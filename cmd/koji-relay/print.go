package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/inspect"
)

// addJSONFlag gives cmd the --json flag.
func addJSONFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

// newJSON writes one JSON value a line.
func newJSON(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

// printJSON writes one JSON value, indented.
func printJSON(w io.Writer, v any) error {
	enc := newJSON(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table prints rows in columns. A line between them ends the columns; those after it have widths of their
// own. Nothing appears before flush. What came from the network is made fit for a terminal.
type table struct{ w *tabwriter.Writer }

func newTable(out io.Writer) *table { return &table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)} }

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = inspect.Line(cell, 0)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t")) // flush has the error
}

// fact prints a name with its value, if there is one.
func (t *table) fact(name, value string) {
	if value != "" {
		t.row(name, value)
	}
}

// line prints text that is no row, such as a heading.
func (t *table) line(text string) { fmt.Fprintln(t.w, inspect.Line(text, 0)) }

func (t *table) flush() error { return t.w.Flush() }

// oneArgument is cobra.ExactArgs(1) with an error that says what is missing.
func oneArgument(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("give one %s; see '%s --help'", name, cmd.CommandPath())}
		}
		return nil
	}
}

// progress counts the lines that pass and tells a terminal about it.
type progress struct {
	r      io.Reader // one of the two is set
	w      io.Writer
	noun   string
	stderr io.Writer

	lines int
	told  time.Time
}

func (p *progress) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.count(b[:n])
	return n, err
}

func (p *progress) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.count(b[:n])
	return n, err
}

func (p *progress) count(b []byte) {
	p.lines += bytes.Count(b, []byte{'\n'})
	if now := time.Now(); now.Sub(p.told) > time.Second && isTerminal(p.stderr) {
		p.told = now
		fmt.Fprintf(p.stderr, "\r%s %s", p.noun, inspect.Count(p.lines, "line"))
	}
}

// end leaves the terminal's line.
func (p *progress) end() {
	if !p.told.IsZero() {
		fmt.Fprintf(p.stderr, "\r%s %s\n", p.noun, inspect.Count(p.lines, "line"))
	}
}
