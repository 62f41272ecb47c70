package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// addJSONFlag gives cmd the --json flag.
func addJSONFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// oneArgument is cobra.ExactArgs(1) with an error that says what is missing.
func oneArgument(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("give one %s; see '%s --help'", name, cmd.CommandPath())}
		}
		return nil
	}
}

// bytesText is a size for a person.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefixes := float64(n)/unit, "KMGT"
	for value >= unit && len(prefixes) > 1 {
		value, prefixes = value/unit, prefixes[1:]
	}
	return fmt.Sprintf("%.1f %ciB", value, prefixes[0])
}

// ageText is how long ago t was, for a person.
func ageText(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Round(time.Second).String()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.RFC3339)
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
		fmt.Fprintf(p.stderr, "\r%s %d lines", p.noun, p.lines)
	}
}

// end leaves the terminal's line.
func (p *progress) end() {
	if !p.told.IsZero() {
		fmt.Fprintf(p.stderr, "\r%s %d lines\n", p.noun, p.lines)
	}
}
