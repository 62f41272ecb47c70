package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"koji-relay/config"
	"koji-relay/internal/admin"
	"koji-relay/internal/amqpconn"
	"koji-relay/internal/amqpconn/failure"
	"koji-relay/internal/inspect"
	"koji-relay/queue/postgres"
)

// CheckReport is what can be said about a configuration. Settings are empty when the file itself has
// problems: there is no effective configuration then.
type CheckReport struct {
	File     string            `json:"file"`
	Settings []inspect.Setting `json:"settings"`
	Warnings []config.Problem  `json:"warnings"`
	Problems []config.Problem  `json:"problems"`

	// Running is what a running relay has in force, where it differs from the file; nil without such a relay.
	Running *RunningReport `json:"running,omitempty"`

	Connections *Connections `json:"connections,omitempty"` // if asked for, of a configuration without problems
}

// Check loads the configuration at path by the way that serve takes, and with connecting tries what it names.
// Its error says that there is no configuration.
func Check(ctx context.Context, path string, load func() (*config.Config, error),
	connecting bool) (*CheckReport, error) {
	// Empty lists, not null, for whoever reads the JSON.
	report := &CheckReport{
		File: path, Settings: []inspect.Setting{}, Warnings: []config.Problem{}, Problems: []config.Problem{},
	}
	cfg, err := load()
	var found *config.Error
	if err != nil && !errors.As(err, &found) {
		return nil, err
	}
	if cfg != nil {
		report.Settings = cfg.Settings()
		report.Warnings = append(append(report.Warnings, cfg.Warnings...), cfg.ClosedSocket()...)
		report.Problems = append(report.Problems, cfg.Expired(time.Now())...)
	}
	if found != nil {
		report.Problems = append(found.Problems, report.Problems...)
		report.Warnings = append([]config.Problem{}, found.Warnings...)
	}
	if connecting && err == nil {
		report.Connections = connect(ctx, cfg)
	}
	return report, nil
}

// Clean reports whether there is nothing to complain about.
func (r *CheckReport) Clean() bool {
	return len(r.Warnings) == 0 && len(r.Problems) == 0 && (r.Connections == nil || r.Connections.clean())
}

// RunningReport is what a relay that runs with the file has in force.
type RunningReport struct {
	Loaded  time.Time `json:"loaded"` // when it read the file
	Differs []InForce `json:"differs"`
}

// InForce is a key whose value in force is another one than that of the file.
type InForce struct {
	Section string `json:"section"`
	Key     string `json:"key"`
	Value   string `json:"value"`     // masked
	Takes   string `json:"waits_for"` // restart or reload
}

// Compare adds to the report what c, the configuration in force, has otherwise.
func (r *CheckReport) Compare(c *admin.Config) {
	r.Running = &RunningReport{Loaded: c.Loaded, Differs: []InForce{}}
	for _, file := range r.Settings {
		i := slices.IndexFunc(c.Settings,
			func(s inspect.Setting) bool { return s.Section == file.Section && s.Key == file.Key })
		if i < 0 || c.Settings[i].Value == file.Value {
			continue
		}
		takes := "reload"
		if config.NeedsRestart(file.Section, file.Key) {
			takes = "restart"
		}
		r.Running.Differs = append(r.Running.Differs,
			InForce{file.Section, file.Key, c.Settings[i].Value, takes})
	}
}

// Connections is what was found behind a configuration.
type Connections struct {
	Brokers  []BrokerReport  `json:"brokers"`
	Database *DatabaseReport `json:"database,omitempty"` // absent without one
}

// BrokerReport is what one broker said.
type BrokerReport struct {
	URL    string `json:"url"` // masked
	Usable bool   `json:"usable"`
	Error  string `json:"error,omitempty"`
	amqpconn.Report
}

// DatabaseReport is what the queue's database said.
type DatabaseReport struct {
	Database string   `json:"database"`
	Usable   bool     `json:"usable"`
	Error    string   `json:"error,omitempty"`
	Server   string   `json:"server_version,omitempty"`
	Role     string   `json:"role,omitempty"`
	Missing  []string `json:"missing_grants,omitempty"`
	Pooler   string   `json:"pooler,omitempty"`
	Schema   int      `json:"schema_version"`
	Remedy   string   `json:"remedy,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Reader is the name as which this relay reads the outbox, and Readers are all that are registered there.
	Reader  string           `json:"reader"`
	Readers []inspect.Reader `json:"readers,omitempty"`
}

// connect looks at everything that cfg names, at once: a silent broker costs its connect_timeout, not their
// sum.
func connect(ctx context.Context, cfg *config.Config) *Connections {
	found := &Connections{Brokers: make([]BrokerReport, len(cfg.Broker.URLs))}
	opts := RelayOptions(cfg, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for i, u := range cfg.Broker.URLs {
		wg.Go(func() {
			found.Brokers[i] = newBrokerReport(u.String(),
				amqpconn.Probe(ctx, opts.Options, u.Reveal()))
		})
	}
	if cfg.ReadsOutbox() {
		wg.Go(func() { found.Database = probeDatabase(ctx, cfg) })
	}
	wg.Wait()
	return found
}

func newBrokerReport(url string, r amqpconn.Report) BrokerReport {
	b := BrokerReport{URL: url, Usable: r.Err == nil && r.Credit, Report: r}
	if r.Err != nil {
		b.Error = failure.Cause(r.Err)
	}
	return b
}

func probeDatabase(ctx context.Context, cfg *config.Config) *DatabaseReport {
	conn, err := cfg.DatabaseConn()
	if err != nil {
		return &DatabaseReport{Error: err.Error()}
	}
	r, err := postgres.Probe(ctx, conn.Reveal())
	d := &DatabaseReport{
		Database: r.Database, Server: r.Server, Role: r.Role, Missing: r.Missing, Pooler: r.Pooler,
		Schema: r.Version, Reader: cfg.Relay.Name, Readers: r.Readers,
	}
	if err != nil {
		d.Error = err.Error()
		return d
	}
	d.Remedy = r.Remedy()
	d.Usable = d.Remedy == ""
	// Another reader began with its first start.
	if cfg.Relay.Name == "" && outboxIsOld(r.Outbox, r.OutboxOldest) {
		d.Warnings = append(d.Warnings, fmt.Sprintf("the outbox holds %s, the oldest of %s UTC; "+
			"a relay publishes them; to drop the old ones: %s", inspect.Count(r.Outbox, "event"),
			r.OutboxOldest.UTC().Format(time.DateTime), dropOldEvents))
	}
	for _, reader := range r.Readers {
		// That this relay does not run is no complaint: a check comes before a start.
		if reader.Away && reader.Name != cfg.Relay.Name {
			d.Warnings = append(d.Warnings, fmt.Sprintf("nobody reads the outbox for %s, since %s; %s held for it; "+
				"start its relay, or: koji-relay outbox forget %s", reader.Shown(), inspect.Time(reader.Seen),
				inspect.Count(reader.Depth, "event"), reader.Argument()))
		}
	}
	return d
}

// usable reports whether serve could do all of its work.
func (c *Connections) usable() bool {
	for _, b := range c.Brokers {
		if !b.Usable {
			return false
		}
	}
	return c.Database == nil || c.Database.Usable
}

// clean reports whether there is nothing to complain about either.
func (c *Connections) clean() bool {
	warned := func(b BrokerReport) bool { return len(b.Warnings) > 0 }
	return c.usable() && !slices.ContainsFunc(c.Brokers, warned) &&
		(c.Database == nil || len(c.Database.Warnings) == 0)
}
