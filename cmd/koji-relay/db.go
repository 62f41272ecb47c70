package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"koji-relay/history/audit"
	"koji-relay/internal/inspect"
	"koji-relay/queue/postgres"
	"koji-relay/queue/schema"
)

func dbCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "db",
		Short: "Manage the relay's schema in the queue's database",
		Long: `Manage schema koji_relay in the queue's database: what the relay knows of each
queued message, the dead letters and the outbox. Koji's own table proton_queue
holds the messages; it is created where it is absent and never changed.

The database is the one that [queue] database names, or --database. Creating
the schema needs the right to do so; the relay itself works with the grants
that 'koji-relay db init --print' shows.`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(dbInitCommand(), dbUpgradeCommand(), dbStatusCommand(), dbRemoveCommand())
	return cmd
}

// dbTarget says which database a command works on.
type dbTarget struct{ config, database *string }

func addDatabaseFlags(cmd *cobra.Command) dbTarget {
	return dbTarget{
		config: addConfigFlag(cmd),
		database: cmd.Flags().String("database", "",
			"connection `string` to use instead of [queue] database, such as that of the owner"),
	}
}

// open connects. An unusable configuration is a usageError.
func (t dbTarget) open(ctx context.Context) (*postgres.Schema, error) {
	conn := *t.database
	if conn == "" {
		cfg, err := loadConfig(*t.config)
		if err != nil {
			return nil, err
		}
		found, err := cfg.DatabaseConn()
		if err != nil {
			return nil, usageError{fmt.Errorf("find the queue's database: %w", err)}
		}
		conn = found.Reveal()
	}
	return postgres.OpenSchema(ctx, conn)
}

// with opens the database for f.
func (t dbTarget) with(ctx context.Context, f func(*postgres.Schema) error) error {
	schema, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer schema.Close() // nothing is pending; what f did is committed
	return f(schema)
}

func dbInitCommand() *cobra.Command {
	var print, forAudit bool
	var relay, hub string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create schema koji_relay, and proton_queue where it is absent",
		Long: `Create what is absent: schema koji_relay in its newest version, and Koji's
table proton_queue. What exists stays as it is, so that init may be run again.

With --print nothing is connected to or changed: the SQL is printed, and after
it the grants that the relay's and the hub's roles need where they are not the
owner.`,
		Example: `  koji-relay db init
  koji-relay db init --print --relay-role koji-relay --hub-role koji | psql koji`,
		Args: cobra.NoArgs,
	}
	target := addDatabaseFlags(cmd)
	cmd.Flags().BoolVar(&forAudit, "audit", false, "print the grant that koji-relay audit needs as well")
	cmd.Flags().BoolVar(&print, "print", false, "print the SQL and the grants instead of running it")
	cmd.Flags().StringVar(&relay, "relay-role", "koji-relay", "`role` of the relay, for the printed grants")
	cmd.Flags().StringVar(&hub, "hub-role", "koji", "`role` of the hub, for the printed grants")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if print {
			grants, err := postgres.GrantsSQL(relay, hub)
			if err != nil {
				return usageError{err}
			}
			if forAudit {
				grants += audit.Grants(relay)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s", postgres.SchemaSQL(), grants)
			return err
		}
		return target.with(cmd.Context(), func(s *postgres.Schema) error {
			made, err := s.Init(cmd.Context())
			if err != nil {
				return err
			}
			if len(made) == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Nothing to do: schema koji_relay has version %d.\n",
					schema.Version())
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Created %s.\nA relay or hub whose role is not the owner "+
				"needs the grants that 'koji-relay db init --print' shows.\n",
				strings.Join(made, " and "))
			return err
		})
	}
	return cmd
}

func dbUpgradeCommand() *cobra.Command {
	var print bool
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring schema koji_relay to the version of this program",
		Long: `Apply the numbered steps that schema koji_relay lacks, each in a transaction of
its own. A relay of the old version works on until it is restarted, unless
CHANGELOG says otherwise. With --print the steps are printed and nothing is
changed.`,
		Example: `  koji-relay db upgrade
  koji-relay db upgrade --print`,
		Args: cobra.NoArgs,
	}
	target := addDatabaseFlags(cmd)
	cmd.Flags().BoolVar(&print, "print", false, "print the SQL instead of running it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return target.with(cmd.Context(), func(s *postgres.Schema) error {
			out := cmd.OutOrStdout()
			if print {
				st, err := s.Status(cmd.Context())
				if err != nil {
					return err
				}
				_, err = io.WriteString(out, postgres.UpgradeSQL(st.Version))
				return err
			}
			from, to, err := s.Upgrade(cmd.Context())
			if err != nil {
				return err
			}
			if from == to {
				_, err = fmt.Fprintf(out, "Nothing to do: schema koji_relay has version %d.\n", to)
			} else {
				_, err = fmt.Fprintf(out, "Upgraded schema koji_relay from version %d to %d.\n", from, to)
			}
			return err
		})
	}
	return cmd
}

func dbStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the queue's database holds",
		Long: `Show the version of schema koji_relay, whether Koji's table and lock are
there, and how much is queued.

Exit codes: 0 the relay can work with it; 1 it cannot; 2 no usable
configuration.`,
		Example: `  koji-relay db status
  koji-relay db status --json`,
		Args: cobra.NoArgs,
	}
	target := addDatabaseFlags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return target.with(cmd.Context(), func(s *postgres.Schema) error {
			st, err := s.Status(cmd.Context())
			if err != nil {
				return err
			}
			report := newDBReport(st)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.print(cmd.OutOrStdout())
			}
			if err == nil && !report.Ready {
				err = errReported
			}
			return err
		})
	}
	return cmd
}

// dbReport is what status says.
type dbReport struct {
	Database    string `json:"database"`
	Ready       bool   `json:"ready"`
	Version     int    `json:"version"`        // of schema koji_relay; 0 = absent
	Wanted      int    `json:"wanted_version"` // by this program
	QueueTable  bool   `json:"proton_queue"`
	LockRow     bool   `json:"koji_lock"`
	Queued      int64  `json:"queued"`
	DeadLetters int64  `json:"dead_letters"`
	Outbox      int64  `json:"outbox"`
	Remedy      string `json:"remedy,omitempty"`
}

func newDBReport(st postgres.SchemaStatus) dbReport {
	r := dbReport{Database: st.Database, Version: st.Version, Wanted: schema.Version(),
		QueueTable: st.QueueTable, LockRow: st.LockRow, Queued: st.Queued, DeadLetters: st.DeadLetters,
		Outbox: st.Outbox}
	switch {
	case r.Version == 0 || !r.QueueTable:
		r.Remedy = "run 'koji-relay db init'"
	case r.Version < r.Wanted:
		r.Remedy = "run 'koji-relay db upgrade'"
	case r.Version > r.Wanted:
		r.Remedy = "install the newer koji-relay that made it"
	default:
		r.Ready = true
	}
	return r
}

func (r dbReport) print(out io.Writer) error {
	there := func(yes bool) string {
		if yes {
			return "present"
		}
		return "absent"
	}
	lock := "Koji's row in table locks, shared with protonmsg"
	if !r.LockRow {
		lock = "an advisory lock; Koji's row in table locks is absent"
	}
	version := fmt.Sprintf("version %d", r.Version)
	if r.Version == 0 {
		version = "absent"
	}
	t := newTable(out)
	t.row("database", r.Database)
	t.row("schema koji_relay", fmt.Sprintf("%s (this program works with version %d)", version, r.Wanted))
	t.row("proton_queue", there(r.QueueTable)+", "+inspect.Count(r.Queued, "message"))
	t.row("dead letters", fmt.Sprint(r.DeadLetters))
	t.row("outbox", inspect.Count(r.Outbox, "event"))
	t.row("drain lock", lock)
	if r.Remedy != "" {
		t.line("")
		t.line("The relay cannot work with it: " + r.Remedy + ".")
	}
	return t.flush()
}

func dbRemoveCommand() *cobra.Command {
	var yes, print bool
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Drop schema koji_relay with its dead letters and outbox",
		Long: `Drop schema koji_relay: the dead letters, the outbox, and what is known of
queued messages beyond Koji's table. proton_queue and the messages in it stay;
protonmsg can drain them. Stop the relay, and switch the hub back, first.`,
		Example: `  koji-relay db remove
  koji-relay db remove --yes`,
		Args: cobra.NoArgs,
	}
	target := addDatabaseFlags(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&print, "print", false, "print the SQL instead of running it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if print {
			_, err := io.WriteString(cmd.OutOrStdout(), postgres.RemoveSQL)
			return err
		}
		return target.with(cmd.Context(), func(s *postgres.Schema) error {
			st, err := s.Status(cmd.Context())
			if err != nil {
				return err
			}
			if st.Version == 0 {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Nothing to do: schema koji_relay is absent in %s.\n",
					st.Database)
				return err
			}
			if !yes {
				question := fmt.Sprintf("Drop schema koji_relay in %s, with %s and %s in the outbox?", st.Database,
					inspect.Count(st.DeadLetters, "dead letter"), inspect.Count(st.Outbox, "event"))
				if err := askToGoOn(cmd, question); err != nil {
					return err
				}
			}
			if err := s.Remove(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Removed schema koji_relay; proton_queue holds %s.\n",
				inspect.Count(st.Queued, "message"))
			return err
		})
	}
	return cmd
}

// askToGoOn asks a question on standard error and reads the answer. Anything but yes is a usageError: nothing
// was done.
func askToGoOn(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return usageError{fmt.Errorf("not confirmed; nothing was done (--yes answers for you)")}
}
