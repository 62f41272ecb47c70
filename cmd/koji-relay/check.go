package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
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
and what to do. Where a relay runs with another value than the file has now,
that is shown too, and whether the file waits for a reload or a restart.

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
	cmd.Flags().BoolVar(&asJSON, "json", false,
		"print one JSON object with file, settings, warnings and problems")
	cmd.Flags().BoolVar(&changed, "changed", false, "show only what differs from the defaults")
	cmd.Flags().BoolVar(&connecting, "connect", false, "connect to the brokers and the database as well")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		report, err := check(cmd, *path, connecting)
		if err != nil {
			return err
		}
		compareWithRunning(cmd.Context(), *path, report)
		if changed {
			report.Settings = slices.DeleteFunc(report.Settings, func(s inspect.Setting) bool { return !s.Changed })
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), report)
		} else {
			err = printReport(report, cmd.OutOrStdout(), cmd.ErrOrStderr())
		}
		if err != nil {
			return fmt.Errorf("print the report: %w", err)
		}
		if !report.Clean() {
			return errReported
		}
		return nil
	}
	return cmd
}

// check looks at the configuration. Where it names credentials that systemd gives to the service alone, a
// running relay is asked to look.
func check(cmd *cobra.Command, path string, connecting bool) (*daemon.CheckReport, error) {
	if cfg, err := config.Load(path); err == nil && cfg.LacksCredentials() {
		report := &daemon.CheckReport{}
		client, err := runningRelay(path)
		if err == nil {
			err = client.Check(cmd.Context(), connecting, report)
		}
		if err == nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: seen by the running relay, which has the systemd credentials")
			return report, nil
		}
		if !errors.Is(err, admin.ErrNotRunning) {
			fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay:", err)
		}
	}
	load := func() (*config.Config, error) { return loadVerifiedConfig(path) }
	return daemon.Check(cmd.Context(), path, load, connecting)
}

// compareWithRunning adds what a running relay has in force. Without one, or where its control socket may
// not be used, the report is of the file alone.
func compareWithRunning(ctx context.Context, path string, report *daemon.CheckReport) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := runningRelay(path)
	if err != nil {
		return
	}
	s, err := client.Status(ctx)
	if err != nil || !sameFile(path, s.Config.Path) {
		return
	}
	report.Compare(&s.Config)
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

func printRunning(out *table, r *daemon.RunningReport) {
	out.line("")
	out.line("The running relay read its configuration at " + inspect.Time(r.Loaded) + ". In force is:")
	for _, d := range r.Differs {
		out.row("  ["+d.Section+"] "+oneLineValue(d.Key+" = "+d.Value), "the file waits for a "+d.Takes)
	}
}

func printReport(r *daemon.CheckReport, stdout, stderr io.Writer) error {
	out := newTable(stdout)
	if len(r.Settings) > 0 {
		printSettings(out, r)
	}
	if r.Running != nil && len(r.Running.Differs) > 0 {
		printRunning(out, r.Running)
	}
	if r.Connections != nil {
		printConnections(out, r.Connections)
	}
	if r.Clean() {
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
func printSettings(out *table, r *daemon.CheckReport) {
	out.line("Effective configuration of " + r.File)
	section := ""
	for _, s := range r.Settings {
		if s.Section != section {
			section = s.Section
			out.line("")
			out.row("", "["+section+"]")
		}
		out.row(settingSource(r.File, s), strings.TrimSpace(s.Key+" = "+oneLineValue(s.Value)))
	}
}

// settingSource names the line alone where there is one file only.
func settingSource(file string, s inspect.Setting) string {
	if line, found := strings.CutPrefix(s.Source, file+":"); found {
		return "line " + line
	}
	return s.Source
}

// oneLineValue folds the continuation lines of a value.
func oneLineValue(value string) string { return strings.Join(strings.Fields(value), " ") }
