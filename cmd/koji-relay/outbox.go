package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
	"koji-relay/queue/postgres"
)

func outboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "Look at the readers of the outbox, forget one, drop events",
		Long: `Look at the readers of the outbox, forget one, drop events. A reader is a
relay with a name of its own ([relay] name), or the relays without one. An event
goes when each reader has taken it. The commands work on the database itself.`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(outboxReadersCommand(), outboxForgetCommand(), outboxDropCommand())
	return cmd
}

// onOutbox opens the outbox that the configuration names, for do.
func onOutbox(ctx context.Context, path string, do func(*postgres.Store) error) error {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	if _, err := cfg.DatabaseConn(); err != nil {
		return usageError{fmt.Errorf("find the database of the outbox: %w", err)}
	}
	p, err := daemon.OpenOutbox(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer p.Close()
	return do(p)
}

func outboxReadersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "readers",
		Short:   "Say who reads the outbox, and what is held for whom",
		Example: "  koji-relay outbox readers\n  koji-relay outbox readers --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return onOutbox(cmd.Context(), *path, func(p *postgres.Store) error {
			readers, err := p.Readers(cmd.Context())
			if err != nil {
				return err
			}
			if *asJSON {
				return printJSON(cmd.OutOrStdout(), append([]inspect.Reader{}, readers...))
			}
			return printReaders(cmd.OutOrStdout(), readers, time.Now())
		})
	}
	return cmd
}

func printReaders(out io.Writer, readers []inspect.Reader, now time.Time) error {
	t := newTable(out)
	if len(readers) == 0 {
		t.line("No relay has read the outbox yet.")
		return t.flush()
	}
	t.row("READER", "EVENTS", "OLDEST", "SEEN", "READ BY")
	for _, r := range readers {
		by := r.Holder.String()
		if r.Away {
			by += " (away)"
		}
		t.row(r.Shown(), fmt.Sprint(r.Depth), inspect.Age(now, r.Oldest), inspect.Time(r.Seen), by)
	}
	return t.flush()
}

func outboxForgetCommand() *cobra.Command {
	var yes, unnamed bool
	cmd := &cobra.Command{
		Use:   "forget NAME",
		Short: "Forget a reader, with the events that only it has not taken",
		Long: `Forget a reader that is not coming back: events that every other reader has
taken go, and none is held for it any more. Stop its relays first; one that runs
registers again within a minute.`,
		Example: `  koji-relay outbox forget new-bus
  koji-relay outbox forget --unnamed`,
	}
	path := addConfigFlag(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&unnamed, "unnamed", false, "forget the reader without a name")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case unnamed && len(args) > 0:
			return usageError{fmt.Errorf("--unnamed means the reader without a name; leave out %q or --unnamed",
				args[0])}
		case unnamed:
			return nil
		}
		return oneArgument("name of a reader")(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := ""
		if !unnamed {
			if name = args[0]; name == "" {
				return usageError{errors.New("the name is empty; --unnamed means the reader without one")}
			}
		}
		return onOutbox(cmd.Context(), *path, func(p *postgres.Store) error {
			return forgetReader(cmd, p, name, yes)
		})
	}
	return cmd
}

func outboxDropCommand() *cobra.Command {
	var yes, dry bool
	var older string
	cmd := &cobra.Command{
		Use:   "drop --older-than TIME",
		Short: "Drop events of the outbox that nobody needs, for all readers",
		Long: `Drop events of the outbox that nobody needs, for all readers: no relay publishes
them. Do it before a relay starts; one that runs may have taken them already.
A DELETE of your own does less: for readers with a name it is held back.`,
		Example: `  koji-relay outbox drop --older-than 1h --dry-run
  koji-relay outbox drop --older-than 7d`,
	}
	path := addConfigFlag(cmd)
	cmd.Flags().StringVar(&older, "older-than", "", "those older than this `time`: 90m, 12h, 7d")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say how many there are")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if older == "" {
			return usageError{errors.New("give --older-than, such as --older-than 1h; 0s means all")}
		}
		return cobra.NoArgs(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var which inspect.Selection
		if err := setOlder(&which, older); err != nil {
			return err
		}
		return onOutbox(cmd.Context(), *path, func(p *postgres.Store) error {
			n, err := p.DropOutbox(cmd.Context(), which.Before, true)
			if err == nil && n > 0 && !dry {
				if !yes {
					err = askToGoOn(cmd, fmt.Sprintf("Drop %s of the outbox for good?", inspect.Count(n, "event")))
				}
				if err == nil {
					n, err = p.DropOutbox(cmd.Context(), which.Before, false)
				}
			}
			if err != nil {
				return err
			}
			verb := "drop"
			if dry {
				verb = "drop would change"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d\n", verb, n)
			return err
		})
	}
	return cmd
}

func forgetReader(cmd *cobra.Command, p *postgres.Store, name string, yes bool) error {
	readers, err := p.Readers(cmd.Context())
	if err != nil {
		return err
	}
	shown := inspect.Reader{Name: name}.Shown()
	i := slices.IndexFunc(readers, func(r inspect.Reader) bool { return r.Name == name })
	if i >= 0 && !yes {
		question := fmt.Sprintf("Forget reader %s, which has not taken %s of the outbox?", shown,
			inspect.Count(readers[i].Depth, "event"))
		if err := askToGoOn(cmd, question); err != nil {
			return err
		}
	}
	known, deleted, err := p.ForgetReader(cmd.Context(), name)
	switch {
	case errors.Is(err, postgres.ErrReading):
		return fmt.Errorf("forget reader %s: %w", shown, postgres.ErrReading)
	case err != nil:
		return err
	case !known && deleted == 0:
		return fmt.Errorf("there is no reader %s; 'koji-relay outbox readers' lists them", shown)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "Forgot reader %s. Deleted %s that it alone held.\n", shown,
		inspect.Count(deleted, "event"))
	return err
}
