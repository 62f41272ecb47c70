package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/config"
)

func checkCommand() *cobra.Command {
	var asJSON, connecting, changed bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Show the effective configuration, or everything wrong with it",
		Long: `Read the configuration as serve does, with the files that it names, and print
every key with its value and where that comes from: a line of the file, or the
default. Users and passwords are masked. What is wrong, and what has no
effect, is printed on standard error, one line each: file, line, key, value,
and what to do.

With --connect also connect to every broker and to the database, as serve
would: TCP, TLS, login, product, address, link and credit; role, grants and
schema. No message is sent. One that cannot be used is a problem.

Exit codes: 0 nothing to complain about; 1 problems or warnings; 2 no readable
configuration.`,
		Example: `  koji-relay check
  koji-relay check --changed
  koji-relay check --connect
  koji-relay check --config ./protonmsg.conf --json`,
		Args: cobra.NoArgs,
	}
	path := addConfigFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with file, settings, warnings and problems")
	cmd.Flags().BoolVar(&changed, "changed", false, "show only what differs from the defaults")
	cmd.Flags().BoolVar(&connecting, "connect", false, "connect to the brokers and the database as well")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		report, err := checkConfig(*path)
		if err != nil {
			return err
		}
		if changed {
			report.Settings = slices.DeleteFunc(report.Settings, func(s config.Setting) bool { return !s.Changed })
		}
		if cfg, err := loadVerifiedConfig(*path); connecting && err == nil {
			report.Connections = connect(cmd.Context(), cfg)
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), report)
		} else {
			err = report.print(cmd.OutOrStdout(), cmd.ErrOrStderr())
		}
		if err != nil {
			return fmt.Errorf("print the report: %w", err)
		}
		if !report.clean() {
			return errReported
		}
		return nil
	}
	return cmd
}

// checkReport is what check found. Settings are empty when the file itself has problems: there is no
// effective configuration then.
type checkReport struct {
	File     string           `json:"file"`
	Settings []config.Setting `json:"settings"`
	Warnings []config.Problem `json:"warnings"`
	Problems []config.Problem `json:"problems"`

	Connections *connections `json:"connections,omitempty"` // with --connect, of a configuration without problems
}

// checkConfig loads the configuration by the way that serve takes. Its error says that there is none.
func checkConfig(path string) (*checkReport, error) {
	// Empty lists, not null, for whoever reads the JSON.
	report := &checkReport{File: path, Settings: []config.Setting{}, Warnings: []config.Problem{}, Problems: []config.Problem{}}
	cfg, err := loadVerifiedConfig(path)
	var found *config.Error
	if err != nil && !errors.As(err, &found) {
		return nil, err
	}
	if cfg != nil {
		report.Settings = cfg.Settings()
		report.Warnings = append(report.Warnings, cfg.Warnings...)
		report.Problems = append(report.Problems, cfg.Expired(time.Now())...)
	}
	if found != nil {
		report.Problems = append(found.Problems, report.Problems...)
		report.Warnings = append([]config.Problem{}, found.Warnings...)
	}
	return report, nil
}

func (r *checkReport) clean() bool {
	return len(r.Warnings) == 0 && len(r.Problems) == 0 && (r.Connections == nil || r.Connections.clean())
}

func (r *checkReport) print(stdout, stderr io.Writer) error {
	out := newTable(stdout)
	if len(r.Settings) > 0 {
		r.printSettings(out)
	}
	if r.Connections != nil {
		r.Connections.print(out)
	}
	if r.clean() {
		out.line("")
		out.line("Nothing to complain about.")
	}
	if err := out.flush(); err != nil {
		return err
	}
	for _, p := range r.Problems {
		if _, err := fmt.Fprintln(stderr, "problem:", p); err != nil {
			return err
		}
	}
	for _, w := range r.Warnings {
		if _, err := fmt.Fprintln(stderr, "warning:", w); err != nil {
			return err
		}
	}
	return nil
}

// printSettings puts the source first: it is short, and values can be of any length.
func (r *checkReport) printSettings(out *table) {
	out.line("Effective configuration of " + r.File)
	section := ""
	for _, s := range r.Settings {
		if s.Section != section {
			section = s.Section
			out.line("")
			out.row("", "["+section+"]")
		}
		out.row(r.source(s), strings.TrimSpace(s.Key+" = "+oneLineValue(s.Value)))
	}
}

// source names the line alone where there is one file only.
func (r *checkReport) source(s config.Setting) string {
	if line, found := strings.CutPrefix(s.Source, r.File+":"); found {
		return "line " + line
	}
	return s.Source
}

// oneLineValue folds the continuation lines of a value.
func oneLineValue(value string) string { return strings.Join(strings.Fields(value), " ") }
