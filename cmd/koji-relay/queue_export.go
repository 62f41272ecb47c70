package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
)

func exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [FILE|-]",
		Short: "Copy the queue and the dead letters to JSON Lines",
		Long: `Copy the queue and the dead letters to a file of JSON Lines, or to standard
output. Nothing is changed. To move a queue: stop the relay, export, change
[queue] store, import, start.`,
		Example: "  koji-relay queue export queue.jsonl\n  koji-relay queue export - | gzip > queue.jsonl.gz",
		Args:    cobra.MaximumNArgs(1),
	}
	path := addConfigFlag(cmd)
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, args []string, q admin.QueueControl) error {
		if len(args) == 0 || args[0] == "-" {
			return q.Export(cmd.Context(), cmd.OutOrStdout())
		}
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("create the export: %w", err)
		}
		defer f.Close()
		counted := &progress{w: f, noun: "exported", stderr: cmd.ErrOrStderr()}
		if err := q.Export(cmd.Context(), counted); err != nil {
			return fmt.Errorf("%w; %s is incomplete", err, args[0])
		}
		counted.end()
		if err := f.Sync(); err != nil {
			return fmt.Errorf("write the export: %w", err)
		}
		return f.Close()
	})
	return cmd
}

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Store the lines of an export",
		Long: `Store the JSON Lines of an export, with their ids, ages and attempts. What is
there already stays as it is, so that an import that was cut short can be run
again.`,
		Example: "  koji-relay queue import queue.jsonl",
		Args:    cobra.MaximumNArgs(1),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, args []string, q admin.QueueControl) error {
		in := cmd.InOrStdin()
		if len(args) == 1 && args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return usageError{fmt.Errorf("open the export: %w", err)}
			}
			defer f.Close()
			in = f
		}
		counted := &progress{r: in, noun: "read", stderr: cmd.ErrOrStderr()}
		done, err := q.Import(cmd.Context(), counted)
		counted.end()
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), done)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "stored: %d\nthere already: %d\n", done.Stored, done.Present)
		return nil
	})
	return cmd
}
