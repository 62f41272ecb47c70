package amqpconn

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"koji-relay/internal/amqpconn/dialect"
	"koji-relay/internal/amqpconn/endpoint"
	"koji-relay/internal/amqpconn/tlsclient"
	"koji-relay/internal/inspect"
)

// Report is what Probe found out about one broker. It holds no secret. Fields that were not reached are zero.
type Report struct {
	Broker string `json:"-"`                // host:port as configured
	Stage  string `json:"stage,omitempty"`  // where Err happened; empty without one
	Err    error  `json:"-"`                // nil = usable for everything tried
	Remote string `json:"remote,omitempty"` // IP address and port that answered

	TLS     *tlsclient.Report      `json:"tls,omitempty"` // nil without TLS, or if it was not set up
	Client  *tlsclient.Certificate `json:"client_certificate,omitempty"`
	Offered []string               `json:"sasl_offered,omitempty"` // mechanisms of the broker
	Login   string                 `json:"sasl,omitempty"`         // the one used
	Host    string                 `json:"virtual_host,omitempty"` // asked for; empty = the broker's default

	Product   string   `json:"product,omitempty"`
	Version   string   `json:"version,omitempty"`
	Dialect   string   `json:"dialect,omitempty"`
	Target    string   `json:"target,omitempty"`           // an example: where build.tag goes
	MaxSize   uint64   `json:"max_message_size,omitempty"` // bytes; 0 = no limit
	Credit    bool     `json:"credit"`                     // the broker lets us send
	RoundTrip string   `json:"round_trip,omitempty"`       // for a person; empty = no link
	Warnings  []string `json:"warnings,omitempty"`         // works now, but look at it
}

const (
	// creditTime is how long Probe waits for the broker to allow a message.
	creditTime = 2 * time.Second
	// expirySoon is when a certificate's end becomes a warning.
	expirySoon = 21 * 24 * time.Hour
)

// Probe connects to one broker, the way Dial does, and goes as far as a link that may send; it sends no
// message. It blocks for at most ConnectTimeout and a few seconds.
func Probe(ctx context.Context, o Options, url string) Report {
	r := Report{Stage: "read options"}
	if err := o.Check(); err != nil {
		r.Err = err
		return r
	}
	e, err := endpoint.Parse(url)
	if err != nil {
		r.Err = err
		return r
	}
	r.Broker = e.Name
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := newConn(&o, e, slog.New(slog.DiscardHandler))
	err = c.probe(ctx, &r)
	r.Stage = ""
	if err != nil {
		r.Stage, r.Err = c.stage, c.inTime(ctx, err)
	}
	c.report(&r)
	return r
}

// probe goes through the stages and closes the connection.
func (c *Conn) probe(ctx context.Context, r *Report) error {
	if err := c.open(ctx); err != nil {
		return err
	}
	defer c.Close()
	if err := c.greet(ctx); err != nil {
		return err
	}
	began := time.Now()
	s, err := c.attach(ctx, c.Target)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c.Target, err)
	}
	r.RoundTrip = inspect.Duration(time.Since(began))
	r.Credit, err = s.creditWithin(ctx, creditTime)
	if r.Credit = r.Credit && !c.Shut(); err == nil && !r.Credit {
		r.Warnings = append(r.Warnings, fmt.Sprintf("no credit for %s within %v: the broker lets nobody send "+
			"there now (a memory or disk alarm, a full address, or a router without a consumer)", c.Target,
			creditTime))
	}
	return err
}

// report fills in what the connection came to know, no matter how far it got.
func (c *Conn) report(r *Report) {
	r.Remote, r.Offered, r.Login = c.Remote, c.Offered, c.Mechanism
	r.Product, r.Version = c.Peer.Product, c.Peer.Version
	r.Target, r.MaxSize, r.Host = c.Target, c.MaxSize, c.VirtualHost()
	if c.Dialect != nil {
		r.Dialect = c.Dialect.Name
	}
	warn := func(what string, expires time.Time) {
		if left := time.Until(expires); left < expirySoon {
			verb := "expires"
			if left <= 0 {
				verb = "expired"
			}
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s %s on %s", what, verb, expires.Format(time.DateOnly)))
		}
	}
	if r.TLS = c.tls.Report(); r.TLS != nil {
		warn("the broker's certificate", r.TLS.Server.Expires)
	}
	if r.Client = c.tls.Client(); r.Client != nil {
		warn("the client certificate", r.Client.Expires)
	}
	if c.Dialect != nil && c.Dialect.Name == dialect.Literal && c.Peer.IsRabbitMQ() {
		r.Warnings = append(r.Warnings, "dialect = literal on RabbitMQ: leave it at auto")
	}
	if r.Host != "" && r.Product != "" && !c.Peer.IsRabbitMQ() {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the virtual host %q means nothing to %s; only RabbitMQ has "+
			"them", r.Host, r.Product))
	}
}
