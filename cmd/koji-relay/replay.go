package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/amqpconn"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

// replayFlags are those of replay beyond the conditions of history.
type replayFlags struct {
	from            string
	dryRun, yes, bg bool
}

func replayCommand() *cobra.Command {
	var r inspect.Replay
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Send messages of the history again",
		Long: `Send messages of the history again, with the same message-id, bytes and
creation-time: consumers that remember ids drop what they have. The messages go
through the queue and the drain, behind live ones. The relay does the work: a
replay goes on when this command is interrupted, and after a restart.

The conditions are those of 'koji-relay history'; at least one is needed, or
--from with a file of 'koji-relay history --json'. With --url the messages go to
another broker instead, which is checked as by 'koji-relay check --connect'.`,
		Example: `  koji-relay replay --since '2026-11-26 14:00' --until 2026-11-27 --dry-run
  koji-relay replay --tag f40-updates --since 1d --rate 50
  koji-relay replay --since 7d --url amqps://new:5671 --topic-prefix /topic/koji
  koji-relay replay --from history.jsonl --yes`,
		Args: noSubcommand,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	times := addHistoryFlags(cmd, &r.Query)
	cmd.Flags().StringVar(&f.from, "from", "",
		"the messages of a `file` of history --json; - is standard input")
	cmd.Flags().Float64Var(&r.Rate, "rate", 0, "messages a second; 0 = [queue] rate_limit, else 100")
	cmd.Flags().StringVar(&r.URL, "url", "", "send to this broker: amqp://HOST or amqps://HOST")
	cmd.Flags().StringVar(&r.TopicPrefix, "topic-prefix", "", "`prefix` of topics at --url, if another one")
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "say what would be sent, and send nothing")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&f.bg, "background", false, "do not wait for the end")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := times.set(&r.Query); err != nil {
			return err
		}
		if !(r.Rate >= 0) || math.IsInf(r.Rate, 0) { // NaN is neither
			return usageError{fmt.Errorf("--rate %v: give messages a second, or 0 for the default", r.Rate)}
		}
		r.File = f.from != ""
		if r.File == (r.Query != inspect.HistoryQuery{}) {
			return usageError{fmt.Errorf("give conditions, or --from FILE; see '%s --help'",
				cmd.CommandPath())}
		}
		if r.URL != "" {
			if err := checkReplayURL(cmd, *path, r); err != nil {
				return err
			}
		}
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			return startReplay(cmd, h, r, f, *asJSON)
		})
	}
	cmd.AddCommand(replayListCommand(), replayCancelCommand())
	return cmd
}

// checkReplayURL looks at the broker of a replay as check --connect does.
func checkReplayURL(cmd *cobra.Command, path string, r inspect.Replay) error {
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	o := daemon.RelayOptions(cfg, slog.New(slog.DiscardHandler))
	if r.TopicPrefix != "" {
		o.TopicPrefix = r.TopicPrefix
	}
	report := amqpconn.Probe(cmd.Context(), o.Options, r.URL)
	for _, w := range report.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: warning:", inspect.Line(w, 0))
	}
	if report.Err != nil {
		return fmt.Errorf("look at the broker of --url: %w; nothing was sent", report.Err)
	}
	if !report.Credit {
		return errors.New("the broker of --url takes no messages at the moment (no credit); nothing was sent")
	}
	return nil
}

func startReplay(cmd *cobra.Command, h admin.HistoryControl, r inspect.Replay, f replayFlags,
	asJSON bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if !r.File {
		plan, err := h.PlanReplay(ctx, r)
		if err != nil {
			return err
		}
		if f.dryRun && asJSON {
			return printJSON(out, plan)
		}
		if f.dryRun || !f.yes {
			printPlan(cmd, plan)
		}
		if f.dryRun {
			return nil
		}
		if plan.Messages == 0 {
			return errors.New("nothing of that in the history")
		}
	}
	lines, err := openLines(cmd, f)
	if err != nil {
		return err
	}
	defer lines.Close()
	if !f.yes {
		if err := askToGoOn(cmd, "Send them again?"); err != nil {
			return err
		}
	}
	started, err := h.StartReplay(ctx, r, lines)
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintf(out, "replay %d: %s\n", started.ID, inspect.Count(started.Total, "message"))
	}
	if _, running := h.(*admin.Client); !running || f.bg {
		if !asJSON {
			fmt.Fprintln(out, "It goes on by itself while the relay runs; see koji-relay replay list.")
			return nil
		}
		return printJSON(out, started)
	}
	return awaitReplay(cmd, h, started.ID, asJSON)
}

// openLines opens the file of --from; without one it is empty.
func openLines(cmd *cobra.Command, f replayFlags) (io.ReadCloser, error) {
	switch f.from {
	case "":
		return io.NopCloser(eofReader{}), nil
	case "-":
		if !f.yes {
			return nil, usageError{errors.New("--from - needs --yes: standard input cannot answer as well")}
		}
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	if f.dryRun {
		return nil,
			usageError{errors.New("--dry-run counts what the history has; a file has as many messages as lines")}
	}
	file, err := os.Open(f.from)
	if err != nil {
		return nil, usageError{fmt.Errorf("open the file to replay: %w", err)}
	}
	return file, nil
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

func printPlan(cmd *cobra.Command, p inspect.Plan) {
	takes := time.Duration(float64(p.Messages) / p.Rate * float64(time.Second))
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "%s, %s, in %s at %g a second\n", inspect.Count(p.Messages, "message"),
		inspect.Size(p.Bytes), inspect.Duration(takes), p.Rate)
	for _, topic := range slices.Sorted(maps.Keys(p.Topics)) {
		fmt.Fprintf(out, "  %8d  %s\n", p.Topics[topic], inspect.Line(topic, 0))
	}
}

// awaitReplay shows how far a replay is, until it ends. Interrupted, the command ends and the replay goes on.
func awaitReplay(cmd *cobra.Command, h admin.HistoryControl, id int64, asJSON bool) error {
	for {
		r, err := oneReplay(cmd.Context(), h, id)
		switch {
		case cmd.Context().Err() != nil:
			fmt.Fprintln(cmd.ErrOrStderr(), "\nThe replay goes on; see koji-relay replay list.")
			return nil
		case errors.Is(err, admin.ErrNotRunning):
			fmt.Fprint(cmd.ErrOrStderr(), "\rwaiting for the relay to run again ")
		case err != nil:
			return err
		case r.State != inspect.ReplayRuns:
			if isTerminal(cmd.ErrOrStderr()) {
				fmt.Fprintln(cmd.ErrOrStderr())
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			fmt.Fprintln(cmd.OutOrStdout(), replayText(r))
			if r.State != inspect.ReplayDone || r.Refused > 0 {
				return errReported
			}
			return nil
		case isTerminal(cmd.ErrOrStderr()):
			fmt.Fprintf(cmd.ErrOrStderr(), "\r%s ", replayText(r))
		}
		select {
		case <-cmd.Context().Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func oneReplay(ctx context.Context, h admin.HistoryControl, id int64) (inspect.Replay, error) {
	all, err := h.Replays(ctx)
	if i := slices.IndexFunc(all, func(r inspect.Replay) bool { return r.ID == id }); i >= 0 {
		return all[i], err
	}
	return inspect.Replay{}, err
}

// replayText is one replay for a person.
func replayText(r inspect.Replay) string {
	text := fmt.Sprintf("replay %d %s: %d of %d sent", r.ID, r.State, r.Done, r.Total)
	if r.Skipped > 0 {
		text += fmt.Sprintf(", %d in the queue anyway or damaged", r.Skipped)
	}
	if r.Refused > 0 {
		text += fmt.Sprintf(", %d refused", r.Refused)
	}
	if r.Waiting > 0 {
		text += fmt.Sprintf(", %d of them wait in the queue", r.Waiting)
	}
	if r.State == inspect.ReplayRuns && !r.Held {
		text += "; no relay works on it"
		if !r.Seen.IsZero() {
			text += ", last at " + inspect.Time(r.Seen)
		}
	}
	if !r.Stands.IsZero() {
		text += "; it stands since " + inspect.Time(r.Stands)
	}
	if r.Error != "" {
		text += ": " + inspect.Line(r.Error, 0)
	}
	return text
}

func replayListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the replays and how far they are",
		Example: "  koji-relay replay list\n  koji-relay replay list --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			all, err := h.Replays(cmd.Context())
			if err != nil {
				return err
			}
			lines, t := newJSON(cmd.OutOrStdout()), newTable(cmd.OutOrStdout())
			for _, r := range all {
				if *asJSON {
					err = errors.Join(err, lines.Encode(r))
					continue
				}
				where := "queue"
				if r.URL != "" {
					where = r.URL
				}
				t.row(inspect.Time(r.Created), where, replayText(r))
			}
			return errors.Join(err, t.flush())
		})
	}
	return cmd
}

func replayCancelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cancel NUMBER",
		Short:   "End a replay; what it put into the queue stays there",
		Example: "  koji-relay replay cancel 3",
		Args:    oneArgument("NUMBER"),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("%q is not the number of a replay; see 'koji-relay replay list'",
				args[0])}
		}
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			if err := h.CancelReplay(cmd.Context(), id); err != nil {
				return err
			}
			return printDone(cmd, *asJSON, fmt.Sprintf("cancelled replay %d", id),
				map[string]any{"cancelled": id})
		})
	}
	return cmd
}
