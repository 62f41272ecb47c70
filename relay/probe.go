package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/Azure/go-amqp"
)

// Report is what Probe found out about one broker. It holds no secret. Fields that were not reached are zero.
type Report struct {
	Broker string // host:port as configured
	Remote string // IP address and port that answered
	Stage  string // where Err happened; empty without one
	Err    error  // nil = usable for everything tried

	TLS       *TLSReport // nil without TLS, or if it was not set up
	Client    *CertReport
	Offered   []string // SASL mechanisms of the broker
	Login     string   // the one used
	Product   string
	Version   string
	Dialect   string
	Target    string // an example: where build.tag goes
	MaxSize   uint64 // of a message, in bytes; 0 = no limit
	Credit    bool   // the broker lets us send
	RoundTrip time.Duration
	Warnings  []string // works now, but look at it
}

// TLSReport describes the connection's TLS layer.
type TLSReport struct {
	Version string
	Cipher  string
	Server  CertReport
}

// CertReport describes a certificate.
type CertReport struct {
	Subject string
	Names   []string // what it is for: DNS names and IP addresses
	Issuer  string
	Expires time.Time
}

const (
	// creditTime is how long Probe waits for the broker to allow a message.
	creditTime = 2 * time.Second
	// expirySoon is when a certificate's end becomes a warning.
	expirySoon = 21 * 24 * time.Hour
)

// Probe connects to one broker of o, the way Run does, and goes as far as a link that may send; it sends no
// message. It blocks for at most ConnectTimeout and a few seconds. Run need not be running.
func Probe(ctx context.Context, o Options, broker int) Report {
	r := Report{Stage: "read options"}
	if err := o.complete(); err != nil {
		r.Err = err
		return r
	}
	if broker < 0 || broker >= len(o.Brokers) {
		r.Err = fmt.Errorf("there is no broker number %d", broker)
		return r
	}
	e, err := parseEndpoint(o.Brokers[broker].URL)
	if err != nil {
		r.Err = err
		return r
	}
	r.Broker = e.name
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := newConn(&o, e, slog.New(slog.DiscardHandler), connHooks{})
	err = c.probe(ctx, e, &r)
	r.Stage = ""
	if err != nil {
		r.Stage, r.Err = c.stage, c.inTime(ctx, err)
	}
	c.report(&r)
	return r
}

// probe goes through the stages and closes the connection.
func (c *conn) probe(ctx context.Context, e endpoint, r *Report) error {
	if err := c.open(ctx, e); err != nil {
		return err
	}
	defer c.hangUp()
	if err := c.greet(ctx); err != nil {
		return err
	}
	began := time.Now()
	s, err := c.main.NewSender(ctx, c.target, c.senderOptions())
	if err != nil {
		return fmt.Errorf("attach to %s: %w", c.target, err)
	}
	r.RoundTrip = time.Since(began)

	// The driver does not tell a link's credit. But it takes a message only when there is credit, and looks at
	// the context once more before it writes: so this sends nothing, and returns if the broker would take it.
	granted := make(chan struct{})
	c.wg.Go(func() {
		if _, err := s.SendWithReceipt(overAlready{}, &amqp.Message{Value: ""}, nil); errors.Is(err, context.Canceled) {
			close(granted)
		}
	})
	timer := time.NewTimer(creditTime)
	defer timer.Stop()
	select {
	case <-granted:
		r.Credit = true
	case <-timer.C:
		r.Warnings = append(r.Warnings, fmt.Sprintf("no credit for %s within %v: the broker lets nobody send there now "+
			"(a memory or disk alarm, or a router without a consumer)", c.target, creditTime))
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// report fills in what the connection came to know, no matter how far it got.
func (c *conn) report(r *Report) {
	r.Remote, r.Offered, r.Login = c.remote, c.offered, c.mechanism
	r.Product, r.Version = c.peer.product, c.peer.version
	r.Target, r.MaxSize = c.target, c.maxSize
	if c.dialect != nil {
		r.Dialect = c.dialect.name
	}
	warn := func(what string, expires time.Time) {
		if left := time.Until(expires); left < expirySoon {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s ends on %s", what, expires.Format(time.DateOnly)))
		}
	}
	if c.tls != nil && len(c.tls.PeerCertificates) > 0 {
		leaf := c.tls.PeerCertificates[0]
		names := append([]string(nil), leaf.DNSNames...)
		for _, ip := range leaf.IPAddresses {
			names = append(names, ip.String())
		}
		r.TLS = &TLSReport{
			Version: tls.VersionName(c.tls.Version), Cipher: tls.CipherSuiteName(c.tls.CipherSuite),
			Server: CertReport{leaf.Subject.String(), names, leaf.Issuer.String(), leaf.NotAfter},
		}
		warn("the broker's certificate", leaf.NotAfter)
	}
	if c.client != nil && c.client.Leaf != nil {
		leaf := c.client.Leaf
		r.Client = &CertReport{Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Expires: leaf.NotAfter}
		warn("the client certificate", r.Client.Expires)
	}
	if c.dialect != nil && c.dialect.name == DialectLiteral && c.peer.rabbitmq() {
		r.Warnings = append(r.Warnings, "dialect = literal on RabbitMQ: leave it at auto")
	}
	remote, _ := netip.ParseAddrPort(c.remote)
	if c.tls == nil && c.mechanism == "PLAIN" && !remote.Addr().IsLoopback() {
		r.Warnings = append(r.Warnings, "the password crosses the network unencrypted: use an amqps:// URL")
	}
}

// overAlready is a context that ended without telling: Done never fires, and Err is not nil.
type overAlready struct{}

func (overAlready) Deadline() (time.Time, bool) { return time.Time{}, false }
func (overAlready) Done() <-chan struct{}       { return nil }
func (overAlready) Err() error                  { return context.Canceled }
func (overAlready) Value(any) any               { return nil }
