package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"koji-relay/config"
	"koji-relay/internal/amqpconn"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
	"koji-relay/queue/postgres"
)

// connections is what check --connect found behind the configuration.
type connections struct {
	Brokers  []brokerReport  `json:"brokers"`
	Database *databaseReport `json:"database,omitempty"` // absent without one
}

type brokerReport struct {
	URL       string               `json:"url"` // masked
	Usable    bool                 `json:"usable"`
	Error     string               `json:"error,omitempty"`
	Stage     string               `json:"stage,omitempty"` // of Error
	Remote    string               `json:"remote,omitempty"`
	TLS       *amqpconn.TLSReport  `json:"tls,omitempty"`
	Client    *amqpconn.CertReport `json:"client_certificate,omitempty"`
	Offered   []string             `json:"sasl_offered,omitempty"`
	Login     string               `json:"sasl,omitempty"`
	Product   string               `json:"product,omitempty"`
	Version   string               `json:"version,omitempty"`
	Dialect   string               `json:"dialect,omitempty"`
	Target    string               `json:"target,omitempty"`
	MaxSize   uint64               `json:"max_message_size,omitempty"`
	Credit    bool                 `json:"credit"`
	RoundTrip string               `json:"round_trip,omitempty"`
	Warnings  []string             `json:"warnings,omitempty"`
}

type databaseReport struct {
	Database string   `json:"database"`
	Usable   bool     `json:"usable"`
	Error    string   `json:"error,omitempty"`
	Server   string   `json:"server_version,omitempty"`
	Role     string   `json:"role,omitempty"`
	Missing  []string `json:"missing_grants,omitempty"`
	Pooler   string   `json:"pooler,omitempty"`
	Schema   int      `json:"schema_version"`
	Remedy   string   `json:"remedy,omitempty"`
}

// connect looks at everything that cfg names, at once: a silent broker costs its connect_timeout, not their sum.
func connect(ctx context.Context, cfg *config.Config) *connections {
	found := &connections{Brokers: make([]brokerReport, len(cfg.Broker.URLs))}
	opts := daemon.RelayOptions(cfg, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for i, u := range cfg.Broker.URLs {
		wg.Go(func() { found.Brokers[i] = newBrokerReport(u.String(), amqpconn.Probe(ctx, opts.Options, u.Reveal())) })
	}
	if cfg.Queue.Enabled && cfg.Queue.Store == config.StorePostgres {
		wg.Go(func() { found.Database = probeDatabase(ctx, cfg) })
	}
	wg.Wait()
	return found
}

func newBrokerReport(url string, r amqpconn.Report) brokerReport {
	b := brokerReport{
		URL: url, Usable: r.Err == nil && r.Credit, Stage: r.Stage, Remote: r.Remote, TLS: r.TLS, Client: r.Client,
		Offered: r.Offered, Login: r.Login, Product: r.Product, Version: r.Version, Dialect: r.Dialect, Target: r.Target,
		MaxSize: r.MaxSize, Credit: r.Credit, Warnings: r.Warnings,
	}
	if r.Err != nil {
		b.Error = r.Err.Error()
	}
	if r.RoundTrip > 0 {
		b.RoundTrip = r.RoundTrip.Round(10 * time.Microsecond).String()
	}
	return b
}

func probeDatabase(ctx context.Context, cfg *config.Config) *databaseReport {
	conn, err := cfg.DatabaseConn()
	if err != nil {
		return &databaseReport{Error: err.Error()}
	}
	r, err := postgres.Probe(ctx, conn.Reveal())
	d := &databaseReport{
		Database: r.Database, Server: r.Server, Role: r.Role, Missing: r.Missing, Pooler: r.Pooler, Schema: r.Version,
	}
	if err != nil {
		d.Error = err.Error()
		return d
	}
	d.Remedy = r.Remedy()
	d.Usable = d.Remedy == ""
	return d
}

// usable reports whether serve could do all of its work.
func (c *connections) usable() bool {
	for _, b := range c.Brokers {
		if !b.Usable {
			return false
		}
	}
	return c.Database == nil || c.Database.Usable
}

// clean reports whether there is nothing to complain about either.
func (c *connections) clean() bool {
	warned := func(b brokerReport) bool { return len(b.Warnings) > 0 }
	return c.usable() && !slices.ContainsFunc(c.Brokers, warned)
}

func (c *connections) print(out *table) {
	for i := range c.Brokers {
		c.Brokers[i].print(out)
	}
	if c.Database != nil {
		c.Database.print(out)
	}
}

func (b *brokerReport) print(out *table) {
	verdict := "usable"
	if !b.Usable {
		verdict = "NOT USABLE"
	}
	out.line("")
	out.line("broker " + b.URL + ": " + verdict)
	out.fact("  TCP", b.Remote)
	if b.TLS != nil {
		out.fact("  TLS", b.TLS.Version+", "+b.TLS.Cipher)
		out.fact("  certificate", certificateText(b.TLS.Server))
	}
	if b.Client != nil {
		out.fact("  client certificate", certificateText(*b.Client))
	}
	if b.Login != "" {
		out.fact("  SASL", fmt.Sprintf("%s (offered: %s)", b.Login, strings.Join(b.Offered, " ")))
	}
	out.fact("  product", strings.TrimSpace(b.Product+" "+b.Version))
	if b.Dialect != "" {
		out.fact("  dialect", b.Dialect+", for example "+b.Target)
	}
	if b.RoundTrip != "" {
		credit := "with credit"
		if !b.Credit {
			credit = "WITHOUT credit"
		}
		size := "no limit"
		if b.MaxSize > 0 {
			size = inspect.Size(int64(min(b.MaxSize, 1<<62)))
		}
		out.fact("  link", credit)
		out.fact("  largest message", size)
		out.fact("  round trip", b.RoundTrip)
	}
	for _, w := range b.Warnings {
		out.fact("  warning", w)
	}
	if b.Error != "" {
		out.fact("  problem", b.Error)
	}
}

func certificateText(c amqpconn.CertReport) string {
	text := c.Subject
	if len(c.Names) > 0 {
		text += " for " + strings.Join(c.Names, " ")
	}
	return fmt.Sprintf("%s, issued by %s, until %s", text, c.Issuer, c.Expires.Format(time.DateOnly))
}

func (d *databaseReport) print(out *table) {
	verdict := "usable"
	if !d.Usable {
		verdict = "NOT USABLE"
	}
	out.line("")
	out.line("database " + d.Database + ": " + verdict)
	if d.Server != "" {
		out.fact("  PostgreSQL", d.Server)
	}
	out.fact("  role", d.Role)
	out.fact("  missing grants", strings.Join(d.Missing, ", "))
	if d.Pooler != "" {
		out.fact("  pooler", "in "+d.Pooler+" mode")
	}
	if d.Schema > 0 {
		out.fact("  schema koji_relay", fmt.Sprintf("version %d", d.Schema))
	}
	out.fact("  remedy", d.Remedy)
	out.fact("  problem", d.Error)
}
