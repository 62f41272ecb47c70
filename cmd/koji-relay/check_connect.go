package main

import (
	"fmt"
	"strings"
	"time"

	"koji-relay/internal/amqpconn/tlsclient"
	"koji-relay/internal/daemon"
	"koji-relay/internal/inspect"
)

func printConnections(out *table, c *daemon.Connections) {
	for i := range c.Brokers {
		printBroker(out, &c.Brokers[i])
	}
	if c.Database != nil {
		printDatabase(out, c.Database)
	}
}

func printBroker(out *table, b *daemon.BrokerReport) {
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
	out.fact("  virtual host", b.Host)
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

func certificateText(c tlsclient.Certificate) string {
	text := c.Subject
	if len(c.Names) > 0 {
		text += " for " + strings.Join(c.Names, " ")
	}
	return fmt.Sprintf("%s, issued by %s, until %s", text, c.Issuer, c.Expires.Format(time.DateOnly))
}

func printDatabase(out *table, d *daemon.DatabaseReport) {
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
	printReadersOf(out, d)
	out.fact("  remedy", d.Remedy)
	for _, w := range d.Warnings {
		out.fact("  warning", w)
	}
	out.fact("  problem", d.Error)
}

// printReadersOf says who reads the outbox of the database.
func printReadersOf(out *table, d *daemon.DatabaseReport) {
	known := false
	for _, r := range d.Readers {
		text := inspect.Count(r.Depth, "event") + " to take"
		switch {
		case r.Away:
			text += ", away since " + inspect.Time(r.Seen)
		case r.Holder.PID != 0:
			text += ", read by " + r.Holder.String()
		}
		out.fact("  reader "+r.Shown(), text)
		known = known || r.Name == d.Reader
	}
	if d.Usable && !known {
		out.fact("  reader "+inspect.Reader{Name: d.Reader}.Shown(),
			"not registered: it gets what the hub does from its first start on")
	}
}
