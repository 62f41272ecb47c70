package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// alertCase leads one relay into the situation of an alert and out again.
type alertCase struct {
	settings settings
	trouble  func(s *alertSite) // returns when the metrics show it; nil: time alone does it
	end      func(s *alertSite) // returns when the metrics show that it is over
	// hours is what an hour of a duration that the relay measured took in the test; 0 is as long.
	hours float64
}

// alertCases are all alerts of the rules. Ages come from rows that are made old; how long a state lasts is
// up to the rules, to which Prometheus' own evaluation gives hours in no time.
var alertCases = map[string]alertCase{
	"KojiRelayAbsent": {
		trouble: func(s *alertSite) { s.relay.kill(s) },
		end:     func(s *alertSite) { s.relay.start(s); s.until("it answers", up) },
	},
	"KojiRelayNotReady": {
		settings: settings{"queue.enabled": "off"},
		trouble:  func(s *alertSite) { s.ways[0].cut(); s.until("not ready", is("koji_relay_ready", 0)) },
		end:      func(s *alertSite) { s.ways[0].mend(); s.until("ready", is("koji_relay_ready", 1)) },
	},
	"KojiRelayNoBroker": {
		trouble: func(s *alertSite) {
			s.ways[0].cut()
			s.ways[1].cut()
			s.until("no broker", is("koji_relay_broker_up", 0))
		},
		end: func(s *alertSite) { s.ways[0].mend(); s.until("one broker", is("koji_relay_broker_up", 1)) },
	},
	"KojiRelayBrokerDown": {
		trouble: func(s *alertSite) { s.ways[1].cut(); s.until("one broker", is("koji_relay_broker_up", 1)) },
		end:     func(s *alertSite) { s.ways[1].mend(); s.until("both brokers", is("koji_relay_broker_up", 2)) },
	},
	"KojiRelaySilence": {
		end: func(s *alertSite) { s.post(tag()); s.until("a message", is("koji_relay_messages_sent_total", 1)) },
	},
	"KojiRelayBacklog":        {trouble: oldMessage(20 * time.Minute), end: emptyQueue},
	"KojiRelayBacklogExpires": {trouble: oldMessage(19 * time.Hour), end: emptyQueue},
	"KojiRelayOutboxBacklog": {
		settings: settings{"queue.max_bytes": "1"}, // so that events stay in the outbox
		trouble: func(s *alertSite) {
			s.ways[0].cut()
			s.ways[1].cut()
			s.until("no broker", is("koji_relay_broker_up", 0))
			s.outbox("", 20*time.Minute)
			s.until("an old event", func(m metrics) bool {
				return m.total("koji_relay_outbox_oldest_age_seconds") > 1000
			})
		},
		end: func(s *alertSite) { s.ways[0].mend(); s.until("an empty outbox", is("koji_relay_outbox_depth", 0)) },
	},
	"KojiRelayOutboxOnly": {
		hours: 1.0 / 1000,
		trouble: func(s *alertSite) {
			s.outbox("PermissionError", 0)
			s.until("one commit", is("koji_relay_fallback_commits_total", 1))
			s.until("no time yet", is("koji_relay_outbox_only_seconds", 0))
			eventually(s, time.Minute, "a second of them", func() error {
				s.outbox("PermissionError", 0)
				if n := s.scrape().metrics.total("koji_relay_outbox_only_seconds"); n < 1 {
					return fmt.Errorf("%v s", n)
				}
				return nil
			})
		},
		end: func(s *alertSite) {
			s.post(tag())
			s.until("the socket is used", is("koji_relay_outbox_only_seconds", 0))
		},
	},
	"KojiRelayHandedBack": {
		settings: settings{"queue.enabled": "off"},
		trouble: func(s *alertSite) {
			if code := s.post(unboundCommit()); code != http.StatusServiceUnavailable {
				s.Errorf("the hub was answered %d", code)
			}
			s.until("an event that was not taken", func(m metrics) bool {
				return m.sum("koji_relay_events_handled_total", map[string]string{"result": "not_taken"}) == 1
			})
		},
	},
	"KojiRelayTurnedAway": {
		trouble: func(s *alertSite) {
			s.post(unboundCommit())
			s.until("set aside", is("koji_relay_queue_set_aside", 1))
		},
		end: emptyQueue,
	},
	"KojiRelayDeadLetters": {
		trouble: func(s *alertSite) {
			s.post(fmt.Appendf(nil, `{"commit": %q, "events": [{"callback": "postPackageListChange",
				"kwargs": {"action": null}}]}`, uuid.NewString()))
			s.until("a dead letter", is("koji_relay_dead_letter_total", 1))
		},
	},
	"KojiRelayExpired": {
		trouble: func(s *alertSite) {
			s.ways[0].cut()
			s.ways[1].cut()
			s.until("no broker", is("koji_relay_broker_up", 0))
			s.old(30 * time.Hour)
			s.until("it is given up", is("koji_relay_expired_total", 1))
		},
	},
	"KojiRelayCertificateExpires": {
		trouble: func(s *alertSite) { s.certify(s.clientPath, 7); s.until("its end is near", near(fileExpiry)) },
		end:     func(s *alertSite) { s.certify(s.clientPath, 90); s.until("it is far", far(fileExpiry)) },
	},
	"KojiRelayBrokerCertificateExpires": {
		trouble: func(s *alertSite) { s.exchange(7); s.until("its end is near", near(brokerExpiry)) },
		end:     func(s *alertSite) { s.exchange(90); s.until("it is far", far(brokerExpiry)) },
	},
	"KojiRelayReloadFailed": {
		trouble: func(s *alertSite) {
			s.relay.configure(s, s.settings.with(settings{"queue.batch_size": "many"}))
			s.relay.signal(s, syscall.SIGHUP)
			s.until("it is refused", is("koji_relay_config_last_reload_successful", 0))
		},
		end: func(s *alertSite) {
			s.relay.configure(s, s.settings)
			s.relay.signal(s, syscall.SIGHUP)
			s.until("it is taken", is("koji_relay_config_last_reload_successful", 1))
		},
	},
	"KojiRelayPaused": {
		trouble: func(s *alertSite) {
			s.relay.command(s, "", "pause")
			s.until("a pause", is("koji_relay_paused", 1))
		},
		end: func(s *alertSite) {
			s.relay.command(s, "", "resume")
			s.until("none", is("koji_relay_paused", 0))
		},
	},
}

// TestEveryAlertFiresAndResolves: a real relay is started and scraped, led into the situation of an alert
// and scraped, and led out and scraped. promtool, which is Prometheus' own evaluation, holds each scrape
// for as long as such a situation lasts: the alert is quiet, fires, and is quiet again.
func TestEveryAlertFiresAndResolves(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		skipOrFail(t, "no promtool; run .ci/promtool, and put .cache/bin into PATH")
	}
	rules, err := filepath.Abs("../packaging/prometheus/koji-relay.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(text, -1) {
		names = append(names, string(m[1]))
	}
	if cased := slices.Sorted(maps.Keys(alertCases)); !slices.Equal(slices.Sorted(slices.Values(names)), cased) {
		t.Fatalf("the rules have the alerts\n%q\nand there are cases for\n%q", names, cased)
	}
	broker, db := startBroker(t, rabbitmq40), startPostgres(t)
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			c := alertCases[name]
			s := newAlertSite(t, broker, db, fmt.Sprintf("alert%d", i), c.settings)
			seen := []scraped{s.scrape()}
			if c.trouble != nil {
				c.trouble(s)
			}
			seen = append(seen, s.scrape())
			if c.end != nil {
				c.end(s)
			}
			seen = append(seen, s.scrape())
			judge(t, promtool, rules, name, seen, c.hours)
		})
	}
}

// --- the site ---------------------------------------------------------------------------------------------

// alertSite is a relay with two ways to one broker, both over TLS, and a database of its own.
type alertSite struct {
	testing.TB
	relay      *relay
	settings   settings
	ways       [2]*tlsWay
	admin      string
	database   *pgx.Conn
	clientPath string
	ca         *x509.Certificate
	caKey      *ecdsa.PrivateKey
}

func newAlertSite(t *testing.T, broker, db *server, name string, more settings) *alertSite {
	t.Helper()
	s := &alertSite{TB: t, clientPath: filepath.Join(t.TempDir(), "client.pem")}
	var ca []byte
	var err error
	s.ca, s.caKey, ca, _, err = certify(x509.Certificate{Subject: pkix.Name{CommonName: "alert CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: days(90)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	caPath := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caPath, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	s.certify(s.clientPath, 90)
	var urls []string
	for i := range s.ways {
		s.ways[i] = newTLSWay(t, broker.addr())
		urls = append(urls, fmt.Sprintf("amqps://%s:%s@localhost:%d", user, password, s.ways[i].port))
	}
	if more["queue.enabled"] == "off" {
		urls = urls[:1]
	}
	s.exchange(90)
	part := newPart()
	subscribe(t, broker, rabbitmq40, rabbitmq40.sources(part, []string{tagTopic})...)
	port, _ := freePorts(t)
	s.admin = "127.0.0.1:" + strconv.Itoa(port)
	s.settings = forBroker(rabbitmq40, part, broker).with(newDatabase(t, db, name), settings{
		"broker.urls": strings.Join(urls, " "), "broker.cacert": caPath, "broker.cert": s.clientPath,
		"broker.sasl": "PLAIN", "queue.interval": "1", "relay.admin": s.admin,
	}, more)
	if s.database, err = pgx.Connect(t.Context(), db.connString(name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.database.Close(context.Background()) })
	s.relay = newRelay(t, s.settings)
	s.relay.start(t)
	s.until("its brokers are up", is("koji_relay_broker_up", float64(len(urls))))
	return s
}

// post hands over a commit, and gives the status of the answer.
func (s *alertSite) post(body []byte) int {
	s.Helper()
	a, err := s.relay.post(within(s, time.Minute), body)
	if err != nil {
		s.Fatal(err)
	}
	return a.Code
}

func tag() []byte {
	body, _ := tagCommit(1)
	return body
}

// outbox is what the hub's plugin does: with a word on the socket where it tried that first.
func (s *alertSite) outbox(fallback string, age time.Duration) {
	s.Helper()
	if _, err := s.database.Exec(within(s, time.Minute), `INSERT INTO koji_relay.outbox
		(commit, event, created, callback, fallback, kwargs) VALUES (
		$1, 0, now() - make_interval(secs => $2), 'postTag', nullif($3, ''),
		'{"tag": {"name": "f39"}, "build": {"name": "pkg"}, "user": {"name": "kojiadmin"}, "force": false}')`,
		uuid.NewString(), age.Seconds(), fallback); err != nil {
		s.Fatal(err)
	}
}

// old puts a message into the queue that came there some time ago.
func (s *alertSite) old(age time.Duration) {
	s.Helper()
	since := time.Now().Add(-age).Format(time.RFC3339)
	line := fmt.Sprintf(`{"kind": "message", "message_id": %q, "address": "build.tag", "props": "{}",
		"body": "{}",
		"created": %q, "queued": %q}`, uuid.NewString(), since, since)
	s.relay.command(s, strings.Join(strings.Fields(line), " ")+"\n", "queue", "import")
}

func oldMessage(age time.Duration) func(*alertSite) {
	return func(s *alertSite) {
		s.Helper()
		s.relay.command(s, "", "pause")
		s.old(age)
		s.until("an old message", func(m metrics) bool {
			return m.total("koji_relay_queue_oldest_age_seconds") > age.Seconds()-60
		})
	}
}

func emptyQueue(s *alertSite) {
	s.Helper()
	s.relay.command(s, "", "queue", "drop", "--all", "--yes")
	s.until("an empty queue", is("koji_relay_queue_depth", 0))
}

func days(n int) time.Time { return time.Now().Add(time.Duration(n) * 24 * time.Hour) }

// certify writes a client's certificate for so many days.
func (s *alertSite) certify(path string, n int) {
	s.Helper()
	_, _, cert, key, err := certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "koji-hub"}, NotAfter: days(n),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, s.ca, s.caKey)
	if err == nil {
		err = os.WriteFile(path, append(cert, key...), 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// exchange gives the broker a certificate for so many days; its connections are made anew.
func (s *alertSite) exchange(n int) {
	s.Helper()
	_, _, cert, key, err := certify(x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, NotAfter: days(n),
		DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, s.ca, s.caKey)
	if err != nil {
		s.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		s.Fatal(err)
	}
	for _, w := range s.ways {
		w.cut()
		w.present(pair)
		w.mend()
	}
}

// tlsWay leads to a broker, with TLS at this end, and can be cut.
type tlsWay struct {
	testing.TB
	port   int
	target string

	mu       sync.Mutex // guards the fields below
	pair     tls.Certificate
	listener net.Listener
	open     map[net.Conn]bool
}

func newTLSWay(t testing.TB, target string) *tlsWay {
	w := &tlsWay{TB: t, target: target, open: map[net.Conn]bool{}}
	w.port, _ = freePorts(t)
	t.Cleanup(w.cut)
	return w
}

func (w *tlsWay) present(pair tls.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pair = pair
}

func (w *tlsWay) mend() {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	l, err := tls.Listen("tcp", "127.0.0.1:"+strconv.Itoa(w.port), &tls.Config{
		Certificates: []tls.Certificate{w.pair}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		w.Fatal(err)
	}
	w.listener = l
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
}

func (w *tlsWay) carry(c net.Conn) {
	defer c.Close()
	to, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer to.Close()
	w.mu.Lock()
	w.open[c] = true
	w.mu.Unlock()
	go func() {
		_, _ = io.Copy(c, to)
		c.Close()
	}()
	_, _ = io.Copy(to, c)
}

func (w *tlsWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listener != nil {
		w.listener.Close()
	}
	for c := range w.open {
		c.(*tls.Conn).NetConn().Close()
	}
	clear(w.open)
}

// --- scrapes ----------------------------------------------------------------------------------------------

// scraped is what Prometheus gets at one moment; nothing where it gets no answer.
type scraped struct {
	metrics metrics
	at      time.Time
}

func (s *alertSite) scrape() scraped {
	d := relayDay{url: "http://" + s.admin + "/metrics", highest: map[string]float64{}}
	m, err := d.scrape()
	if err != nil {
		m = nil
	}
	return scraped{m, time.Now()}
}

// until scrapes until the metrics are as they must become.
func (s *alertSite) until(what string, reached func(metrics) bool) {
	s.Helper()
	const limit = 100 * time.Second // the drain looks for what is too old once a minute
	eventually(s, limit, what, func() error {
		if m := s.scrape().metrics; m == nil || !reached(m) {
			return fmt.Errorf("the metrics do not show it; the relay logged:\n%s", s.relay.log.tail(5))
		}
		return nil
	})
}

const (
	brokerExpiry = "koji_relay_broker_certificate_expiry_timestamp_seconds"
	fileExpiry   = "koji_relay_tls_cert_expiry_timestamp_seconds"
)

func up(metrics) bool { return true }

func is(name string, want float64) func(metrics) bool {
	return func(m metrics) bool { return m[name] != nil && m.total(name) == want }
}

// near reports whether something expires within ten days.
func near(name string) func(metrics) bool {
	return func(m metrics) bool {
		for _, series := range m[name].GetMetric() {
			if value(series) < float64(days(10).Unix()) {
				return true
			}
		}
		return false
	}
}

func far(name string) func(metrics) bool {
	return func(m metrics) bool { return m[name] != nil && !near(name)(m) }
}

// --- the rules' own evaluation ----------------------------------------------------------------------------

// How long each of the three scrapes is held, in minutes: before, in the situation, and after it.
var held = [3]int{30, 5 * 60, 100}

// judge lets promtool evaluate the rules on three scrapes.
func judge(t *testing.T, promtool, rules, alert string, seen []scraped, hours float64) {
	t.Helper()
	type sample struct {
		Labels string  `json:"labels"`
		Value  float64 `json:"value"`
	}
	type question struct {
		Expr    string   `json:"expr"`
		Time    string   `json:"eval_time"`
		Samples []sample `json:"exp_samples"`
	}
	type series struct {
		Series string `json:"series"`
		Values string `json:"values"`
	}
	ask := func(minute int, over string, fires bool) question {
		firing := fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}`, alert)
		if over != "" {
			firing = "max_over_time(" + firing + "[" + over + "])"
		}
		q := question{Expr: "group(" + firing + ")", Time: fmt.Sprintf("%dm", minute), Samples: []sample{}}
		if fires {
			q.Samples = append(q.Samples, sample{"{}", 1})
		}
		return q
	}
	var input []series
	values := seriesOf(seen, hours)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		input = append(input, series{name, strings.Join(values[name], " ")})
	}
	first, second := held[0], held[0]+held[1]
	test := map[string]any{"interval": "1m", "input_series": input, "promql_expr_test": []question{
		ask(first-1, fmt.Sprintf("%dm", first), false),
		ask(second-1, fmt.Sprintf("%dm", held[1]-1), true),
		ask(second+held[2]-1, "", false),
	}}
	file := map[string]any{"rule_files": []string{rules}, "evaluation_interval": "1m", "tests": []any{test}}
	text, err := json.MarshalIndent(file, "", " ") // which is YAML too
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "alert.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "test", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("%s is not quiet, firing and quiet again (at %d, %d and %d minutes): %v\n%s", alert, first-1,
			second-1, second+held[2]-1, err, out)
	}
}

// seriesOf gives the samples of the scrapes as promtool reads them, by series. Moments are moved from the
// time of the test into that of promtool, which begins at 0.
func seriesOf(seen []scraped, hours float64) map[string][]string {
	all := map[string][]string{}
	minute := 0
	for i, s := range seen {
		now := map[string]float64{}
		now[`up{job="koji-relay", instance="hub:9763"}`] = 0
		if s.metrics != nil {
			now[`up{job="koji-relay", instance="hub:9763"}`] = 1
		}
		for name, family := range s.metrics {
			if !strings.HasPrefix(name, "koji_relay_") && name != "process_start_time_seconds" {
				continue
			}
			for _, m := range family.GetMetric() {
				labels := []string{`job="koji-relay"`, `instance="hub:9763"`}
				for _, l := range m.GetLabel() {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
				v := value(m)
				switch {
				case strings.HasSuffix(name, "_timestamp_seconds"), name == "process_start_time_seconds":
					v += float64(minute*60) - float64(s.at.UnixMilli())/1000
				case hours > 0 && name == "koji_relay_outbox_only_seconds":
					v /= hours
				}
				now[name+"{"+strings.Join(labels, ", ")+"}"] = v
			}
		}
		for name, v := range now {
			for len(all[name]) < i { // it was not there before
				all[name] = append(all[name], fmt.Sprintf("_x%d", held[len(all[name])]))
			}
			all[name] = append(all[name], fmt.Sprintf("%sx%d", strconv.FormatFloat(v, 'f', -1, 64), held[i]-1))
		}
		minute += held[i]
		for name := range all {
			if len(all[name]) == i { // it is gone
				all[name] = append(all[name], fmt.Sprintf("_x%d", held[i]))
			}
		}
	}
	return all
}
