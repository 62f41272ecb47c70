package admin

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"koji-relay/internal/inspect"
	"koji-relay/internal/message"
)

// described gives type and label names of each metric as a scrape shows them, by name.
func described(t *testing.T) map[string]string {
	t.Helper()
	s, _, _ := newTestServer(t, runningStatus())
	exercise(s.opts.Metrics)
	families, err := s.opts.Metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	metrics := make(map[string]string)
	for _, f := range families {
		text := strings.ToLower(f.GetType().String())
		for _, l := range f.GetMetric()[0].GetLabel() {
			text += " " + l.GetName()
		}
		metrics[f.GetName()] = text
	}
	return metrics
}

func TestMetricsLintClean(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	exercise(s.opts.Metrics)
	families, err := s.opts.Metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Whatever is registered has a value in the test below, so that none escapes the documentation.
func TestExerciseReachesEveryMetric(t *testing.T) {
	t.Parallel()
	s, _, _ := newTestServer(t, runningStatus())
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		s.opts.Metrics.registry.Describe(ch)
	}()
	metrics := described(t)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range ch {
		if n := name.FindStringSubmatch(d.String())[1]; strings.HasPrefix(n, namespace) && metrics[n] == "" {
			t.Errorf("%s is registered and has no value", n)
		}
	}
}

func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	row := regexp.MustCompile("(?m)^\\| `(koji_relay_\\w+)` \\| (\\w+) \\| ([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		labels := strings.FieldsFunc(m[3], func(r rune) bool { return strings.ContainsRune("`, ", r) })
		documented[m[1]] = strings.Join(append([]string{m[2]}, labels...), " ")
	}
	metrics := described(t)
	for name, is := range metrics {
		if name == namespace+"_build_info" {
			is = "gauge version goversion" // its labels are sorted in a scrape
		}
		if strings.HasPrefix(name, namespace) && documented[name] != is {
			t.Errorf("%s is documented as %q and is %q", name, documented[name], is)
		}
	}
	for name := range documented {
		if metrics[name] == "" {
			t.Errorf("%s is documented and does not exist", name)
		}
	}
	for _, reason := range message.Failures() {
		if !strings.Contains(string(text), "`"+string(reason)+"`") {
			t.Errorf("the reason %s is not documented", reason)
		}
	}
}

func TestCommitIsCountedByCallbackAndResult(t *testing.T) {
	t.Parallel()
	m := NewMetrics("1", "")
	events := []message.Event{{Callback: "postTag"}, {Callback: "postTag"}, {Callback: "preTag"},
		{Callback: "postImport"}, {Callback: "postImport"}}
	m.CommitTaken(inspect.ViaSocket, message.Commit{Events: events},
		message.Receipt{Sent: 1, Queued: 1, Skipped: 1, Dead: 1, NotTaken: []int{4}}, time.Millisecond)
	want := `
# HELP koji_relay_events_handled_total Events by what the hub was told about them.
# TYPE koji_relay_events_handled_total counter
koji_relay_events_handled_total{result="dead"} 1
koji_relay_events_handled_total{result="not_taken"} 1
koji_relay_events_handled_total{result="queued"} 1
koji_relay_events_handled_total{result="sent"} 1
koji_relay_events_handled_total{result="skipped"} 1
# HELP koji_relay_events_received_total Events that the hub handed over, by callback.
# TYPE koji_relay_events_received_total counter
koji_relay_events_received_total{callback="postImport"} 2
koji_relay_events_received_total{callback="postTag"} 2
koji_relay_events_received_total{callback="preTag"} 1
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "koji_relay_events_handled_total",
		"koji_relay_events_received_total"); err != nil {
		t.Error(err)
	}
}

// Without a name nothing is added; with one everything has it, so that relays of one job are told apart.
func TestRelayWithANameHasItInEverySeries(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "new-bus"} {
		_, source, control := newTestServer(t, runningStatus())
		s := New(Options{Source: source.get, Metrics: NewMetrics("1", name), Recent: NewRecent(1), Control: control,
			Logger: discard})
		exercise(s.opts.Metrics)
		s.refresh(t.Context())
		families, err := s.opts.Metrics.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				relay := slices.IndexFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == "relay" })
				if (relay >= 0) != (name != "") || relay >= 0 && m.GetLabel()[relay].GetValue() != name {
					t.Errorf("%s of the relay %q has the labels %v", f.GetName(), name, m.GetLabel())
				}
			}
		}
		if len(families) < 30 {
			t.Errorf("%d metrics only", len(families))
		}
	}
}

func TestLabelValuesAreBounded(t *testing.T) {
	t.Parallel()
	m := NewMetrics("1", "")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				m.MessageSent(fmt.Sprintf("other.%d.%d", g, i), "b:1", time.Millisecond)
				m.SendFailed("b:1", message.Failure(fmt.Sprint(i)))
				m.CommitTaken(inspect.ViaSocket,
					message.Commit{Events: []message.Event{{Callback: fmt.Sprint("post", g, i)}}},
					message.Receipt{}, 0)
			}
		})
	}
	wg.Wait()
	for _, c := range []struct {
		name      string
		collector prometheus.Collector
		want      int
	}{{"addresses", m.sent, maxLabelValues + 1}, {"last success", m.lastSuccess, maxLabelValues + 1},
		{"callbacks", m.events, maxLabelValues + 1}, {"reasons", m.failed, 1}} {
		if n := testutil.CollectAndCount(c.collector); n != c.want {
			t.Errorf("%s have %d series, want %d", c.name, n, c.want)
		}
	}
	if n := testutil.ToFloat64(m.sent.WithLabelValues(otherLabel, "b:1")); n != 2000-maxLabelValues {
		t.Errorf("%v messages are counted as other, want %d", n, 2000-maxLabelValues)
	}
}

func TestHostileLabelValuesDoNotPanic(t *testing.T) {
	t.Parallel()
	s, source, _ := newTestServer(t, runningStatus())
	m := s.opts.Metrics
	m.MessageSent("other.\xff\xfe", "b\xff:1", time.Millisecond)
	m.MessageSent(strings.Repeat("ä", 150), "b:1", time.Millisecond) // cut within a character
	source.change(func(s *Status) {
		s.Brokers = []inspect.Broker{{Name: "b\xff"}, {Name: "b\xff"}, {Name: "b"}, {Name: "b"}}
		s.Certificates = []Certificate{{Name: "cert"}, {Name: "cert"}}
	})
	s.refresh(t.Context())
	if _, err := m.registry.Gather(); err != nil {
		t.Error(err)
	}
}

func TestHooksDoNotAllocate(t *testing.T) {
	m := NewMetrics("1", "")
	commit := message.Commit{Events: []message.Event{{Callback: "postTag"}}}
	recent := NewRecent(10)
	all := func() {
		m.CommitTaken(inspect.ViaSocket, commit, message.Receipt{Sent: 1}, time.Millisecond)
		m.MessageSent("build.tag", "b:1", time.Millisecond)
		m.SendFailed("b:1", message.FailedTimeout)
		m.QueuePut(1)
		m.QueueDrained(1)
		m.DeadLetters(message.FailedRejected, 1)
		recent.Add(Fate{Address: "build.tag"})
	}
	if n := testing.AllocsPerRun(100, all); n != 0 {
		t.Errorf("%v allocations for one message, want none", n)
	}
}

func TestUnknownNumbersAreAbsent(t *testing.T) {
	t.Parallel()
	status := runningStatus()
	status.Queue.Known, status.Outbox.Known, status.Queue.Usable = false, false, false
	s, _, _ := newTestServer(t, status)
	_, text := get(t, s.Handler(), "/metrics")
	for _, absent := range []string{"koji_relay_queue_depth", "koji_relay_outbox_depth"} {
		if strings.Contains(text, "\n"+absent) {
			t.Errorf("%s is shown, though nobody knows it", absent)
		}
	}
	if !strings.Contains(text, "\nkoji_relay_queue_usable 0\n") {
		t.Error("the unusable queue is not shown")
	}
	status = runningStatus()
	status.Queue.Full = true
	s, _, _ = newTestServer(t, status)
	if _, text = get(t, s.Handler(), "/metrics"); !strings.Contains(text, "\nkoji_relay_queue_usable 0\n") {
		t.Error("nothing can be put into a full queue, and it is shown as usable")
	}
}
