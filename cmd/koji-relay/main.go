// Command koji-relay publishes what happens on a Koji hub on an AMQP 1.0 message bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
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

// exitCode ends a command that has printed all there is to say with a code of its own.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

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
	var code exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
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
		Long: `koji-relay publishes what happens on a Koji hub on an AMQP 1.0 message bus. It
runs beside the hub, reads the protonmsg.conf that the hub's protonmsg plugin
used, and sends the same messages.

Exit codes: 0 done; 1 what was asked for failed, or a check found a problem; 2
unusable arguments or configuration, nothing was done.`,
		Version:       programVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd.HasSubCommands() { // a flag of a misspelt command is unknown, too
			if unknown := noSubcommand(cmd, cmd.Flags().Args()); unknown != nil {
				return unknown
			}
		}
		text := err.Error()
		var number *strconv.NumError
		if errors.As(err, &number) { // Go's own words say nothing to an administrator
			text = strings.ReplaceAll(text, number.Error(), "no number that can be meant")
		}
		return usageError{fmt.Errorf("%s; see '%s --help'", text, cmd.CommandPath())}
	})
	root.AddCommand(serveCommand(), checkCommand(), statusCommand(), translateCommand(), tailCommand(),
		dbCommand(), demoCommand(), queueCommand(), deadCommand(), outboxCommand(), historyCommand(),
		replayCommand(),
		auditCommand(), pauseCommand(), resumeCommand(), reloadCommand(), logLevelCommand(), completionCommand(),
		sendTestCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(helpCommand(root))
	root.SetUsageTemplate(strings.NewReplacer( // every terminal has 80 columns
		".FlagUsages", ".FlagUsagesWrapped 80", "for more information about a command", "to know more",
	).Replace(root.UsageTemplate()))
	unusableArguments(root)
	noFiles(root)
	return root
}

// unusableArguments makes usage errors of what cobra says about a command's arguments, and lets every command
// suggest names that are two slips away.
func unusableArguments(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if usage := (usageError{}); err == nil || errors.As(err, &usage) {
				return err
			}
			return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
		}
	}
	for _, sub := range cmd.Commands() {
		unusableArguments(sub)
	}
}

// noFiles keeps shells from offering files to commands that take none.
func noFiles(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil && !strings.Contains(cmd.Use, "FILE") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		noFiles(sub)
	}
}

// noSubcommand refuses a misspelt command by name, with the nearest known ones.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := fmt.Sprintf("see '%s --help'", cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %s?", strings.Join(near, " or "))
	}
	return usageError{fmt.Errorf("unknown command %q; %s", args[0], hint)}
}

// helpCommand is cobra's, but for an error where the command is unknown.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Explain a command",
		Example: "  koji-relay help queue drop",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return noSubcommand(cmd, rest)
			}
			return cmd.Help()
		},
	}
}

// completionCommand prints what a shell needs to complete commands, topics and ids.
func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script for a shell",
		Long: `Print the script with which a shell completes commands, flags, topics and ids.
The packages install them. Without the packages, for the shell that runs:

  source <(koji-relay completion bash)`,
		Example:   "  koji-relay completion zsh > ~/.zfunc/_koji-relay",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			}
			return root.GenFishCompletion(out, true)
		},
	}
}
