// Package demo plays the relay's main job on one machine: a stand-in hub, the relay, two brokers that die and
// return, a subscriber in a process of its own, and an account of what was handed over and what arrived. It
// needs nothing installed and leaves nothing behind.
package demo

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"koji-relay/internal/devbroker"
)

const (
	// busyPause is the hub's pause between two commits, in the mean: a busy hub.
	busyPause = 75 * time.Millisecond
	// longQuiet is how long nothing may arrive at the end before what is missing counts as lost. On a busy
	// machine messages are set aside, and their pauses double from 5 s on (queue/policy.go).
	longQuiet = 90 * time.Second
	// patience bounds each wait for something that takes a moment on an idle machine.
	patience = 20 * time.Second
)

// ErrReported ends a demo that has shown on its screen what went wrong, such as a loss.
var ErrReported = errors.New("the demo has told what went wrong")

// Options say how the demo is run.
type Options struct {
	Keep    bool   // leave everything running at the end, until the context ends
	Program string // koji-relay, for the subscriber's process
	// Serve runs the relay with a configuration file until ctx ends; its log goes to log.
	Serve  func(ctx context.Context, config string, log io.Writer) error
	Colour bool // whether the output is a terminal that shows colours

	Pause time.Duration // the hub's mean pause between two commits; 0 = that of a busy hub
	quiet time.Duration // 0 = longQuiet
	// plant, when set, may spoil the brokers: a test proves with it that the account finds a loss.
	plant func(brokers [2]*devbroker.Broker)
}

// demo is one run.
type demo struct {
	opts    Options
	screen  *screen
	site    *site
	hub     *standInHub
	viewer  *subscriber
	account *account
	table   *table
}

// Run plays the acts and gives the account. It blocks until the end or until ctx ends, and leaves nothing
// behind; only after a failure its directory stays, with the logs.
func Run(user context.Context, out io.Writer, opts Options) error {
	ctx, fail := context.WithCancelCause(user)
	defer fail(nil)
	opts.Pause = cmp.Or(opts.Pause, busyPause)
	opts.quiet = cmp.Or(opts.quiet, longQuiet)
	d := &demo{opts: opts, screen: &screen{w: out, colour: opts.Colour}, account: newAccount()}
	err := d.open(fail)
	if err == nil {
		d.introduce()
		err = d.play(ctx)
	}
	if err == nil {
		err = d.conclude(ctx)
	}
	if opts.Keep && (err == nil || errors.Is(err, ErrReported)) {
		d.keep(ctx)
	}
	return d.end(user, context.Cause(ctx), err)
}

// open starts the parts. What is started when it fails is stopped by end.
func (d *demo) open(fail context.CancelCauseFunc) error {
	var err error
	if d.site, err = openSite(d.opts.Keep); err != nil {
		return err
	}
	if d.opts.plant != nil {
		d.opts.plant(d.site.brokers)
	}
	if d.hub, err = newStandInHub(d.site.path(socketFile), d.account); err != nil {
		return err
	}
	d.site.startRelay(d.opts.Serve, fail)
	d.viewer, err = startSubscriber(d.opts.Program, d.site, d.account, fail)
	return err
}

// end stops everything and chooses what to say about how it went: the user's Ctrl-C, or the part that ended
// by itself and broke a wait, or the error itself.
func (d *demo) end(user context.Context, cause, err error) error {
	if err != nil && !errors.Is(err, ErrReported) && user.Err() == nil && cause != nil {
		// A Ctrl-C reaches the subscriber's process as well, and may be noticed there first.
		select {
		case <-user.Done():
		case <-time.After(200 * time.Millisecond):
			err = cause
		}
	}
	interrupted := user.Err() != nil && err != nil && !errors.Is(err, ErrReported)
	if d.viewer != nil {
		d.viewer.stop()
	}
	if d.site != nil {
		d.site.close(err == nil || interrupted)
	}
	if interrupted {
		d.screen.say("Stopped before the end.")
		return ErrReported
	}
	if err != nil && d.site != nil {
		d.screen.say("The logs are kept in %s", d.site.dir)
	}
	return err
}
