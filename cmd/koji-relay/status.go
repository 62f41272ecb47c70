package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
)

// What 'koji-relay status' ends with: for monitoring that knows exit codes, the usual three.
const (
	statusOK       = 0
	statusDegraded = 1
	statusNotReady = 2 // or not running, or not to be asked
)

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say whether commits are taken and sent, and what is wrong",
		Long: `Say whether the running relay takes commits and sends their messages, what is
wrong, since when, and which command shows more of it or ends it.

Exit codes: 0 all is well; 1 commits are taken, but something needs
attention; 2 all commits are handed back to the hub, or the relay does not run,
or does not say.`,
		Example: "  koji-relay status\n  koji-relay status --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := runningRelay(*path)
		if err != nil {
			return err
		}
		s, err := client.Status(cmd.Context())
		if err != nil { // 1 would say that commits are taken
			fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay:", err)
			return exitCode(statusNotReady)
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), s)
		} else {
			err = printStatus(cmd.OutOrStdout(), &s)
		}
		switch {
		case err != nil:
			return err
		case s.State == admin.NotReady:
			return exitCode(statusNotReady)
		case s.State == admin.Degraded:
			return exitCode(statusDegraded)
		}
		return nil
	}
	return cmd
}

func printStatus(out io.Writer, s *admin.Status) error {
	t := newTable(out)
	t.line(s.Headline())
	if len(s.Reasons) > 0 {
		t.line("")
		for _, r := range s.Reasons {
			printReason(t, &r)
		}
	}
	t.line("")
	for i := range s.Brokers {
		t.row("broker "+s.Brokers[i].Name, brokerText(&s.Brokers[i], s.Generated))
	}
	if s.Queue.Known {
		t.row("queue", queueText(s))
		t.fact("pace", outlookText(s))
		t.fact("drained by", holderText(s.Queue.Drainer))
		t.row("dead letters", fmt.Sprint(s.Queue.DeadLetters))
	}
	t.row("commits", commitsText(&s.HandOver))
	if s.Outbox.Known {
		t.row("outbox", outboxText(s))
		t.fact("read by", holderText(s.Outbox.Reader))
		for _, r := range s.Outbox.Readers {
			t.row("reader "+r.Shown(), fmt.Sprintf("%s, oldest %s, seen %s", inspect.Count(r.Depth, "event"),
				inspect.Age(s.Generated, r.Oldest), inspect.Time(r.Seen)))
		}
	}
	return t.flush()
}

// printReason says what is wrong, since when, and the command for it. Each is a line of its own: a cause may
// be long, and the command is to be copied.
func printReason(t *table, r *admin.Reason) {
	head := r.Code
	if !r.Since.IsZero() {
		head += " since " + inspect.Time(r.Since)
	}
	t.line(head)
	t.line("  " + r.Text)
	if r.Command != "" {
		t.line("  run: " + r.Command)
	}
}

// queueText says what waits in the queue.
func queueText(s *admin.Status) string {
	return fmt.Sprintf("%s, %s, oldest %s (%s)", inspect.Count(s.Queue.Depth, "message"),
		inspect.Size(s.Queue.Bytes), inspect.Age(s.Generated, s.Queue.Oldest), s.Queue.Store)
}

// outboxText says what waits in the outbox for this relay.
func outboxText(s *admin.Status) string {
	return inspect.Count(s.Outbox.Depth, "event") + ", oldest " + inspect.Age(s.Generated, s.Outbox.Oldest)
}

// commitsText says by which way the commits since the start have come.
func commitsText(h *admin.HandOver) string {
	text := fmt.Sprintf("%d by the socket %s, %d by the outbox", h.Socket, h.Path, h.Outbox)
	if h.Fallback > 0 {
		text += fmt.Sprintf(", %d of them meant for the socket", h.Fallback)
	}
	return text
}

// holderText names who does a work; nothing where that is not known.
func holderText(h *inspect.Holder) string {
	if h == nil {
		return ""
	}
	return h.String()
}

// outlookText says where the queue is heading; nothing for an empty one.
func outlookText(s *admin.Status) string {
	if s.Queue.Depth == 0 {
		return ""
	}
	return s.Outlook.Text(s.Generated)
}
