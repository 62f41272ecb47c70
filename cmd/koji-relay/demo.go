package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/devbroker"
)

func demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch the relay lose two brokers and no message",
		Long: `Run the main job on this machine, with nothing installed: two embedded AMQP 1.0
brokers, the relay with a queue in a file, a stand-in hub that hands over commits
of a real Koji hub through the real socket, and a subscriber in a process of its
own. Brokers are killed and come back; the account at the end compares what was
handed over with what the subscriber received.

Exit codes: 0 nothing was lost; 1 something was, or the demo could not be run.`,
		Example: `  koji-relay demo
  koji-relay demo --keep    then look around from a second terminal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program for the subscriber's process: %w", err)
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), demoOptions{
				keep: keep, pause: demoPause, quiet: demoQuiet, program: exe,
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave everything running at the end, until Ctrl-C")
	return cmd
}

const (
	// demoPause is the hub's pause between two commits, in the mean: a busy hub.
	demoPause = 75 * time.Millisecond
	// demoQuiet is how long nothing may arrive at the end before what is missing counts as lost.
	demoQuiet = 15 * time.Second
	// demoPatience bounds each wait for something that takes a moment on an idle machine.
	demoPatience = 20 * time.Second
)

// demoOptions is what the command and its test set differently.
type demoOptions struct {
	keep    bool
	pause   time.Duration
	quiet   time.Duration
	program string // koji-relay, for the subscriber's process
	// plant, when set, may spoil the brokers: a test proves with it that the account finds a loss.
	plant func(brokers [2]*devbroker.Broker)
}

// demo is one run.
type demo struct {
	opts    demoOptions
	screen  *screen
	site    *demoSite
	hub     *standInHub
	viewer  *demoSubscriber
	account *account
	table   *table
}

// runDemo plays the acts and gives the account. It blocks until the end or until ctx ends, and leaves nothing
// behind; only after a failure its directory stays, with the logs.
func runDemo(user context.Context, out io.Writer, opts demoOptions) error {
	ctx, fail := context.WithCancelCause(user)
	defer fail(nil)
	d := &demo{opts: opts, screen: newScreen(out), account: newAccount()}
	err := d.open(fail)
	if err == nil {
		d.introduce()
		err = d.play(ctx)
	}
	if err == nil {
		err = d.conclude(ctx)
	}
	if opts.keep && (err == nil || errors.Is(err, errReported)) {
		d.keep(ctx)
	}
	return d.end(user, context.Cause(ctx), err)
}

// open starts the parts. What is started when it fails is stopped by end.
func (d *demo) open(fail context.CancelCauseFunc) error {
	var err error
	if d.site, err = openDemoSite(); err != nil {
		return err
	}
	if d.opts.plant != nil {
		d.opts.plant(d.site.brokers)
	}
	if d.hub, err = newStandInHub(d.site.path(demoSocket), d.account); err != nil {
		return err
	}
	if err := d.site.startRelay(fail); err != nil {
		return err
	}
	d.viewer, err = startDemoSubscriber(d.opts.program, d.site, d.account, fail)
	return err
}

// end stops everything and chooses what to say about how it went: the user's Ctrl-C, or the part that ended by
// itself and broke a wait, or the error itself.
func (d *demo) end(user context.Context, cause, err error) error {
	if err != nil && !errors.Is(err, errReported) && user.Err() == nil && cause != nil {
		// A Ctrl-C reaches the subscriber's process as well, and may be noticed there first.
		select {
		case <-user.Done():
		case <-time.After(200 * time.Millisecond):
			err = cause
		}
	}
	interrupted := user.Err() != nil && err != nil && !errors.Is(err, errReported)
	if d.viewer != nil {
		d.viewer.stop()
	}
	if d.site != nil {
		d.site.close(err == nil || interrupted)
	}
	if interrupted {
		d.screen.say("Stopped before the end.")
		return errReported
	}
	if err != nil && d.site != nil {
		d.screen.say("The logs are kept in %s", d.site.dir)
	}
	return err
}
