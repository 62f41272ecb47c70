package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	rulesFile     = "../../packaging/prometheus/koji-relay.rules.yml"
	ruleTestsFile = "../../packaging/prometheus/koji-relay.test.yml"
	dashboardFile = "../../packaging/grafana/koji-relay.json"
)

// promtool runs Prometheus' own checker; false where it is not installed.
func promtool(t *testing.T, args ...string) bool {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not here, so only names and labels were checked")
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return true
}

var (
	metricWord = regexp.MustCompile(`\b(koji_relay|process|go)_\w+`)
	labelWord  = regexp.MustCompile(`\bby \(([^)]*)\)|[{,]\s*(\w+)\s*=`)
)

// checkExpression reports metrics and labels of an expression that no scrape has.
func checkExpression(t *testing.T, where, expression string, metrics map[string]string) {
	t.Helper()
	labels := []string{"job", "instance", "le", "relay"} // of the scraper, every histogram, a relay with a name
	for _, word := range metricWord.FindAllString(expression, -1) {
		name := strings.TrimSuffix(word, "_bucket")
		if metrics[name] == "" {
			t.Errorf("%s uses %s, which does not exist", where, word)
		}
		labels = append(labels, strings.Fields(metrics[name])...)
	}
	for _, m := range labelWord.FindAllStringSubmatch(expression, -1) {
		for _, label := range strings.FieldsFunc(m[1]+m[2], func(r rune) bool { return r == ',' || r == ' ' }) {
			if !slices.Contains(labels, label) {
				t.Errorf("%s uses the label %s, which none of its metrics has", where, label)
			}
		}
	}
}

func TestAlertRulesFitTheMetrics(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics := described(t)
	rules := strings.Split(string(text), "- alert: ")[1:]
	for _, rule := range rules {
		name, body, _ := strings.Cut(rule, "\n")
		url := "runbook_url: file:///usr/share/doc/koji-relay/docs/runbook.md#" + strings.ToLower(name) + "\n"
		if !strings.Contains(body, url) || !strings.Contains(string(runbook), "\n## "+name+"\n") {
			t.Errorf("%s has no runbook_url, or the runbook no section for it", name)
		}
		_, expression, found := strings.Cut(body, "expr:")
		expression, _, ended := strings.Cut(expression, "labels:")
		if !found || !ended {
			t.Errorf("%s has no expression and labels", name)
		}
		checkExpression(t, name, strings.ReplaceAll(expression, `up{job="koji-relay"}`, ""), metrics)
		if !strings.Contains(string(docs), "`"+name+"`") {
			t.Errorf("%s is not documented in docs/metrics.md", name)
		}
	}
	if len(rules) < 10 {
		t.Errorf("found %d rules only", len(rules))
	}
	promtool(t, "check", "rules", rulesFile)
}

func TestAlertRulesFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(ruleTestsFile)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		fires := regexp.MustCompile(`alertname: ` + rule[1] + `\n\s+eval_time: \S+\n\s+exp_alerts:`)
		silent := regexp.MustCompile(`\{alertname: ` + rule[1] + `, eval_time: \w+\}`)
		if !fires.Match(text) || !silent.Match(text) {
			t.Errorf("%s is not tested both to fire and to be silent", rule[1])
		}
	}
	promtool(t, "test", "rules", ruleTestsFile)
}

// dashboard is what a test needs of Grafana's format.
type dashboard struct {
	UID    string
	Panels []struct {
		ID      int
		Title   string
		Type    string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name, Definition string }
	}
	Annotations struct{ List []struct{ Name, Expr string } }
}

func TestDashboardFitsTheMetrics(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	metrics := described(t)
	var expressions []string
	check := func(where, expression string) {
		checkExpression(t, where, expression, metrics)
		expressions = append(expressions, expression)
	}
	ids := make(map[int]bool)
	taken := make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("panel %q has an id that is taken, or shows nothing", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x > 23 {
					t.Fatalf("panel %q overlaps %q or the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			check("panel "+p.Title, target.Expr)
		}
	}
	for _, a := range d.Annotations.List {
		check("annotation "+a.Name, a.Expr)
	}
	for _, v := range d.Templating.List {
		checkExpression(t, "variable "+v.Name, v.Definition, metrics)
	}
	if len(d.Panels) < 15 || d.UID == "" {
		t.Errorf("the dashboard %q has %d panels", d.UID, len(d.Panels))
	}
	used := string(text)
	for name := range metrics {
		// What only alerts and people look up is not drawn.
		undrawn := []string{"koji_relay_broker_active", "koji_relay_fallback_commits_total",
			"koji_relay_config_last_reload_successful", "koji_relay_config_last_reload_success_timestamp_seconds",
			"koji_relay_extra_trimmed_total", "koji_relay_history_gap_messages_total",
			"koji_relay_log_lines_lost_total", "koji_relay_outbox_missed_total", "koji_relay_outbox_only_seconds",
			"koji_relay_outbox_reader_away", "koji_relay_paused",
			"koji_relay_queue_expired_total",
			"koji_relay_queue_max_age_seconds", "koji_relay_queue_usable",
			"koji_relay_status_age_seconds"}
		if strings.HasPrefix(name, namespace) && !strings.Contains(used, name) && !slices.Contains(undrawn, name) {
			t.Errorf("%s is on no panel", name)
		}
	}
	promtool(t, "check", "rules", asRules(t, expressions))
}

// asRules writes expressions as recording rules, for promtool to parse.
func asRules(t *testing.T, expressions []string) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for i, e := range expressions {
		e = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*").Replace(e)
		fmt.Fprintf(&out, "      - record: panel:expr:%d\n        expr: %q\n", i, e)
	}
	path := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(path, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
