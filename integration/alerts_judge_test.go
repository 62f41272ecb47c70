package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

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

// judge lets promtool evaluate the rule of one alert on three scrapes. The others are left out, since they
// take most of the time; internal/admin lets it check the whole file.
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
	dir := t.TempDir()
	rule := filepath.Join(dir, "rule.yml")
	file := map[string]any{"rule_files": []string{rule}, "evaluation_interval": "1m", "tests": []any{test}}
	text, err := json.MarshalIndent(file, "", " ") // which is YAML too
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "alert.yml")
	for file, content := range map[string]string{rule: ruleOf(t, rules, alert), path: string(text)} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(promtool, "test", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("%s is not quiet, firing and quiet again (at %d, %d and %d minutes): %v\n%s", alert, first-1,
			second-1, second+held[2]-1, err, out)
	}
}

// ruleOf is a file of rules with the rule of one alert only.
func ruleOf(t *testing.T, rules, alert string) string {
	t.Helper()
	const begins = "      - alert: "
	head, all, _ := strings.Cut(rules, begins)
	for rule := range strings.SplitSeq(all, begins) {
		if strings.HasPrefix(rule, alert+"\n") {
			return head + begins + rule
		}
	}
	t.Fatalf("the rules have no alert %s", alert)
	return ""
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
