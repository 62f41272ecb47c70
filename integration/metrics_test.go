package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// TestMetricsTellWhatHappened: a relay has a day with a bit of everything. Its counters agree with what the
// hub was told and a subscriber got, and no documented metric stays at zero.
func TestMetricsTellWhatHappened(t *testing.T) {
	t.Parallel()
	broker, postgres := startBroker(t, rabbitmq40), startPostgres(t)
	g, part := loadGolden(t, "extra500"), newPart()
	const nobody = "repo.done" // no queue is bound to it
	topics := slices.DeleteFunc(g.topics(), func(topic string) bool { return topic == nobody })
	open := durable(t, rabbitmq40, broker, part, topics...)
	port := freePorts(t)
	set := tlsSettings(t, rabbitmq40, part, broker, "localhost").with(newDatabase(t, postgres, part), settings{
		"message.durable": "on", "message.extra_limit": "500", "queue.interval": "1",
		"queue.expired": "dead_letter", "relay.admin": fmt.Sprintf("127.0.0.1:%d", port),
	})
	day := &relayDay{T: t, url: fmt.Sprintf("http://127.0.0.1:%d/metrics", port), highest: map[string]float64{}}

	// In the morning a message of the day before yesterday is in the queue, and another relay reads the outbox.
	r := newRelay(t, set)
	since := time.Now().Add(-30 * time.Hour).Format(time.RFC3339)
	r.command(t, fmt.Sprintf(
		`{"kind": "message", "message_id": %q, "address": "build.tag", "props": "{}", "body": "{}", `+
			`"created": %q, "queued": %q}`,
		uuid.NewString(), since, since)+"\n", "queue", "import")
	other, err := pgx.Connect(t.Context(), postgres.connString(part))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	if _, err := other.Exec(t.Context(),
		"SELECT pg_advisory_lock(hashtext('koji_relay'), hashtext('outbox'))"); err != nil {
		t.Fatal(err)
	}
	const outbox = 8 // events
	if _, err := other.Exec(t.Context(),
		`INSERT INTO koji_relay.outbox (commit, event, callback, fallback, kwargs)
		SELECT $1, n, 'postTag', 'PermissionError',
			'{"tag": {"name": "f39"}, "build": {"name": "pkg"}, "user": {"name": "kojiadmin"}, "force": false}'
		FROM generate_series(1, $2) n`, uuid.NewString(), outbox); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	r.await(t, "broker connected", nil)
	day.until("events in the outbox", func(m metrics) bool {
		return m.total("koji_relay_outbox_depth") == outbox
	})
	day.until("an expired message", func(m metrics) bool {
		return m.total("koji_relay_queue_expired_total") == 1
	})
	other.Close(t.Context())
	day.until("an empty outbox", func(m metrics) bool { return m.total("koji_relay_outbox_depth") == 0 })

	// By day the hub works; one event is beyond translation.
	told := r.postGolden(t, g)
	bad := r.mustPost(t, []byte(`{"commit": "`+uuid.NewString()+
		`", "events": [{"callback": "postPackageListChange", "kwargs": {}}]}`))
	if bad.Dead != 1 {
		t.Errorf("an event without arguments is answered %+v", bad)
	}
	unbound := 0
	for _, m := range g.messages {
		if m.Address == nobody {
			unbound++
		}
	}
	day.until("what nobody subscribed to, set aside", func(m metrics) bool {
		return m.total("koji_relay_queue_set_aside") == float64(unbound) &&
			m.total("koji_relay_queue_depth") == float64(unbound)
	})

	// In the evening the broker is away, and an administrator at work.
	broker.kill(t)
	body, evening := tagCommit(5)
	late := r.mustPost(t, body)
	if late.Queued != len(evening) {
		t.Errorf("with the broker away a commit is answered %+v", late)
	}
	day.until("a queue", func(m metrics) bool {
		return m.total("koji_relay_queue_depth") == float64(unbound+len(evening))
	})
	r.command(t, "", "pause")
	r.configure(t, set.with(settings{"queue.batch_size": "many"}))
	r.signal(t, syscall.SIGHUP)
	day.until("a pause, and a refused file", func(m metrics) bool {
		return m.total("koji_relay_paused") == 1 && m.total("koji_relay_config_last_reload_successful") == 0
	})
	r.configure(t, set)
	r.signal(t, syscall.SIGHUP)
	r.command(t, "", "resume")
	broker.start(t)
	broker.awaitBroker(t)
	m := day.until("an empty queue", func(m metrics) bool {
		return m.total("koji_relay_queue_depth") == float64(unbound) &&
			m.total("koji_relay_config_last_reload_successful") == 1
	})

	box := open()
	box.waitFor(t, 20*time.Second, evening...) // the queue is in order
	arrived, err := box.all()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(box.byID()), len(g.messages)-unbound+len(evening)+outbox; got != want {
		t.Errorf("the subscriber got %d messages, want %d", got, want)
	}
	events, trimmed := g.countEvents(t)
	queued := told.Queued + late.Queued
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   int
	}{
		{"koji_relay_commits_received_total", nil, len(g.commits) + 3},
		{"koji_relay_commits_received_total", map[string]string{"via": "outbox"}, 1},
		{"koji_relay_fallback_commits_total", nil, 1},
		{"koji_relay_events_received_total", nil, events + 1 + len(evening) + outbox},
		{"koji_relay_events_received_total", map[string]string{"callback": "postRepoDone"}, unbound},
		{"koji_relay_events_handled_total", map[string]string{"result": "sent"}, told.Sent + outbox},
		{"koji_relay_events_handled_total", map[string]string{"result": "queued"}, queued},
		{"koji_relay_events_handled_total", map[string]string{"result": "dead"}, 1},
		{"koji_relay_events_handled_total", map[string]string{"result": "skipped"}, told.Skipped},
		{"koji_relay_messages_sent_total", nil, len(arrived)},
		{"koji_relay_messages_sent_total", map[string]string{"address": nobody}, 0},
		{"koji_relay_queue_put_total", nil, queued},
		{"koji_relay_queue_drained_total", nil, queued - unbound},
		{"koji_relay_queue_dead_letters", nil, 2},
		{"koji_relay_dead_letter_total", map[string]string{"reason": "unencodable"}, 1},
		{"koji_relay_dead_letter_total", map[string]string{"reason": "expired"}, 1},
		{"koji_relay_extra_trimmed_total", nil, trimmed},
		{"koji_relay_reconnects_total", nil, 1},
		{"koji_relay_tls_cert_expiry_timestamp_seconds", map[string]string{"certificate": "cert"}, -1},
		{"koji_relay_broker_certificate_expiry_timestamp_seconds", map[string]string{"certificate": "server"}, -1},
		{"koji_relay_broker_certificate_expiry_timestamp_seconds", map[string]string{"certificate": "client"}, -1},
	} {
		got := m.sum(c.name, c.labels)
		if c.want < 0 && got <= float64(time.Now().Unix()) || c.want >= 0 && got != float64(c.want) {
			t.Errorf("%s %v is %v, want %d", c.name, c.labels, got, c.want)
		}
	}
	if n := m.sum("koji_relay_send_failures_total",
		map[string]string{"reason": "released"}); n < float64(unbound) {
		t.Errorf("%v messages were released, want at least %d", n, unbound)
	}
	day.missesNothing()
}

// metrics are one scrape.
type metrics map[string]*dto.MetricFamily

// value of one series. A histogram's is its count.
func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	case m.Histogram != nil:
		return float64(m.GetHistogram().GetSampleCount())
	}
	return m.GetGauge().GetValue()
}

// sum adds up the series that have the labels.
func (m metrics) sum(name string, labels map[string]string) (sum float64) {
	for _, series := range m[name].GetMetric() {
		has := 0
		for _, l := range series.GetLabel() {
			if want, asked := labels[l.GetName()]; asked && l.GetValue() == want {
				has++
			}
		}
		if has == len(labels) {
			sum += value(series)
		}
	}
	return sum
}

func (m metrics) total(name string) float64 { return m.sum(name, nil) }

// relayDay watches the metrics of one relay.
type relayDay struct {
	*testing.T
	url     string
	highest map[string]float64 // of each metric's total
}

func (d *relayDay) scrape() (metrics, error) {
	response, err := http.Get(d.url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(response.Body)
	for name := range families {
		d.highest[name] = max(d.highest[name], metrics(families).total(name))
	}
	return families, err
}

// until scrapes until the metrics are as they must become.
func (d *relayDay) until(what string, reached func(metrics) bool) (m metrics) {
	d.Helper()
	eventually(d.T, 40*time.Second, what, func() (err error) {
		if m, err = d.scrape(); err == nil && !reached(m) {
			err = fmt.Errorf("depth %v, set aside %v, outbox %v, expired %v", m.total("koji_relay_queue_depth"),
				m.total("koji_relay_queue_set_aside"), m.total("koji_relay_outbox_depth"),
				m.total("koji_relay_queue_expired_total"))
		}
		return err
	})
	return m
}

// noOrdinaryDay has the metrics of what no day like this one brings: a log that nobody reads, a history that
// cannot be written, a hub that cannot open the socket, a second bus.
var noOrdinaryDay = []string{
	"koji_relay_log_lines_lost_total", "koji_relay_history_gap_messages_total", "koji_relay_outbox_only_seconds",
	"koji_relay_outbox_reader_events", "koji_relay_outbox_reader_away", "koji_relay_outbox_missed_total",
}

// missesNothing fails unless each metric of docs/metrics.md was above zero at some time.
func (d *relayDay) missesNothing() {
	d.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		d.Fatal(err)
	}
	documented := regexp.MustCompile("(?m)^\\| `(koji_relay_[a-z_]+)`").FindAllSubmatch(text, -1)
	if len(documented) < 30 {
		d.Errorf("docs/metrics.md documents %d metrics", len(documented))
	}
	for _, match := range documented {
		if name := string(match[1]); d.highest[name] == 0 && !slices.Contains(noOrdinaryDay, name) {
			d.Errorf("%s was never above zero", name)
		}
	}
}

// countEvents counts the events of all commits, and the messages whose extra protonmsg cut.
func (g golden) countEvents(t testing.TB) (events, trimmed int) {
	t.Helper()
	type build struct{ Extra json.RawMessage }
	type about struct{ Build, Info *build }
	kwargs := map[string]about{}
	for _, c := range g.commits {
		var body struct{ Events []struct{ Kwargs about } }
		if err := json.Unmarshal(c.Line, &body); err != nil {
			t.Fatal(err)
		}
		events += len(body.Events)
		for i, e := range body.Events {
			kwargs[messageID(c.ID, i)] = e.Kwargs
		}
	}
	for _, m := range g.messages {
		var body about
		if err := json.Unmarshal([]byte(m.Body), &body); err != nil {
			t.Fatal(err)
		}
		had := kwargs[m.id()]
		if had.Build != nil && had.Build.Extra != nil && body.Build.Extra == nil || had.Info != nil &&
			had.Info.Extra != nil && body.Info.Extra == nil {
			trimmed++
		}
	}
	return events, trimmed
}
