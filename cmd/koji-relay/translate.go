package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/daemon"
	"koji-relay/internal/message"
)

// translateOptions is what decides how commits become messages.
type translateOptions struct {
	rules       callbacks.Options
	topicPrefix string
	dialect     string
}

func translateCommand() *cobra.Command {
	var configPath, events, topicPrefix string
	var extraLimit int
	cmd := &cobra.Command{
		Use:   "translate [FILE|-]",
		Short: "Show the messages that commits become, without sending any",
		Long: `Read commits as JSON Lines, one commit of the hub API a line, from FILE or
standard input, and print one JSON line for each message that they become:

  commit, event, callback   where it comes from
  address, target           the topic, and the broker's address for it
  message_id                the same through every resend
  props                     [key, AMQP type, value]; types are string, long,
                            double, boolean, null, and "unencodable" for what
                            AMQP cannot carry (its JSON text is the value): such
                            a message would end as a dead letter
  body                      the exact text

Without --config the rules are protonmsg's: its ten callbacks, no limit for
extra. Lines that are no commits and events that cannot become messages are
reported on standard error by line number; the rest continues.

Exit codes: 0 done; 1 a line was not a commit; 2 unusable arguments or
configuration.`,
		Example: `  koji-relay translate commits.jsonl
  koji-relay translate --events '*' --topic-prefix /topic/koji commits.jsonl
  koji-relay translate --config ./protonmsg.conf < commits.jsonl`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("translate reads one file, not %d; join them with cat and pipe them in",
					len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options := translateOptions{topicPrefix: topicPrefix, dialect: dialect.Auto}
			if configPath != "" {
				cfg, err := loadConfig(configPath)
				if err != nil {
					return err
				}
				for _, w := range cfg.Warnings {
					fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: warning:", w)
				}
				options = configured(cfg)
			}
			if cmd.Flags().Changed("events") {
				options.rules.Events = strings.Fields(events)
			}
			if cmd.Flags().Changed("extra-limit") {
				options.rules.ExtraLimit = extraLimit
			}
			if cmd.Flags().Changed("topic-prefix") {
				options.topicPrefix = topicPrefix
			}
			return translateFile(cmd, args, options)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&configPath, "config", "",
		"take events, extra_limit, extra_keep and topic_prefix from this `FILE`")
	flags.StringVar(&events, "events", callbacks.Protonmsg, "globs of callback names, space separated")
	flags.IntVar(&extraLimit, "extra-limit", 0,
		"cut extra where it is longer than this many characters; 0 = never")
	flags.StringVar(&topicPrefix, "topic-prefix", "topic://koji", "what stands before the address in target")
	return cmd
}

func configured(cfg *config.Config) translateOptions {
	return translateOptions{
		rules:       daemon.RulesOptions(cfg),
		topicPrefix: cfg.Broker.TopicPrefix,
		dialect:     cfg.Broker.Dialect,
	}
}

// translateFile opens what the arguments name and translates it to the command's output. Cancelling ends it
// at once, also while it waits for input: the goroutine that reads then ends with the process.
func translateFile(cmd *cobra.Command, args []string, options translateOptions) error {
	rules, err := callbacks.New(options.rules)
	if err != nil {
		return usageError{err}
	}
	target := func(address string) (string, error) {
		return dialect.Target(options.topicPrefix, options.dialect, address)
	}
	if _, err := target("build.tag"); err != nil {
		return usageError{err}
	}
	input := cmd.InOrStdin()
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return usageError{fmt.Errorf("open commits: %w", err)}
		}
		defer f.Close()
		input = f
	}
	out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
	t := &translator{
		rules:  rules,
		target: target,
		in:     newLineReader(input, out),
		out:    messagePrinter{w: out},
		errors: cmd.ErrOrStderr(),
	}
	done := make(chan error, 1)
	go func() { done <- t.run() }()
	select {
	case err := <-done:
		return err
	case <-cmd.Context().Done():
		return fmt.Errorf("translate: %w", context.Cause(cmd.Context()))
	}
}

// translator is one run of the command.
type translator struct {
	rules  *callbacks.Rules
	target func(address string) (string, error)
	in     lineReader
	out    messagePrinter
	errors io.Writer
	count  int // lines read
	bad    int // lines that were no commits
}

func (t *translator) run() error {
	for {
		line, err := t.in.next()
		if err != nil && !errors.Is(err, io.EOF) {
			_ = t.out.w.Flush() // the first error is told
			return fmt.Errorf("read commits after line %d: %w", t.count, err)
		}
		t.count++
		t.line(line)
		if err != nil {
			break
		}
	}
	if err := t.out.w.Flush(); err != nil {
		return fmt.Errorf("print messages: %w", err)
	}
	if t.bad > 0 {
		return errReported
	}
	return nil
}

// line translates one line. It goes event by event: the bodies of a commit need not be in memory together.
func (t *translator) line(line []byte) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	commit, err := callbacks.DecodeCommit(line)
	if err != nil {
		t.bad++
		fmt.Fprintf(t.errors, "koji-relay: line %d: %v\n", t.count, err)
		return
	}
	for i := range commit.Events {
		one := t.rules.Translate(message.Commit{ID: commit.ID, Events: commit.Events[i : i+1]})
		for j := range one.Messages {
			m := &one.Messages[j]
			target, err := t.target(m.Address)
			if err != nil {
				fmt.Fprintf(t.errors, "koji-relay: line %d: target of event %d (%s): %v\n", t.count, m.Event, m.Callback,
					err)
			}
			t.out.print(m, target)
		}
		for _, u := range one.Undeliverable {
			fmt.Fprintf(t.errors, "koji-relay: line %d: event %d (%s) of commit %s is undeliverable: %s\n",
				t.count, u.Event, u.Callback, u.Commit, u.Reason)
		}
	}
}
