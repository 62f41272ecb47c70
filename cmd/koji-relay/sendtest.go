package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

func sendTestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "send-test",
		Short: "Send a test message through the running relay, and wait for it",
		Long: `Send one message of topic ` + daemon.TestTopic + ` through the running relay, the way
that a commit's messages go, and receive it back where the broker lets the
relay's user subscribe. Prints which broker took it, and the times.

The message is never queued, and has the property type = KojiRelayTest. Who
subscribes to all topics receives it. RabbitMQ 3 keeps the queue, amq.gen-*,
that was made to receive it (docs/consumers.md).

Exit codes: 0 accepted, and received where that could be tried; 1 not so, or no
relay runs.`,
		Example: "  koji-relay send-test\n  koji-relay send-test --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := runningRelay(*path)
		if err != nil {
			return err
		}
		sent, err := client.SendTest(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), sent)
		} else {
			err = printTestSent(cmd.OutOrStdout(), &sent)
		}
		if err == nil && !sent.OK() {
			err = errReported
		}
		return err
	}
	return cmd
}

func printTestSent(out io.Writer, sent *inspect.TestSent) error {
	t := newTable(out)
	t.row("message-id", sent.MessageID)
	t.row("topic", sent.Address)
	t.row("outcome", sentText(sent))
	t.fact("reason", sent.Reason)
	switch {
	case sent.Received:
		t.row("received", "after "+millis(sent.ReceivedSeconds))
	case sent.NotSubscribed != "":
		t.row("received", "not tried: "+sent.NotSubscribed)
	case sent.Outcome == "accepted":
		t.row("received", "NOT: it was accepted, and did not come back")
	}
	return t.flush()
}

func sentText(sent *inspect.TestSent) string {
	text := sent.Outcome
	if sent.OK() || sent.Outcome == "accepted" {
		text += " after " + millis(sent.AcceptedSeconds)
	} else {
		text = strings.ToUpper(text)
	}
	if sent.Broker != "" {
		text += " by " + sent.Broker
	}
	return text
}

// millis writes seconds as a round trip is told.
func millis(seconds float64) string {
	return fmt.Sprintf("%.1f ms", seconds*float64(time.Second/time.Millisecond))
}
