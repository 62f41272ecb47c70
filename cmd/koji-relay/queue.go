package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
)

const queueLong = `They work through the control socket while the relay runs, and on the store itself
while it is stopped.`

func queueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look at the queue and change it",
		Long:  "Look at the queue of messages that no broker took yet, and change it.\n" + queueLong,
		Args:  noSubcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	// Those who look for the dead letters or for a pause look here too.
	cmd.AddCommand(queueStatusCommand(), exportCommand(), importCommand(), deadCommand(), pauseCommand(), resumeCommand())
	addBoxCommands(cmd, admin.QueueBox, "message", "make messages due now")
	return cmd
}

func deadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Look at the dead letters and decide on them",
		Long: `Look at the messages and events that were set aside for good, each with its reason,
and decide on them: back into the queue, or away.
` + queueLong,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	addBoxCommands(cmd, admin.DeadBox, "dead letter", "put dead letters back into the queue")
	return cmd
}

// addBoxCommands adds what queue and dead have in common.
func addBoxCommands(parent *cobra.Command, box admin.Box, noun, retry string) {
	parent.AddCommand(
		listCommand(box, noun),
		showCommand(box, noun),
		selectionCommand(box, "retry", strings.ToUpper(retry[:1])+retry[1:], "", admin.QueueControl.Retry),
		selectionCommand(box, "drop", "Delete "+noun+"s for good", "Delete", admin.QueueControl.Drop),
	)
}

// onQueue makes a command's RunE of a function that works on the queue.
func onQueue(path *string, do func(cmd *cobra.Command, args []string, q admin.QueueControl) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		q, _, release, err := openQueue(cmd.Context(), *path)
		if err != nil {
			return err
		}
		defer release()
		return do(cmd, args, q)
	}
}

func queueStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Depth, age and topics of the queue, dead letters, brokers",
		Example: "  koji-relay queue status\n  koji-relay queue status --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, status, release, err := openQueue(cmd.Context(), *path)
		if err != nil {
			return err
		}
		defer release()
		s, err := status(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), s)
		}
		if !s.Queue.Known && s.Queue.Error != "" {
			return fmt.Errorf("look at the queue: %s", s.Queue.Error)
		}
		printQueueStatus(cmd.OutOrStdout(), &s)
		return nil
	}
	return cmd
}

func printQueueStatus(out io.Writer, s *admin.Status) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	q := &s.Queue
	fmt.Fprintf(w, "queue\t%d messages, %s, oldest %s (%s)\n", q.Depth, bytesText(q.Bytes), ageText(s.Generated, q.Oldest), q.Store)
	if q.SetAside > 0 {
		fmt.Fprintf(w, "set aside\t%d, next attempt %s\n", q.SetAside, q.NextAttempt.Local().Format(time.DateTime))
	}
	if s.Outbox.Known {
		fmt.Fprintf(w, "outbox\t%d events, oldest %s\n", s.Outbox.Depth, ageText(s.Generated, s.Outbox.Oldest))
	}
	fmt.Fprintf(w, "dead letters\t%d\n", q.DeadLetters)
	for _, reason := range slices.Sorted(maps.Keys(q.DeadLettersByReason)) {
		fmt.Fprintf(w, "\t%d  %s\n", q.DeadLettersByReason[reason], reason)
	}
	if s.Paused.Publish {
		fmt.Fprintf(w, "paused\tall sending; koji-relay resume --publish\n")
	} else if s.Paused.Drain {
		fmt.Fprintf(w, "paused\tthe drain; koji-relay resume\n")
	}
	if s.Phase == "" {
		fmt.Fprintf(w, "relay\tnot running\n")
	}
	for _, b := range s.Brokers {
		text := string(b.State)
		if b.Active {
			text += ", in use"
		}
		if b.Reason != "" {
			text += ": " + b.Reason
		}
		fmt.Fprintf(w, "broker %s\t%s\n", b.Name, text)
	}
	if len(q.ByTopic) > 0 {
		fmt.Fprintf(w, "\ntopic\tmessages\tbytes\toldest\n")
		for _, t := range q.ByTopic {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.Address, t.Depth, bytesText(t.Bytes), ageText(s.Generated, t.Oldest))
		}
	}
}

func listCommand(box admin.Box, noun string) *cobra.Command {
	var opts admin.ListOptions
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List " + noun + "s, oldest first",
		Example: fmt.Sprintf("  koji-relay %s list --limit 20\n  koji-relay %s list --address build.tag --json", box, box),
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.Flags().IntVar(&opts.Limit, "limit", 0, "at most this many; 0 = all")
	cmd.Flags().StringVar(&opts.Address, "address", "", "only those of one topic, such as build.tag")
	cmd.RunE = onQueue(path, func(cmd *cobra.Command, _ []string, q admin.QueueControl) error {
		out := bufio.NewWriter(cmd.OutOrStdout())
		defer out.Flush()
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return q.List(cmd.Context(), box, opts, func(it admin.Item) error {
			if *asJSON {
				return enc.Encode(it)
			}
			_, err := fmt.Fprintln(out, itemLine(it))
			return err
		})
	})
	return cmd
}

// itemLine is one item for a person: when, id, topic, and what keeps it.
func itemLine(it admin.Item) string {
	when := it.Created
	if !it.Died.IsZero() {
		when = it.Died
	}
	address := it.Address
	if address == "" {
		address = "(event " + it.Callback + ")"
	}
	line := fmt.Sprintf("%s  %s  %s", when.Local().Format(time.DateTime), it.MessageID, address)
	if it.Attempts > 0 {
		line += fmt.Sprintf("  attempts=%d", it.Attempts)
	}
	if !it.NextAttempt.IsZero() {
		line += "  next=" + it.NextAttempt.Local().Format(time.TimeOnly)
	}
	if it.Reason != "" {
		line += "  " + it.Reason
	}
	return line
}

func showCommand(box admin.Box, noun string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show one " + noun + " whole, with properties and body",
		Example: fmt.Sprintf("  koji-relay %s show 2b53e448-91ec-5132-8b6f-8078aa6cb1a3", box),
		Args:    oneArgument("ID"),
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
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%s\t%s\n", name, value)
			}
		}
		row("message-id", it.MessageID)
		row("address", it.Address)
		row("callback", it.Callback)
		row("commit", it.Commit)
		row("event", fmt.Sprint(it.Event))
		row("created", timeText(it.Created))
		row("attempts", fmt.Sprint(it.Attempts))
		row("next attempt", timeText(it.NextAttempt))
		row("died", timeText(it.Died))
		row("reason", it.Reason)
		row("props", string(it.Props))
		row("body", it.Body)
		return w.Flush()
	})
	return cmd
}

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

func exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [FILE|-]",
		Short: "Copy the queue and the dead letters to JSON Lines",
		Long: `Copy the queue and the dead letters to a file of JSON Lines, or to standard output.
Nothing is changed. To move a queue: stop the relay, export, change [queue] store,
import, start.`,
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
		Long: `Store the JSON Lines of an export, with their ids, ages and attempts. What is there
already stays as it is, so that an import that was cut short can be run again.`,
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
