package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/config"
	"koji-relay/internal/daemon"
	"koji-relay/internal/logbuffer"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the relay",
		Long: `Run the relay: take commits from the hub, publish them, and drain the queue.

SIGTERM or SIGINT finishes what is under way and ends; a second one ends at
once. SIGHUP reads the configuration again; a bad file keeps the old one.`,
		Example: `  koji-relay serve
  koji-relay serve --config ./protonmsg.conf`,
		Args: cobra.NoArgs,
	}
	path := addConfigFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return serve(*path, cmd.ErrOrStderr()) }
	return cmd
}

// serve handles its signals by itself: the first one ends the intake, the second one all patience.
func serve(path string, stderr io.Writer) error {
	cfg, err := loadVerifiedConfig(path)
	if err != nil {
		return err
	}
	// Who reads the log may end before the relay does; a line that cannot be written is no reason to end, too.
	signal.Ignore(syscall.SIGPIPE)
	level := new(slog.LevelVar)
	lines := logbuffer.New(newLogger(stderr, cfg.Relay.LogFormat, level).Handler())
	defer runLog(lines)()
	log := slog.New(lines)
	for _, w := range cfg.Warnings {
		log.Warn("configuration: " + w.String())
	}
	d := daemon.New(daemon.Options{
		Config:  cfg,
		Load:    func() (*config.Config, error) { return loadVerifiedConfig(path) },
		Logger:  log,
		Level:   level,
		LogLost: lines.Lost,
		Version: programVersion(),
	})

	intake, endIntake := context.WithCancel(context.Background())
	defer endIntake()
	finish, endFinish := context.WithCancel(context.Background())
	defer endFinish()
	signals := make(chan os.Signal, 4) // the two that end, and a reload or two between
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		for {
			select {
			case <-finish.Done():
				return
			case s := <-signals:
				switch {
				case s == syscall.SIGHUP:
					// Beside this loop: a signal to stop must not wait for a reload. It logs its result.
					go func() { _ = d.Reload(intake) }()
				case intake.Err() == nil:
					endIntake()
				default:
					log.Warn("second signal: stopping now")
					endFinish()
				}
			}
		}
	}()
	return d.Run(intake, finish)
}

// runLog writes the log until the function that it returns is called, which gives it a moment for its last
// lines.
func runLog(lines *logbuffer.Handler) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines.Run(ctx)
	}()
	return func() {
		cancel()
		select {
		case <-done:
		case <-time.After(time.Second):
		}
	}
}
