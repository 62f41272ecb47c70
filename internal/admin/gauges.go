package admin

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"koji-relay/internal/inspect"
)

// gauges shows a Status as metrics. It looks at the cached one only, so that a scrape costs the same whatever
// the queue holds; what the Status does not know is absent, not zero.
type gauges struct {
	status func() *Status

	ready, statusAge, paused                    *prometheus.Desc
	brokerUp, brokerActive                      *prometheus.Desc
	queueUsable, depth, bytes, oldest, setAside *prometheus.Desc
	maxAge                                      *prometheus.Desc
	deadLetters                                 *prometheus.Desc
	outboxDepth, outboxOldest, outboxOnly       *prometheus.Desc
	readerEvents, readerAway                    *prometheus.Desc
	reloadOK, reloadTime                        *prometheus.Desc
	certificate, brokerCertificate              *prometheus.Desc
}

func newGauges(status func() *Status) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &gauges{
		status:       status,
		ready:        desc("ready", "Whether a commit handed over now would be taken."),
		statusAge:    desc("status_age_seconds", "Age of what the gauges of brokers, queue and outbox show."),
		paused:       desc("paused", "Whether an administrator has paused the drain, or all sending.", "what"),
		brokerUp:     desc("broker_up", "Whether a broker can be given messages.", "broker"),
		brokerActive: desc("broker_active", "Whether new messages go to this broker.", "broker"),
		queueUsable:  desc("queue_usable", "Whether a message could be put into the queue."),
		depth:        desc("queue_depth", "Messages in the queue."),
		bytes:        desc("queue_bytes", "Bytes of the messages in the queue."),
		oldest: desc("queue_oldest_age_seconds",
			"Age of the oldest message in the queue; 0 when it is empty."),
		maxAge:      desc("queue_max_age_seconds", "Age above which a message in the queue is given up."),
		setAside:    desc("queue_set_aside", "Messages in the queue that wait for their next attempt."),
		deadLetters: desc("queue_dead_letters", "Dead letters kept."),
		outboxDepth: desc("outbox_depth", "Events in the outbox."),
		outboxOldest: desc("outbox_oldest_age_seconds",
			"Age of the oldest event in the outbox; 0 when it is empty."),
		readerEvents: desc("outbox_reader_events", "Events in the outbox that a reader has not taken.", "reader"),
		readerAway:   desc("outbox_reader_away", "Whether nobody reads the outbox for a reader.", "reader"),
		outboxOnly: desc("outbox_only_seconds",
			"Time between the first and the last commit that the hub could not hand over by the socket, in a row."),
		reloadOK: desc("config_last_reload_successful",
			"Whether the configuration file could be used when it was last read."),
		reloadTime: desc("config_last_reload_success_timestamp_seconds",
			"When the configuration in effect was read."),
		brokerCertificate: desc("broker_certificate_expiry_timestamp_seconds",
			"When a certificate of a connection that is up expires.", "broker", "certificate"),
		certificate: desc("tls_cert_expiry_timestamp_seconds", "When a TLS certificate expires.", "certificate"),
	}
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.ready, g.statusAge, g.paused, g.brokerUp, g.brokerActive,
		g.queueUsable, g.depth, g.bytes, g.oldest, g.maxAge, g.setAside, g.deadLetters, g.outboxDepth,
		g.outboxOldest, g.outboxOnly, g.readerEvents, g.readerAway,
		g.reloadOK, g.reloadTime, g.certificate, g.brokerCertificate} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	s, now := g.status(), time.Now()
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	set(g.ready, number(s.Ready))
	if s.Phase == Starting {
		return
	}
	set(g.statusAge, seconds(now, s.Generated))
	set(g.paused, number(s.Paused.Drain), "drain")
	set(g.paused, number(s.Paused.Publish), "publish")
	// Two series with the same labels would fail the whole scrape, and so would a label that is not UTF-8.
	seen := make(map[string]bool)
	for _, b := range s.Brokers {
		name := strings.ToValidUTF8(b.Name, "\uFFFD")
		if seen[name] {
			continue
		}
		seen[name] = true
		set(g.brokerUp, number(b.State == inspect.Up), name)
		set(g.brokerActive, number(b.Active), name)
		for side, expires := range map[string]time.Time{"server": b.CertExpires, "client": b.ClientCertExpires} {
			if !expires.IsZero() {
				set(g.brokerCertificate, float64(expires.Unix()), name, side)
			}
		}
	}
	clear(seen)
	for _, c := range s.Certificates {
		if name := strings.ToValidUTF8(c.Name, "\uFFFD"); !seen[name] {
			seen[name] = true
			set(g.certificate, float64(c.Expires.Unix()), name)
		}
	}
	set(g.outboxOnly, s.HandOver.onlyFor().Seconds())
	set(g.reloadOK, number(s.Config.Reload.Time.IsZero() || s.Config.Reload.OK))
	set(g.reloadTime, float64(s.Config.Loaded.Unix()))
	if s.Queue.Enabled {
		set(g.queueUsable, number(s.stores()))
		set(g.maxAge, s.Queue.MaxAge.Seconds())
	}
	if s.Queue.Known {
		set(g.depth, float64(s.Queue.Depth))
		set(g.bytes, float64(s.Queue.Bytes))
		set(g.oldest, seconds(now, s.Queue.Oldest))
		set(g.setAside, float64(s.Queue.SetAside))
		set(g.deadLetters, float64(s.Queue.DeadLetters))
	}
	if s.Outbox.Known {
		set(g.outboxDepth, float64(s.Outbox.Depth))
		set(g.outboxOldest, seconds(now, s.Outbox.Oldest))
		for _, r := range s.Outbox.Readers {
			set(g.readerEvents, float64(r.Depth), r.Name)
			set(g.readerAway, number(r.Away), r.Name)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds is the age of a time; 0 where there is none.
func seconds(now, t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, now.Sub(t).Seconds())
}
