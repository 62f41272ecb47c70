package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
	"koji-relay/internal/subscribe"
)

func tailCommand() *cobra.Command {
	var asJSON bool
	var count int
	cmd := &cobra.Command{
		Use:   "tail [PATTERN...]",
		Short: "Show messages as they arrive from the brokers",
		Long: `Subscribe on every configured broker and print each message that arrives,
until interrupted. A PATTERN is of topics without topic_prefix: * stands for
one word, # for any number of words; without one everything is shown.

A line has the time of arrival, the topic, what it is about, and the
message-id; with several brokers, the broker as well. Connections that end are
opened again; why they ended is told on standard error.

Standard error says "subscribed" for each broker. Messages sent before that, or
while tail is not connected, are not shown. A message that matches two patterns
may be shown twice. RabbitMQ 3 and Artemis do not say to which topic a message
went: the pattern is shown in its place.

On RabbitMQ the user needs the permission to configure, write and read queues of
its own. While tail runs, the topics that it watches count as bound. RabbitMQ
gives back what nobody has subscribed to: such a message waits in the queue and
is tried again later, as 'koji-relay queue list' shows. RabbitMQ 3 keeps the
queue, amq.gen-*, when tail has ended: delete it, or let a policy expire such
queues (docs/consumers.md).

Exit codes: 0 interrupted, or --count reached; 2 unusable arguments or
configuration.`,
		Example: `  koji-relay tail
  koji-relay tail 'build.*' 'task.#'
  koji-relay tail --json --count 1 build.tag`,
	}
	path := addConfigFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all of each message, as one line of JSON")
	cmd.Flags().IntVar(&count, "count", 0, "end after so many messages (0 = never)")
	cmd.RunE = func(cmd *cobra.Command, patterns []string) error {
		if err := checkTail(patterns, count); err != nil {
			return err
		}
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		t := &tail{out: cmd.OutOrStdout(), json: asJSON, left: count, broker: len(cfg.Broker.URLs) > 1}
		err = receive(cmd, cfg, *path, patterns, t.show)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	}
	return cmd
}

func checkTail(patterns []string, count int) error {
	if count < 0 {
		return usageError{fmt.Errorf("--count %d: give a number of messages, or 0 for no end", count)}
	}
	for _, p := range patterns {
		for word := range strings.SplitSeq(p, ".") {
			if word == "" || strings.ContainsAny(word, "*#") && len(word) > 1 {
				return usageError{fmt.Errorf("pattern %q: words are separated by single dots, "+
					"and * and # stand for whole words", p)}
			}
		}
	}
	return nil
}

// tail prints arrivals; its functions are called one at a time.
type tail struct {
	out    io.Writer
	json   bool
	broker bool // show which
	left   int  // 0 = no end
}

// errEnough ends the subscription when all that was asked for has been shown.
var errEnough = errors.New("count reached")

// receive shows what arrives. Where the configuration names credentials that systemd gives to the service
// alone, the running relay subscribes for us.
func receive(cmd *cobra.Command, cfg *config.Config, path string, patterns []string,
	show func(inspect.Arrival) error) error {
	stderr := cmd.ErrOrStderr()
	if cfg.LacksCredentials() {
		client, err := runningRelay(path)
		if err != nil {
			return err
		}
		err = client.Tail(cmd.Context(), patterns, show, func(text string) error {
			_, err := fmt.Fprintln(stderr, text)
			return err
		})
		if errors.Is(err, admin.ErrNotRunning) {
			return fmt.Errorf("the credentials of %s are systemd's, for the relay alone: %w", path, err)
		}
		return err
	}
	if err := cfg.Verify(); err != nil {
		return usageError{configError(err)}
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	return subscribe.Run(cmd.Context(), daemon.SubscribeOptions(cfg, log), patterns, show)
}

func (t *tail) show(a inspect.Arrival) error {
	var err error
	if t.json {
		err = newJSON(t.out).Encode(a)
	} else {
		_, err = fmt.Fprintln(t.out, t.line(a))
	}
	if err != nil {
		return fmt.Errorf("print a message: %w", err)
	}
	if t.left > 0 {
		if t.left--; t.left == 0 {
			return errEnough
		}
	}
	return nil
}

// line is for people: what came from the network is made fit for a terminal.
func (t *tail) line(a inspect.Arrival) string {
	var b strings.Builder
	b.WriteString(a.Received.UTC().Format("15:04:05.000Z"))
	if t.broker {
		fmt.Fprintf(&b, "  %s", a.Broker)
	}
	fmt.Fprintf(&b, "  %-16s  %s  %s", inspect.Line(a.Address, 0), inspect.Line(summary(a.Props), 0),
		inspect.Line(a.MessageID, 0))
	return b.String()
}

// summary tells what a message is about from its properties, in the order that reads best.
func summary(props map[string]any) string {
	var parts []string
	text := func(key string) string {
		if v, ok := props[key]; ok && v != nil {
			return fmt.Sprint(v)
		}
		return ""
	}
	if kind := text("type"); kind != "" {
		parts = append(parts, kind)
	}
	if name := text("name"); name != "" {
		parts = append(parts, strings.Join(strings.FieldsFunc(
			name+"\x00"+text("version")+"\x00"+text("release"), func(r rune) bool { return r == 0 }), "-"))
	}
	for _, key := range []string{
		"importType", "method", "id", "build_id", "repo_id", "task_id", "package", "action", "tag", "sigkey",
		"user",
	} {
		if v := text(key); v != "" {
			parts = append(parts, key+"="+v)
		}
	}
	if state := text("new"); state != "" {
		if old := text("old"); old != "" {
			state = old + "->" + state
		}
		parts = append(parts, state)
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, " ")
}
