package admin

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// maxLabelValues bounds the distinct addresses, callbacks and brokers that get a series of their own: a hub
// with its own callbacks, or a hostile event, must not fill the memory of whoever scrapes.
const maxLabelValues = 200

// otherLabel stands for all values above maxLabelValues.
const otherLabel = "other"

// labels bounds the values of one label. It is safe for concurrent use and does not allocate for a known
// value.
type labels struct {
	mu    sync.RWMutex
	known map[string]struct{} // guarded by mu
}

func newLabels() *labels { return &labels{known: make(map[string]struct{})} }

func (l *labels) value(v string) string {
	const maxBytes = 200
	if len(v) > maxBytes || !utf8.ValidString(v) { // the metrics library panics at invalid UTF-8
		v = strings.ToValidUTF8(v[:min(len(v), maxBytes)], "\uFFFD")
	}
	l.mu.RLock()
	_, ok := l.known[v]
	l.mu.RUnlock()
	if ok {
		return v
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.known[v]; !ok && len(l.known) >= maxLabelValues {
		return otherLabel
	}
	l.known[v] = struct{}{}
	return v
}

// Metrics counts what the stages report through the daemon's hooks. Its methods are safe for concurrent use,
// do not block, and allocate only for label values not seen before. docs/metrics.md describes every metric.
type Metrics struct {
	registry *prometheus.Registry
	register prometheus.Registerer // into registry, with the label relay where the relay has a name

	addresses, callbacks, brokers *labels

	commits      *prometheus.CounterVec
	fallback     prometheus.Counter
	events       *prometheus.CounterVec
	handled      *prometheus.CounterVec
	handoff      prometheus.Histogram
	sent         *prometheus.CounterVec
	lastSuccess  *prometheus.GaugeVec
	failed       *prometheus.CounterVec
	roundTrip    *prometheus.HistogramVec
	put          prometheus.Counter
	drained      prometheus.Counter
	expired      *prometheus.CounterVec
	missed       *prometheus.CounterVec // by other readers of the outbox
	expiredAll   prometheus.Counter     // a series for alerts, which is there before anything expires
	dead         *prometheus.CounterVec
	extraTrimmed prometheus.Counter
	reconnects   *prometheus.CounterVec
	historyGap   prometheus.Counter
	lostLog      atomic.Pointer[func() int64]

	handOver handOver

	mu   sync.RWMutex
	ways map[way]*series // guarded by mu

	// The totals behind the status page's rates.
	nEvents, nSent, nQueued, nDrained, nFailed, nNotTaken atomic.Int64
}

const namespace = "koji_relay"

// NewMetrics makes the metrics on a registry of their own. version becomes a label of koji_relay_build_info,
// and a relay's name, where it has one, the label relay of all series: several are scraped as one job.
func NewMetrics(version, relay string) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help},
			labels)
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	// From a socket round trip to the hub plugin's timeout.
	handoffBuckets := []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}
	// From a broker on the same host to send_timeout.
	sendBuckets := []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60}

	m := &Metrics{
		registry: prometheus.NewRegistry(), ways: map[way]*series{},
		addresses: newLabels(), callbacks: newLabels(), brokers: newLabels(),

		commits: counters("commits_received_total", "Commits that the hub handed over.", "via"),
		fallback: counter("fallback_commits_total",
			"Commits of the outbox that the hub could not hand over by the socket."),
		events:  counters("events_received_total", "Events that the hub handed over, by callback.", "callback"),
		handled: counters("events_handled_total", "Events by what the hub was told about them.", "result"),
		handoff: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace,
			Name: "handoff_duration_seconds", Help: "Time from a commit's last byte to its answer.",
			Buckets: handoffBuckets}),
		sent: counters("messages_sent_total", "Messages that a broker accepted.", "address", "broker"),
		lastSuccess: gauges("last_success_timestamp_seconds", "When a broker last accepted a message, by address.",
			"address"),
		failed: counters("send_failures_total", "Attempts to send that failed, by broker and reason.", "broker",
			"reason"),
		roundTrip: prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Namespace: namespace, Name: "send_duration_seconds",
				Help: "Time from sending a message to the broker's answer.", Buckets: sendBuckets}, []string{"broker"}),
		put:     counter("queue_put_total", "Messages put into the queue."),
		drained: counter("queue_drained_total", "Messages from the queue that a broker accepted."),
		expired: counters("queue_expired_total", "Messages given up after max_age.", "address"),
		missed: counters("outbox_missed_total",
			"Events of the outbox given up because another reader did not take them within max_age.", "reader"),
		expiredAll:   counter("expired_total", "Messages given up after max_age, whatever their address."),
		dead:         counters("dead_letter_total", "Messages and events set aside as dead letters.", "reason"),
		extraTrimmed: counter("extra_trimmed_total", "Messages whose extra was cut because of extra_limit."),
		historyGap:   counter("history_gap_messages_total", "Messages that could not be recorded in the history."),
		reconnects:   counters("reconnects_total", "Connections to a broker that were opened again.", "broker"),
	}
	m.register = m.registry
	if relay != "" {
		m.register = prometheus.WrapRegistererWith(prometheus.Labels{"relay": relay}, m.registry)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info",
		Help:        "Always 1; its labels tell the version of koji-relay and of Go.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}})
	build.Set(1)
	m.register.MustRegister(m.commits, m.fallback, m.events, m.handled, m.handoff, m.sent, m.lastSuccess,
		m.failed,
		m.roundTrip, m.put, m.drained, m.expired, m.expiredAll, m.missed, m.dead, m.extraTrimmed, m.reconnects,
		m.historyGap,
		build, prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: "log_lines_lost_total",
			Help: "Lines of the log that nobody took."}, m.countLostLog),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// A series that appears with its first event cannot be alerted on with rate().
	for _, result := range []FateKind{Sent, Queued, Dead, NotTaken, skipped} {
		m.handled.WithLabelValues(string(result))
	}
	for _, via := range []string{inspect.ViaSocket, inspect.ViaOutbox} {
		m.commits.WithLabelValues(via)
	}
	for _, reason := range message.Failures() {
		m.dead.WithLabelValues(string(reason))
	}
	return m
}

// skipped is a result of events only: they make no message, and so have no fate.
const skipped FateKind = "skipped"

// CommitTaken counts a commit that came by the socket or the outbox, and what the hub was told. Events of the
// outbox that were not taken stay there, and are counted when they are.
func (m *Metrics) CommitTaken(via string, c message.Commit, r message.Receipt, took time.Duration) {
	if via == inspect.ViaOutbox && len(r.NotTaken) > 0 {
		c.Events = slices.DeleteFunc(slices.Clone(c.Events),
			func(e message.Event) bool { return slices.Contains(r.NotTaken, e.Number) })
		r.NotTaken = nil
		if len(c.Events) == 0 {
			return
		}
	}
	m.handOver.taken(via, &c, len(r.NotTaken), time.Now())
	m.commits.WithLabelValues(via).Inc()
	if via == inspect.ViaOutbox && c.Fallback != "" {
		m.fallback.Inc()
	}
	m.nEvents.Add(int64(len(c.Events)))
	m.nNotTaken.Add(int64(len(r.NotTaken)))
	for events := c.Events; len(events) > 0; { // those in a row are mostly of one kind
		n := 1
		for n < len(events) && events[n].Callback == events[0].Callback {
			n++
		}
		m.events.WithLabelValues(m.callbacks.value(events[0].Callback)).Add(float64(n))
		events = events[n:]
	}
	m.handled.WithLabelValues(string(Sent)).Add(float64(r.Sent))
	m.handled.WithLabelValues(string(Queued)).Add(float64(r.Queued))
	m.handled.WithLabelValues(string(Dead)).Add(float64(r.Dead))
	m.handled.WithLabelValues(string(NotTaken)).Add(float64(len(r.NotTaken)))
	m.handled.WithLabelValues(string(skipped)).Add(float64(r.Skipped))
	m.handoff.Observe(took.Seconds())
}

// MessageSent counts a message that a broker accepted, from the hub or from the queue, and the time between
// its sending and the broker's answer.
func (m *Metrics) MessageSent(address, broker string, took time.Duration) {
	m.nSent.Add(1)
	w := way{address, broker}
	m.mu.RLock()
	to, known := m.ways[w]
	m.mu.RUnlock()
	if !known {
		to = m.newSeries(w)
	}
	to.sent.Inc()
	to.lastSuccess.SetToCurrentTime()
	to.roundTrip.Observe(took.Seconds())
}

// way is what a message went by.
type way struct{ address, broker string }

// series are those of a way. Looking up each costs more than counting.
type series struct {
	sent        prometheus.Counter
	lastSuccess prometheus.Gauge
	roundTrip   prometheus.Observer
}

// newSeries gives the series of a way that is new, or not kept.
func (m *Metrics) newSeries(w way) *series {
	label := way{m.addresses.value(w.address), m.brokers.value(w.broker)}
	s := &series{m.sent.WithLabelValues(label.address, label.broker),
		m.lastSuccess.WithLabelValues(label.address), m.roundTrip.WithLabelValues(label.broker)}
	if label == w { // labels bounds how many those are
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ways[w] = s
	}
	return s
}

// SendFailed counts an attempt that failed: of a message, or of reaching the broker at all.
func (m *Metrics) SendFailed(broker string, reason message.Failure) {
	m.nFailed.Add(1)
	m.failed.WithLabelValues(m.brokers.value(broker), string(reason.Bounded())).Inc()
}

// QueuePut counts messages put into the queue.
func (m *Metrics) QueuePut(n int) {
	m.nQueued.Add(int64(n))
	m.put.Add(float64(n))
}

// QueueDrained counts messages of the queue that a broker accepted. MessageSent counts them too.
func (m *Metrics) QueueDrained(n int) {
	m.nDrained.Add(int64(n))
	m.drained.Add(float64(n))
}

// QueueExpired counts messages that grew older than max_age.
func (m *Metrics) QueueExpired(address string, n int) {
	m.expired.WithLabelValues(m.addresses.value(address)).Add(float64(n))
	m.expiredAll.Add(float64(n))
}

// OutboxMissed counts events that the reader called name did not take within max_age.
func (m *Metrics) OutboxMissed(name string, n int) { m.missed.WithLabelValues(name).Add(float64(n)) }

// DeadLetters counts messages and events that were set aside.
func (m *Metrics) DeadLetters(reason message.Failure, n int) {
	m.dead.WithLabelValues(string(reason.Bounded())).Add(float64(n))
}

// ExtraTrimmed counts messages whose extra was cut.
func (m *Metrics) ExtraTrimmed(n int) { m.extraTrimmed.Add(float64(n)) }

// HistoryMissed counts messages that could not be recorded in the history.
func (m *Metrics) HistoryMissed(n int) { m.historyGap.Add(float64(n)) }

// Reconnected counts a connection that was opened again after it had been lost.
func (m *Metrics) Reconnected(broker string) {
	m.reconnects.WithLabelValues(m.brokers.value(broker)).Inc()
}

// CountLostLog takes the number of lost lines of the log from lost.
func (m *Metrics) CountLostLog(lost func() int64) { m.lostLog.Store(&lost) }

func (m *Metrics) countLostLog() float64 {
	if lost := m.lostLog.Load(); lost != nil && *lost != nil {
		return float64((*lost)())
	}
	return 0
}

func (m *Metrics) totals() totals {
	return totals{m.nEvents.Load(), m.nSent.Load(), m.nQueued.Load(), m.nDrained.Load(), m.nFailed.Load(),
		m.nNotTaken.Load()}
}
