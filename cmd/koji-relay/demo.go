package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"koji-relay/config"
	"koji-relay/internal/daemon"
	"koji-relay/internal/demo"
)

func demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch the relay lose two brokers and no message",
		Long: `Run the main job on this machine, with nothing installed: two embedded AMQP
1.0 brokers, the relay with a queue in a file, a stand-in hub that hands over
commits of a real Koji hub through the real socket, and a subscriber in a
process of its own. Brokers are killed and come back; the account at the end
compares what was handed over with what the subscriber received.

Exit codes: 0 nothing was lost; 1 something was, or the demo could not be run.`,
		Example: `  koji-relay demo
  koji-relay demo --keep    then look around from a second terminal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program for the subscriber's process: %w", err)
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), demo.Options{Keep: keep, Program: exe})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running at the end, until Ctrl-C")
	return cmd
}

func runDemo(ctx context.Context, out io.Writer, opts demo.Options) error {
	opts.Serve = serveDemo
	opts.Colour = isTerminal(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	err := demo.Run(ctx, out, opts)
	if errors.Is(err, demo.ErrReported) {
		return errReported
	}
	return err
}

// serveDemo runs the relay as serve does, but until ctx ends, and without signals of its own.
func serveDemo(ctx context.Context, path string, out io.Writer) error {
	load := func() (*config.Config, error) { return loadVerifiedConfig(path) }
	cfg, err := load()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	d := daemon.New(daemon.Options{
		Config: cfg, Load: load, Logger: newLogger(out, cfg.Relay.LogFormat, level), Level: level,
	})
	return d.Run(ctx, context.Background())
}
