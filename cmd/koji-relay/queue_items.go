package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
)

// listedByDefault is how many items a list has that is not asked for a number: two screens.
const listedByDefault = 50

func listCommand(box inspect.Box, noun string) *cobra.Command {
	var opts inspect.ListOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List " + noun + "s, oldest first",
		Example: fmt.Sprintf("  koji-relay %s list --limit 20\n  koji-relay %s list --address build.tag --json",
			box, box),
		Args: cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.Flags().IntVar(&opts.Limit, "limit", listedByDefault, "at most this many; 0 = all, as with --json")
	cmd.Flags().StringVar(&opts.Address, "address", "", "only those of one `topic`, such as build.tag")
	completeTopics(cmd, box)
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, _ []string, q admin.QueueControl) error {
		if opts.Limit < 0 {
			return usageError{fmt.Errorf("--limit %d: give a number of %ss, or 0 for all", opts.Limit, noun)}
		}
		if *asJSON {
			if !cmd.Flags().Changed("limit") {
				opts.Limit = 0
			}
			lines := newJSON(cmd.OutOrStdout())
			return q.List(cmd.Context(), box, opts, func(it inspect.Item) error { return lines.Encode(it) })
		}
		return listItems(cmd, box, opts, q)
	})
	return cmd
}

// listItems prints a list for a person, and where it ends early.
func listItems(cmd *cobra.Command, box inspect.Box, opts inspect.ListOptions, q admin.QueueControl) error {
	limit, listed := opts.Limit, 0
	if limit > 0 {
		opts.Limit++ // to know of more
	}
	t := newTable(cmd.OutOrStdout())
	err := q.List(cmd.Context(), box, opts, func(it inspect.Item) error {
		if listed++; limit > 0 && listed > limit {
			return nil
		}
		if listed == 1 {
			t.row(itemHead(box)...)
		}
		t.row(itemCells(box, it)...)
		if listed%1000 == 0 {
			return t.flush() // a list of millions does not wait for its end
		}
		return nil
	})
	if flushed := t.flush(); err == nil {
		err = flushed
	}
	switch {
	case err != nil:
	case listed == 0:
		if box, address := box.Name(), opts.Address; address != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: nothing of topic %s in %s\n", address, box)
		} else {
			fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: nothing in %s\n", box)
		}
	case limit > 0 && listed > limit:
		fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: these are the oldest %d; --limit 0 lists all\n", limit)
	}
	return err
}

func itemHead(box inspect.Box) []string {
	if box == inspect.DeadBox {
		return []string{"DIED", "MESSAGE-ID", "TOPIC", "ATTEMPTS", "REASON"}
	}
	return []string{"CREATED", "MESSAGE-ID", "TOPIC", "ATTEMPTS", "NEXT ATTEMPT", "REASON"}
}

func itemCells(box inspect.Box, it inspect.Item) []string {
	address := it.Address
	if address == "" {
		address = "(event " + it.Callback + ")"
	}
	if box == inspect.DeadBox {
		return []string{inspect.Time(it.Died), it.MessageID, address, fmt.Sprint(it.Attempts), it.Reason}
	}
	next := cmp.Or(inspect.Time(it.NextAttempt), "-")
	return []string{inspect.Time(it.Created), it.MessageID, address, fmt.Sprint(it.Attempts), next, it.Reason}
}

func showCommand(box inspect.Box, noun string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show one " + noun + " whole, with properties and body",
		Example: fmt.Sprintf("  koji-relay %s show 2b53e448-91ec-5132-8b6f-8078aa6cb1a3", box),
		Args:    oneArgument("ID"),

		ValidArgsFunction: completeIDs(box),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, args []string, q admin.QueueControl) error {
		it, err := q.Show(cmd.Context(), box, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), it)
		}
		return printItem(cmd.OutOrStdout(), it)
	})
	return cmd
}

func printItem(out io.Writer, it inspect.Item) error {
	t := newTable(out)
	t.fact("message-id", it.MessageID)
	t.fact("address", it.Address)
	t.fact("callback", it.Callback)
	t.fact("commit", it.Commit)
	t.fact("event", fmt.Sprint(it.Event))
	t.fact("created", inspect.Time(it.Created))
	t.fact("attempts", fmt.Sprint(it.Attempts))
	t.fact("next attempt", inspect.Time(it.NextAttempt))
	t.fact("died", inspect.Time(it.Died))
	t.fact("reason", it.Reason)
	t.fact("history", "koji-relay history show "+it.MessageID)
	t.fact("props", string(it.Props))
	t.fact("body", it.Body)
	return t.flush()
}
