package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
)

const queueLong = `The commands work through the control socket while the relay runs, and on the
store itself while it is stopped.`

func queueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look at the queue and change it",
		Long:  "Look at the queue of messages that no broker took yet, and change it.\n" + queueLong,
		Args:  noSubcommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	// Those who look for the dead letters or for a pause look here too.
	cmd.AddCommand(queueStatusCommand(), exportCommand(), importCommand(), deadCommand(), pauseCommand(),
		resumeCommand())
	addBoxCommands(cmd, inspect.QueueBox, "message", selectionVerb{short: "Make messages due now",
		did: "Made %s due now.", would: "Would make %s due now."})
	return cmd
}

func deadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Look at the dead letters and decide on them",
		Long: `Look at the messages and events that were set aside for good, each with its
reason, and decide on them: back into the queue, or away.
` + queueLong,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	addBoxCommands(cmd, inspect.DeadBox, "dead letter", selectionVerb{
		short: "Put dead letters back into the queue",
		did:   "Put %s back into the queue.", would: "Would put %s back into the queue."})
	return cmd
}

// addBoxCommands adds what queue and dead have in common.
func addBoxCommands(parent *cobra.Command, box inspect.Box, noun string, retry selectionVerb) {
	retry.name, retry.do = "retry", admin.QueueControl.Retry
	parent.AddCommand(
		listCommand(box, noun),
		showCommand(box, noun),
		selectionCommand(box, noun, retry),
		selectionCommand(box, noun, selectionVerb{name: "drop", short: "Delete " + noun + "s for good",
			ask: "Delete", did: "Dropped %s.", would: "Would drop %s.", do: admin.QueueControl.Drop}),
	)
}

// onQueue makes a command's RunE of a function that works on the queue.
func onQueue(path *string, do func(cmd *cobra.Command, args []string, q admin.QueueControl) error) func(
	*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		q, err := openQueue(cmd.Context(), *path)
		if err != nil {
			return err
		}
		defer q.release()
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
		q, err := openQueue(cmd.Context(), *path)
		if err != nil {
			return err
		}
		defer q.release()
		s, err := q.status(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), s)
		}
		if err == nil && !s.Queue.Known && s.Queue.Error != "" {
			err = fmt.Errorf("look at the queue: %s", s.Queue.Error)
		}
		if err != nil || *asJSON {
			return err
		}
		return printQueueStatus(cmd.OutOrStdout(), &s)
	}
	return cmd
}

func printQueueStatus(out io.Writer, s *admin.Status) error {
	t := newTable(out)
	q := &s.Queue
	t.row("queue", queueText(s))
	if q.SetAside > 0 {
		t.row("set aside", fmt.Sprintf("%d, next attempt %s", q.SetAside, inspect.Time(q.NextAttempt)))
		if q.AsideReason != "" {
			t.row("", fmt.Sprintf("%d  %s", q.AsideFor, inspect.Line(q.AsideReason, 200)))
		}
	}
	t.fact("pace", outlookText(s))
	t.fact("drained by", holderText(q.Drainer))
	if s.Outbox.Known {
		t.row("outbox", outboxText(s))
	}
	t.fact("read by", holderText(s.Outbox.Reader))
	t.row("dead letters", fmt.Sprint(q.DeadLetters))
	for _, reason := range slices.Sorted(maps.Keys(q.DeadLettersByReason)) {
		t.row("", fmt.Sprintf("%d  %s", q.DeadLettersByReason[reason], reason))
	}
	if s.Paused.Publish {
		t.row("paused", "all sending; koji-relay resume --publish")
	} else if s.Paused.Drain {
		t.row("paused", "the drain; koji-relay resume")
	}
	if s.Phase == "" {
		t.row("relay", "not running")
	}
	for i := range s.Brokers {
		t.row("broker "+s.Brokers[i].Name, brokerText(&s.Brokers[i], s.Generated))
	}
	if len(q.ByTopic) > 0 {
		t.line("")
		t.row("TOPIC", "MESSAGES", "SIZE", "OLDEST")
		for _, topic := range inspect.LargestFirst(q.ByTopic) {
			t.row(topic.Address, fmt.Sprint(topic.Depth), inspect.Size(topic.Bytes),
				inspect.Age(s.Generated, topic.Oldest))
		}
	}
	return t.flush()
}

func brokerText(b *inspect.Broker, now time.Time) string {
	text := string(b.State)
	if !b.Since.IsZero() {
		text += " for " + inspect.Age(now, b.Since)
	}
	if b.Active {
		text += ", in use"
	}
	if b.Untried {
		text += ", not tried yet"
	}
	if b.Reason != "" {
		text += ": " + b.Reason
	}
	return text
}
