package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"koji-relay/callbacks"
	"koji-relay/config"
	"koji-relay/history/audit"
	"koji-relay/internal/admin"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

// auditGrace is left out at the end: what happened a moment ago may be on its way.
const auditGrace = time.Minute

// auditReport is what the command found.
type auditReport struct {
	Since    time.Time       `json:"since"`
	Until    time.Time       `json:"until"`
	Accounts []audit.Account `json:"accounts"`
	Gaps     []inspect.Gap   `json:"gaps"`
	Holes    int             `json:"holes"`
}

func auditCommand() *cobra.Command {
	var since, until string
	var limit int
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare the hub's own tables with the history",
		Long: `Compare what happened on the hub, by its own tables, with what was announced,
by the history: taggings, untaggings, finished builds and tasks, repos. What was
not announced is told apart by its reason: not asked for, excluded, not
announced by Koji itself, in a gap of the history. What is left is a hole, and
is named.

It only reads, and needs SELECT on tables of the hub's database:
'koji-relay db init --print --audit' prints the grant.

Exit codes: 0 no hole; 1 a hole, or it could not be found out; 2 unusable
arguments or configuration.`,
		Example: "  koji-relay audit\n  koji-relay audit --since 7d --json",
		Args:    cobra.NoArgs,
	}
	path, asJSON := addConfigFlag(cmd), addJSONFlag(cmd)
	cmd.Flags().StringVar(&since, "since", "24h",
		"from this `time` on: 24h, 7d, 2026-11-26, '2026-11-26 14:00'")
	cmd.Flags().StringVar(&until, "until", "", "before this `time`; none = a minute ago")
	cmd.Flags().IntVar(&limit, "limit", 20, "list at most this many holes of each kind; 0 = all, as with --json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if limit < 0 {
			return usageError{fmt.Errorf("--limit %d: give a number of holes, or 0 for all", limit)}
		}
		from, err := parseTime(since)
		if err != nil {
			return usageError{fmt.Errorf("--since %s: %w", since, err)}
		}
		to, err := parseTime(until)
		if err != nil {
			return usageError{fmt.Errorf("--until %s: %w", until, err)}
		}
		if to.IsZero() {
			to = time.Now().Add(-auditGrace)
		}
		if !from.Before(to) { // "no holes" would be no answer
			return usageError{fmt.Errorf("--since %s: that is %s, and what is looked at ends at %s", since,
				inspect.Time(from), inspect.Time(to))}
		}
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		return onHistory(cmd.Context(), *path, func(h admin.HistoryControl) error {
			report, err := runAudit(cmd.Context(), cfg, h, from, to)
			if err != nil {
				return err
			}
			if *asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printAudit(cmd.OutOrStdout(), report, limit)
			}
			if err == nil && report.Holes > 0 {
				err = errReported
			}
			return err
		})
	}
	return cmd
}

func runAudit(ctx context.Context, cfg *config.Config, h admin.HistoryControl, since,
	until time.Time) (*auditReport, error) {
	conn, err := cfg.DatabaseConn()
	if err != nil {
		return nil, usageError{fmt.Errorf("find the hub's database: %w", err)}
	}
	hub, err := audit.Open(ctx, conn.Reveal())
	if err != nil {
		return nil, err
	}
	defer hub.Close()
	begins, err := historyBegins(ctx, hub, h)
	if err != nil {
		return nil, err
	}
	if since.Before(begins) {
		since = begins
	}
	report := &auditReport{Since: since, Until: until}
	facts, err := hub.Facts(ctx, since, until)
	if err != nil {
		return nil, err
	}
	// The outbox is read before the history: what leaves the one in between is in the other.
	outbox, err := hub.Outbox(ctx, cfg.Relay.Name)
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	if report.Gaps, err = h.HistoryGaps(ctx, since, time.Time{}); err != nil {
		return nil, err
	}
	rules, err := auditRules(cfg)
	if err != nil {
		return nil, err
	}
	comparison := audit.NewComparison(rules, report.Gaps, outbox)
	q := inspect.HistoryQuery{Since: since.Add(-time.Minute), OldestFirst: true, Content: true}
	err = h.History(ctx, q, func(m *inspect.HistoryMessage) error {
		comparison.Add(m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	report.Accounts = comparison.Judge(facts)
	for _, a := range report.Accounts {
		report.Holes += len(a.Holes)
	}
	return report, nil
}

// historyBegins is the beginning of the oldest day that the history has, or its schema's, whichever is later.
func historyBegins(ctx context.Context, hub *audit.Hub, h admin.HistoryControl) (time.Time, error) {
	begins, err := hub.Begins(ctx)
	if err != nil {
		return begins, fmt.Errorf("find out when the history begins: %w", err)
	}
	found := false
	err = h.History(ctx, inspect.HistoryQuery{OldestFirst: true, Limit: 1},
		func(m *inspect.HistoryMessage) error {
			found = true
			if day := m.Time.UTC().Truncate(24 * time.Hour); day.After(begins) {
				begins = day
			}
			return nil
		})
	if err == nil && !found {
		err = errors.New("the history is empty; there is nothing to compare with")
	}
	return begins, err
}

// auditRules asks the translation itself what the configuration leaves out.
func auditRules(cfg *config.Config) (audit.Rules, error) {
	rules, err := callbacks.New(daemon.RulesOptions(cfg))
	if err != nil {
		return audit.Rules{}, err
	}
	return audit.Rules{Wanted: rules.Wants, Excluded: rules.Excludes}, nil
}

// printAudit lists up to limit holes of each kind, the oldest, and says how many more there are.
func printAudit(out io.Writer, r *auditReport, limit int) error {
	fmt.Fprintf(out, "from %s to %s\n\n", inspect.Time(r.Since), inspect.Time(r.Until))
	t := newTable(out)
	t.row("", "HAPPENED", "ANNOUNCED", "WAITING", "EXPLAINED", "HOLES")
	for _, a := range r.Accounts {
		explained := 0
		for _, n := range a.Explained {
			explained += n
		}
		t.row(a.Kind, fmt.Sprint(a.Happened), fmt.Sprint(a.Announced), fmt.Sprint(a.Waiting),
			fmt.Sprint(explained),
			fmt.Sprint(len(a.Holes)))
	}
	for _, a := range r.Accounts {
		for _, reason := range slices.Sorted(maps.Keys(a.Explained)) {
			t.line("")
			t.line(fmt.Sprintf("%d of the %s: %s", a.Explained[reason], a.Kind, reason))
		}
	}
	for _, a := range r.Accounts {
		n := listedOf(len(a.Holes), limit)
		for _, hole := range a.Holes[:n] {
			t.line("hole: " + strings.TrimSpace(inspect.Time(hole.Time)+"  "+hole.What))
		}
		if rest := a.Holes[n:]; len(rest) > 0 {
			t.line(fmt.Sprintf("holes: %d more of the %s, from %s to %s; --limit 0 lists all", len(rest), a.Kind,
				inspect.Time(rest[0].Time), inspect.Time(rest[len(rest)-1].Time)))
		}
	}
	n := listedOf(len(r.Gaps), limit)
	for _, g := range r.Gaps[:n] {
		t.line("gap: " + gapText(g))
	}
	if rest := len(r.Gaps) - n; rest > 0 {
		t.line(fmt.Sprintf("gaps: %d more; --limit 0 lists all", rest))
	}
	if r.Holes == 0 {
		t.line("")
		t.line("no hole")
	}
	return t.flush()
}

// listedOf is how many of n are listed; a limit of 0 is none.
func listedOf(n, limit int) int {
	if limit == 0 {
		return n
	}
	return min(n, limit)
}
