package main

import (
	"context"
	"fmt"
	"koji-relay/internal/admin"

	"github.com/spf13/cobra"
)

// selectionCommand acts on the items named, or on all. With a verb it asks before it acts.
func selectionCommand(box admin.Box, name, short, verb string,
	do func(admin.QueueControl, context.Context, admin.Box, admin.Selection) (admin.Changed, error)) *cobra.Command {
	var which admin.Selection
	var yes bool
	cmd := &cobra.Command{
		Use:     name + " ID… | --all",
		Short:   short,
		Example: fmt.Sprintf("  koji-relay %s %s 2b53e448-91ec-5132-8b6f-8078aa6cb1a3\n  koji-relay %s %s --all", box, name, box, name),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.Flags().BoolVar(&which.All, "all", false, "all of them")
	if verb != "" {
		cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if which.All == (len(args) > 0) {
			return usageError{fmt.Errorf("name one or more IDs, or give --all; see '%s --help'", cmd.CommandPath())}
		}
		return nil
	}
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, args []string, q admin.QueueControl) error {
		which.IDs = args
		if verb != "" && !yes {
			what := fmt.Sprintf("%d named", len(args))
			if which.All {
				what = "all"
			}
			if err := askToGoOn(cmd, fmt.Sprintf("%s %s of %s for good?", verb, what, boxText(box))); err != nil {
				return err
			}
		}
		changed, err := do(q, cmd.Context(), box, which)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), changed)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %d\n", name, changed.Count)
		for _, id := range changed.Missing {
			fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: %s is not in %s, or still cannot be sent ('koji-relay %s show' has the reason)\n", id, boxText(box), box)
		}
		if len(changed.Missing) > 0 {
			return errReported
		}
		return nil
	})
	return cmd
}

func boxText(box admin.Box) string {
	if box == admin.DeadBox {
		return "the dead letters"
	}
	return "the queue"
}
