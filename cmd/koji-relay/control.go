package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
)

// The commands of this file steer a running relay through its control socket.

// runningRelay gives a client for the relay that runs with the configuration at path. Mistakes in the file
// are not in the way: a relay that runs with an older version of it can still be steered, and says itself
// what is wrong.
func runningRelay(path string) (*admin.Client, error) {
	control, err := config.ControlPath(path)
	if err != nil {
		return nil, usageError{err}
	}
	return admin.NewClient(control), nil
}

func reloadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Make the running relay read its configuration again",
		Long: `Make the running relay read its configuration again. A file with a mistake
changes nothing. Prints the keys that changed, and those that take effect at
the next restart only.`,
		Example: `  koji-relay reload`,
		Args:    cobra.NoArgs,
	}
	path := addConfigFlag(cmd)
	asJSON := addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := runningRelay(*path)
		if err != nil {
			return err
		}
		result, err := client.Reload(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			if err := printJSON(cmd.OutOrStdout(), result); err != nil {
				return err
			}
		} else {
			printReload(cmd, result)
		}
		if !result.OK {
			return errReported
		}
		return nil
	}
	return cmd
}

func printReload(cmd *cobra.Command, r admin.Reload) {
	out := cmd.OutOrStdout()
	switch {
	case !r.OK:
		fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: the old configuration stays in force:")
		for _, e := range r.Errors {
			fmt.Fprintln(cmd.ErrOrStderr(), "  "+e)
		}
	case len(r.Changed)+len(r.NeedRestart) == 0:
		fmt.Fprintln(out, "reloaded: nothing has changed")
	default:
		if len(r.Changed) > 0 {
			fmt.Fprintln(out, "changed:", strings.Join(r.Changed, " "))
		}
		if len(r.NeedRestart) > 0 {
			fmt.Fprintln(out, "need a restart:", strings.Join(r.NeedRestart, " "))
		}
	}
}

func logLevelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log-level LEVEL",
		Short: "Change the log level of the running relay",
		Long: "Change the log level of the running relay until its next start or reload.\n" +
			"LEVEL is debug, info, warn or error.",
		Example:   "  koji-relay log-level debug",
		Args:      oneArgument("LEVEL"),
		ValidArgs: []string{"debug", "info", "warn", "error"},
	}
	levels := cmd.ValidArgs
	path := addConfigFlag(cmd)
	asJSON := addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(levels, args[0]) {
			return usageError{fmt.Errorf("log level %q: give one of %s", args[0], strings.Join(levels, ", "))}
		}
		client, err := runningRelay(*path)
		if err != nil {
			return err
		}
		if err := client.SetLogLevel(cmd.Context(), args[0]); err != nil {
			return err
		}
		return printDone(cmd, *asJSON, "log level: "+args[0], map[string]any{"log_level": args[0]})
	}
	return cmd
}

func pauseCommand() *cobra.Command {
	return pausingCommand("pause", "Halt the drain, or all sending",
		`Halt the drain of the queue; new commits are still sent at once. With --publish
halt all sending: commits are taken and queued. It lasts until resume or the
next start of the relay.`,
		(*admin.Client).Pause)
}

func resumeCommand() *cobra.Command {
	return pausingCommand("resume", "End a pause", "End a pause of the drain, or with --publish of all sending.",
		(*admin.Client).Resume)
}

func pausingCommand(name, short, long string,
	do func(*admin.Client, context.Context, admin.Pausable) error) *cobra.Command {
	var publish bool
	cmd := &cobra.Command{
		Use: name, Short: short, Long: long, Args: cobra.NoArgs,
		Example: fmt.Sprintf("  koji-relay %s\n  koji-relay %s --publish", name, name),
	}
	path := addConfigFlag(cmd)
	asJSON := addJSONFlag(cmd)
	cmd.Flags().BoolVar(&publish, "publish", false, "all sending, not only the drain")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := runningRelay(*path)
		if err != nil {
			return err
		}
		what := admin.Drain
		if publish {
			what = admin.Publish
		}
		if err := do(client, cmd.Context(), what); err != nil {
			return err
		}
		return printDone(cmd, *asJSON, pauseText[name][what],
			map[string]any{"what": what, "paused": name == "pause"})
	}
	return cmd
}

// pauseText is what is printed when it is done.
var pauseText = map[string]map[admin.Pausable]string{
	"pause": {
		admin.Drain:   "The drain is halted. New commits are still sent.",
		admin.Publish: "All sending is halted. Commits are queued.",
	},
	"resume": {
		admin.Drain:   "The drain goes on.",
		admin.Publish: "Sending goes on.",
	},
}

func printDone(cmd *cobra.Command, asJSON bool, text string, object map[string]any) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), object)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// openedQueue is what the queue's commands work on: the running relay, or, where none runs, the store itself.
type openedQueue struct {
	admin.QueueControl
	status  func(context.Context) (admin.Status, error)
	release func()       // must be called
	log     *slog.Logger // for what a command changes; nil where the relay logs it
}

func openQueue(ctx context.Context, path string) (*openedQueue, error) {
	client, err := runningRelay(path)
	if err != nil {
		return nil, err
	}
	_, err = client.Status(ctx)
	if err == nil {
		return &openedQueue{QueueControl: client, status: client.Status, release: func() {}}, nil
	}
	if !errors.Is(err, admin.ErrNotRunning) {
		return nil, err
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return nil, err
	}
	return openStoppedQueue(ctx, cfg)
}

func openStoppedQueue(ctx context.Context, cfg *config.Config) (*openedQueue, error) {
	store, _, err := daemon.OpenStore(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if store == nil {
		return nil, usageError{errors.New("there is no queue: [queue] enabled = off")}
	}
	log := newAuditLog()
	control, err := daemon.NewQueueControl(cfg, store, log)
	if err != nil {
		store.Close()
		return nil, err
	}
	return &openedQueue{
		QueueControl: control,
		status: func(ctx context.Context) (admin.Status, error) {
			return daemon.StoppedStatus(ctx, cfg, store), nil
		},
		release: func() { store.Close() },
		log:     log,
	}, nil
}
