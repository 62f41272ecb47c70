package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

func historyCommand() *cobra.Command {
	var q inspect.HistoryQuery
	var follow bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Look up what became of messages",
		Long: `Look up what became of messages: one line for each, newest first. All conditions
that are given must hold. Events that made no message are there too, with the
reason. What could not be recorded is told as a gap.

With --json each line has the whole message, for programs and for
'koji-relay replay --from FILE'.
` + queueLong,
		Example: `  koji-relay history --build bash-5.2.26-3.fc40
  koji-relay history --build bash --tag 'f40-*' --since 2d
  koji-relay history --fate dead
  koji-relay history --since 2h --json > history.jsonl`,
		Args: noSubcommand,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	times := addHistoryFlags(cmd, &q)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is recorded from now on")
	cmd.Flags().IntVar(&q.Limit, "limit", listedByDefault, "at most this many; 0 = all, as with --json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := times.set(&q); err != nil {
			return err
		}
		if q.Limit < 0 {
			return usageError{fmt.Errorf("--limit %d: give a number of messages, or 0 for all", q.Limit)}
		}
		if *asJSON && !cmd.Flags().Changed("limit") {
			q.Limit = 0
		}
		q.Content = *asJSON
		if follow {
			return followHistory(cmd, *path, q, *asJSON)
		}
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			return listHistory(cmd, h, q, *asJSON)
		})
	}
	cmd.AddCommand(historyShowCommand())
	return cmd
}

// historyTimes are --since and --until as they were given.
type historyTimes struct{ since, until *string }

// addHistoryFlags adds the conditions.
func addHistoryFlags(cmd *cobra.Command, q *inspect.HistoryQuery) historyTimes {
	f := cmd.Flags()
	f.StringVar(&q.Build, "build", "", "of this build or package: `NVR|NAME`")
	f.StringVar(&q.Tag, "tag", "", "about tags of this `pattern`")
	f.Int64Var(&q.Task, "task", 0, "about the task of this `ID`")
	f.StringVar(&q.User, "user", "", "by the user of this `name`")
	f.StringVar(&q.Address, "address", "", "to topics of this `pattern`, such as build.*")
	f.StringVar(&q.ID, "id", "", "of this message-`ID`")
	f.StringVar((*string)(&q.Fate), "fate", "",
		"accepted, queued, dead, expired, dropped, skipped or refused")
	_ = cmd.RegisterFlagCompletionFunc("fate", cobra.FixedCompletions(fateNames(),
		cobra.ShellCompDirectiveNoFileComp))
	return historyTimes{
		since: f.String("since", "",
			"handed over at this `time` or later: 2h, 7d, 2026-11-26, '2026-11-26 14:00'"),
		until: f.String("until", "", "handed over before this `time`"),
	}
}

func fateNames() []string {
	var names []string
	for _, k := range inspect.Fates {
		names = append(names, string(k))
	}
	return names
}

func (t historyTimes) set(q *inspect.HistoryQuery) (err error) {
	if q.Since, err = parseTime(*t.since); err != nil {
		return usageError{fmt.Errorf("--since %s: %w", *t.since, err)}
	}
	if q.Until, err = parseTime(*t.until); err != nil {
		return usageError{fmt.Errorf("--until %s: %w", *t.until, err)}
	}
	if q.Since.After(time.Now()) {
		return usageError{fmt.Errorf("--since %s: that is %s, and has not come yet", *t.since,
			inspect.Time(q.Since))}
	}
	if !q.Until.IsZero() && !q.Since.Before(q.Until) {
		return usageError{fmt.Errorf("--until %s: that is %s, not after --since, which is %s", *t.until,
			inspect.Time(q.Until), inspect.Time(q.Since))}
	}
	if q.Fate != "" && !slices.Contains(inspect.Fates, q.Fate) {
		return usageError{fmt.Errorf("--fate %s: give one of %s", q.Fate, strings.Join(fateNames(), ", "))}
	}
	return nil
}

// parseTime reads a time of this host's zone, or how long ago it was; nothing is the zero time.
func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04:05Z07:00",
		"2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	age, err := parseAge(text)
	if err != nil {
		return time.Time{},
			errors.New("give how long ago it was (90m, 12h, 7d), or a time such as 2026-11-26 14:00")
	}
	return time.Now().Add(-age), nil
}

// onHistory gives do the history of the running relay, or, where none runs, the store itself.
func onHistory(ctx context.Context, path string, do func(admin.HistoryControl) error) error {
	client, err := runningRelay(path)
	if err != nil {
		return err
	}
	if _, err = client.Status(ctx); err == nil {
		return do(client)
	}
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	store, err := daemon.OpenHistory(cfg)
	if err != nil {
		return err
	}
	if store == nil {
		return usageError{errors.New("no history is kept: [history] keep = 0, or [queue] enabled = off")}
	}
	defer store.Close() // what do changed is committed
	return do(daemon.NewHistoryControl(cfg, store))
}

func listHistory(cmd *cobra.Command, h admin.HistoryControl, q inspect.HistoryQuery, asJSON bool) error {
	ctx, listed := cmd.Context(), 0
	lines := newJSON(cmd.OutOrStdout())
	t := newTable(cmd.OutOrStdout())
	err := h.History(ctx, q, func(m *inspect.HistoryMessage) error {
		listed++
		if asJSON {
			return lines.Encode(m)
		}
		if listed == 1 {
			t.row("HANDED OVER", "FATE", "TOPIC", "WHAT", "MESSAGE-ID", "WHERE OR WHY")
		}
		t.row(historyCells(m)...)
		if listed%1000 == 0 {
			return t.flush()
		}
		return nil
	})
	if err = errors.Join(err, t.flush()); err != nil {
		return err
	}
	if listed == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: nothing of that in the history")
	} else if listed == q.Limit {
		fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: these are %d; --limit 0 lists all\n", listed)
	}
	return tellGaps(cmd, h, q)
}

func historyCells(m *inspect.HistoryMessage) []string {
	what := cmp.Or(m.Build, m.Package)
	if m.Tag != "" {
		what = strings.TrimSpace(what + " in " + m.Tag)
	}
	if m.Task != 0 {
		what = strings.TrimSpace(fmt.Sprintf("%s task %d", what, m.Task))
	}
	why := m.Broker
	if m.Reason != "" {
		why = strings.TrimSpace(why + " " + m.Reason)
	}
	return []string{inspect.Time(m.Time), string(m.Fate), cmp.Or(m.Address, "("+m.Callback+")"), what,
		m.MessageID, why}
}

// tellGaps names what was not recorded in the times that were asked for.
func tellGaps(cmd *cobra.Command, h admin.HistoryControl, q inspect.HistoryQuery) error {
	gaps, err := h.HistoryGaps(cmd.Context(), q.Since, q.Until)
	if err != nil {
		return err
	}
	const shown = 10
	for i, g := range gaps {
		if i == shown {
			fmt.Fprintf(cmd.ErrOrStderr(), "koji-relay: and %s\n", inspect.Count(len(gaps)-shown, "more gap"))
			break
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: gap:", gapText(g))
	}
	return nil
}

func gapText(g inspect.Gap) string {
	messages := "messages"
	if g.Messages > 0 {
		messages = inspect.Count(g.Messages, "message")
	}
	return inspect.Line(fmt.Sprintf("from %s to %s %s may be missing: %s", inspect.Time(g.Began),
		inspect.Time(g.Ended),
		messages, g.Reason), 0)
}

// follower prints what is recorded, each fate of a message once.
type follower struct {
	cmd   *cobra.Command
	query inspect.HistoryQuery // from the time on that is looked at again
	start time.Time
	json  bool
	told  map[toldFate]time.Time
}

type toldFate struct{ id, fate string }

// followHistory prints what is recorded, until it is interrupted. What happens to a message later is a line
// of its own, as long as that was handed over in the last minute. It asks anew each time: the relay may be
// restarted meanwhile, and find its files free.
func followHistory(cmd *cobra.Command, path string, q inspect.HistoryQuery, asJSON bool) error {
	ctx := cmd.Context()
	f := &follower{cmd: cmd, query: q, start: time.Now(), json: asJSON, told: map[toldFate]time.Time{}}
	if !q.Since.IsZero() {
		f.start = q.Since
	}
	f.query.Since, f.query.OldestFirst, f.query.Limit = f.start, true, 0
	for failed, first := false, true; ; first = false {
		var printed error
		err := onHistory(ctx, path, func(h admin.HistoryControl) error { return f.look(h, &printed) })
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (first || printed != nil):
			return err
		case err != nil && !failed:
			fmt.Fprintln(cmd.ErrOrStderr(), "koji-relay: it goes on when this has ended:",
				inspect.Line(err.Error(), 0))
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// look prints what is new. What it could not read it reads the next time.
func (f *follower) look(h admin.HistoryControl, printed *error) error {
	const back = time.Minute
	next := time.Now().Add(-back)
	err := h.History(f.cmd.Context(), f.query, func(m *inspect.HistoryMessage) error {
		key := toldFate{m.MessageID, string(m.Fate)}
		if _, known := f.told[key]; known {
			return nil
		}
		f.told[key] = m.Time
		if f.json {
			*printed = newJSON(f.cmd.OutOrStdout()).Encode(m)
		} else {
			_, *printed = fmt.Fprintln(f.cmd.OutOrStdout(), inspect.Line(strings.Join(historyCells(m), "  "), 0))
		}
		return *printed
	})
	if err == nil && next.After(f.start) {
		f.query.Since = next
	}
	for key, at := range f.told {
		if at.Before(f.query.Since) {
			delete(f.told, key)
		}
	}
	return err
}

func historyShowCommand() *cobra.Command {
	var body bool
	cmd := &cobra.Command{
		Use:     "show ID",
		Short:   "Show all that happened to one message",
		Example: "  koji-relay history show 2b53e448-91ec-5132-8b6f-8078aa6cb1a3 --body",
		Args:    oneArgument("ID"),
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.Flags().BoolVar(&body, "body", false, "print the body as well, indented")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			m, err := h.HistoryMessage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if *asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			return printHistory(cmd, m, body)
		})
	}
	return cmd
}

func printHistory(cmd *cobra.Command, m *inspect.HistoryMessage, body bool) error {
	t := newTable(cmd.OutOrStdout())
	t.fact("message-id", m.MessageID)
	t.fact("fate", fmt.Sprintf("%s since %s", m.Fate, inspect.Time(m.Since)))
	t.fact("address", m.Address)
	t.fact("callback", m.Callback)
	t.fact("commit", m.Commit)
	t.fact("event", fmt.Sprint(m.Event))
	t.fact("build", m.Build)
	t.fact("tag", m.Tag)
	if m.Task != 0 {
		t.fact("task", fmt.Sprint(m.Task))
	}
	t.fact("user", m.User)
	t.fact("size", inspect.Size(int64(m.Size)))
	t.fact("props", string(m.Props))
	t.fact("unreadable", inspect.Line(m.Unreadable, 0))
	t.line("")
	for _, s := range m.Steps {
		t.row(s.Time.UTC().Format("2006-01-02 15:04:05.000Z"), string(s.Kind),
			strings.TrimSpace(s.Broker+" "+s.Reason))
	}
	if err := t.flush(); err != nil || !body {
		return err
	}
	var indented bytes.Buffer
	if json.Indent(&indented, []byte(m.Body), "", "  ") != nil {
		indented.Reset()
		indented.WriteString(inspect.Line(m.Body, 0))
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n", indented.Bytes())
	return err
}
