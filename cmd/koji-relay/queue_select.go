package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/inspect"
)

// selectionVerb is something that is done to the items of a box.
type selectionVerb struct {
	name       string // of the command
	short      string
	ask        string // the verb of the question; empty where nothing is lost
	did, would string // what is printed afterwards, about the number of items
	do         func(admin.QueueControl, context.Context, inspect.Box, inspect.Selection) (inspect.Changed, error)
}

const selectionLong = `

Name the IDs, or give --all, or conditions: --address, --reason and
--older-than narrow together what is meant. With --dry-run nothing is changed,
and the number is printed. Who did it, and to how many, is logged.

Exit codes: 0 done; 1 something named is not there, or cannot be sent still; 2
unusable arguments, or not confirmed: nothing was done.`

// selectionCommand acts on the items named, on those that conditions leave, or on all.
func selectionCommand(box inspect.Box, noun string, verb selectionVerb) *cobra.Command {
	var which inspect.Selection
	var yes bool
	var older string
	line := fmt.Sprintf("  koji-relay %s %s ", box, verb.name)
	cmd := &cobra.Command{
		Use:   verb.name + " ID... | --all | CONDITIONS",
		Short: verb.short,
		Long:  verb.short + "." + selectionLong,
		Example: line + "2b53e448-91ec-5132-8b6f-8078aa6cb1a3\n" +
			line + "--address build.tag --older-than 12h --dry-run\n" + line + "--reason 'queue full'\n" + line +
			"--all",
		ValidArgsFunction: completeIDs(box),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&which.All, "all", false, "all of them")
	flags.StringVar(&which.Address, "address", "", "those of one `topic`, such as build.tag; no pattern")
	flags.StringVar(&which.Reason, "reason", "", "those with this `text` in their reason")
	flags.StringVar(&older, "older-than", "", "those older than this `time`: 90m, 12h, 7d")
	flags.BoolVar(&which.DryRun, "dry-run", false, "only say how many there are")
	if verb.ask != "" {
		flags.BoolVarP(&yes, "yes", "y", false, "do not ask")
	}
	completeTopics(cmd, box)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		which.IDs = args
		if err := setOlder(&which, older); err != nil {
			return err
		}
		if strings.ContainsAny(which.Address, "*?[") {
			return usageError{fmt.Errorf("--address %s: give one topic; patterns are not taken here", which.Address)}
		}
		if !which.Clear() {
			return usageError{fmt.Errorf("name one or more IDs, or give --all, or conditions; see '%s --help'",
				cmd.CommandPath())}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q, err := openQueue(cmd.Context(), *path)
		if err != nil {
			return err
		}
		defer q.release()
		if verb.ask != "" && !yes && !which.DryRun {
			if err := confirmChange(cmd, q, box, noun, verb, which); err != nil {
				return err
			}
		}
		changed, err := verb.do(q, cmd.Context(), box, which)
		if q.log != nil && !which.DryRun && changed.Count > 0 {
			admin.LogChange(q.log.With("user", admin.UserName(os.Getuid())), verb.name, box, which, changed)
		}
		if err != nil {
			return err
		}
		return printChanged(cmd, *asJSON, box, noun, verb, which.DryRun, changed)
	}
	return cmd
}

// confirmChange counts what is meant, and asks.
func confirmChange(cmd *cobra.Command, q *openedQueue, box inspect.Box, noun string, verb selectionVerb,
	which inspect.Selection) error {
	which.DryRun = true
	meant, err := verb.do(q, cmd.Context(), box, which)
	if err != nil {
		return err
	}
	if meant.Count == 0 {
		return nil // nothing to ask about
	}
	what := inspect.Count(meant.Count, noun)
	if which.All && meant.Count > 1 {
		what = "all " + what
	}
	if box == inspect.QueueBox {
		what += " of the queue"
	}
	return askToGoOn(cmd, fmt.Sprintf("%s %s for good?", verb.ask, what))
}

// printChanged tells what was done. What was named and not done is a failure, in both forms.
func printChanged(cmd *cobra.Command, asJSON bool, box inspect.Box, noun string, verb selectionVerb, dry bool,
	changed inspect.Changed) error {
	var err error
	switch {
	case asJSON:
		err = printJSON(cmd.OutOrStdout(), changed)
	case dry:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), verb.would+"\n", inspect.Count(changed.Count, noun))
	default:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), verb.did+"\n", inspect.Count(changed.Count, noun))
	}
	if err != nil {
		return err
	}
	for _, id := range changed.Missing {
		if verb.name == "drop" {
			fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: %s is not in %s\n", id, box.Name())
			continue
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: %s is not in %s, or cannot be sent still; "+
			"'koji-relay %s show %s' has the reason\n", id, box.Name(), box, id)
	}
	if len(changed.Missing) > 0 {
		return errReported
	}
	return nil
}

// setOlder makes a moment of an age, so that a question and what follows it mean the same items.
func setOlder(which *inspect.Selection, older string) error {
	if older == "" {
		return nil
	}
	age, err := parseAge(older)
	if err != nil {
		return usageError{fmt.Errorf("--older-than %s: %w", older, err)}
	}
	which.Before = time.Now().Add(-age)
	return nil
}

// parseAge reads a duration, with days besides Go's units.
func parseAge(text string) (time.Duration, error) {
	unusable := errors.New("give a number with a unit: 90m, 12h or 7d")
	if days, found := strings.CutSuffix(text, "d"); found {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, unusable
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	age, err := time.ParseDuration(text)
	if err != nil || age < 0 {
		return 0, unusable
	}
	return age, nil
}
