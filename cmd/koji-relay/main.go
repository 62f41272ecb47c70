// Command koji-relay publishes what happens on a Koji hub on an AMQP 1.0 message bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, documented in `koji-relay --help`.
const (
	exitOK      = 0
	exitFailure = 1 // the command ran and what it was asked for failed, or a check found a problem
	exitUsage   = 2 // unusable arguments or configuration; nothing was done
)

// usageError marks an error as the caller's: unusable arguments or configuration.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errReported ends a command with exitFailure when it has already printed all there is to say.
var errReported = errors.New("already reported")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but for the process exit. Commands that handle signals by themselves (serve)
// register their own.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailure
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "koji-relay:", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "koji-relay:", err)
		return exitFailure
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "koji-relay",
		Short: "Publish what happens on a Koji hub on an AMQP 1.0 message bus",
		Long: `koji-relay publishes what happens on a Koji hub on an AMQP 1.0 message bus.
It runs beside the hub, reads the protonmsg.conf that the hub's protonmsg plugin
used, and sends the same messages.

Exit codes: 0 done; 1 what was asked for failed, or a check found a problem;
2 unusable arguments or configuration, nothing was done.`,
		Version:       programVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(serveCommand(), checkCommand(), translateCommand(), tailCommand(), dbCommand(), demoCommand(),
		queueCommand(), deadCommand(), pauseCommand(), resumeCommand(), reloadCommand(), logLevelCommand())
	return root
}

// noSubcommand refuses a misspelt command by name, with the nearest known ones.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := fmt.Sprintf("see '%s --help'", cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q?", near[0])
	}
	return usageError{fmt.Errorf("unknown command %q; %s", args[0], hint)}
}
