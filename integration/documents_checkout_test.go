package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var contributing = document{"CONTRIBUTING.md", []accounted{
	{opens: "make unit ", run: targetsAreThere, shown: []string{"TestDemoLosesNothing",
		"TestBenchmarksRunOnce", "TestChaos"}},
	{opens: "KOJI_RELAY_SERVERS=docker KOJI_RELAY_REQUIRE_SERVERS=1 go test ./integration -run TestTwoBrokers",
		run: goTestFinds("TestTwoBrokers"), shown: []string{"TestTwoBrokers"}},
}}

var brokersGuide = document{"docs/brokers.md", []accounted{
	{opens: "[broker]\nurls = amqps://rabbit1.example.com amqps", run: soundConfiguration,
		shown: []string{"TestRabbitMQ310"}},
	{opens: "[broker]\nurls = amqps://rabbit1.example.com:5671/koji", run: soundConfiguration,
		shown: []string{"TestVirtualHosts"}},
	{opens: "[broker]\nurls = amqps://rabbit1.example.com amqps", run: soundConfiguration,
		shown: []string{"TestVirtualHosts"}},
	{opens: "[broker]\nurls = amqps://rabbit1.example.com amqps", run: soundConfiguration,
		shown: []string{"TestRabbitMQ40"}},
	{opens: "[broker]\nurls = amqps://activemq1.example.com", run: soundConfiguration,
		shown: []string{"TestActiveMQClassic"}},
	{opens: "[broker]\nurls = amqps://artemis1.example.com", run: soundConfiguration,
		shown: []string{"TestArtemis"}},
}}

var metricsGuide = document{"docs/metrics.md", []accounted{
	{opens: "scrape_configs:\n", run: func(t *testing.T, _ *hubSite, b block) {
		path := filepath.Join(t.TempDir(), "prometheus.yml")
		if err := os.WriteFile(path, []byte(b.text), 0o644); err != nil {
			t.Fatal(err)
		}
		inCheckout(t, b.at(), "promtool check config "+path)
	}},
}}

var performance = document{"docs/performance.md", []accounted{
	{opens: "make bench ", run: targetsAreThere, shown: []string{"TestBenchmarksRunOnce"}},
}}

var reliability = document{"docs/reliability.md", []accounted{
	{opens: "make chaos SEED=7", run: targetsAreThere, shown: []string{"TestChaos"}},
	{opens: "KOJI_RELAY_FROZEN_SECONDS=3600 go test", run: goTestFinds("BenchmarkFrozenReader"),
		shown: []string{"BenchmarkFrozenReader"}},
}}

// stubs are commands that need Fedora, systemd or a kernel that enforces.
const stubs = `dnf() { :; }; restorecon() { :; }; systemctl() { :; }
`

// buildsThePolicy runs the block in a folder of the test's own. What SELinux makes of the module needs a
// kernel that enforces.
func buildsThePolicy(t *testing.T, _ *hubSite, b block) {
	if _, err := exec.LookPath("checkmodule"); err != nil {
		skipOrFail(t, "no checkmodule: install checkpolicy and semodule-utils")
	}
	dir := t.TempDir()
	inCheckout(t, b.at(), stubs+"semodule() { test -s \"$2\" && echo loaded \"$2\" >"+dir+"/loaded; }\n"+
		strings.ReplaceAll(b.text, "/tmp", dir))
	text, err := os.ReadFile(dir + "/loaded")
	if err != nil || string(text) != "loaded "+dir+"/koji_relay.pp\n" {
		t.Errorf("%s: no module was loaded: %q %v", b.at(), text, err)
	}
}

var selinuxGuide = document{"docs/selinux.md", []accounted{
	{opens: "dnf install " + "checkpolicy", run: buildsThePolicy},
	{opens: "ls -Z " +
		"/run/koji-relay/hub.sock", shown: []string{"test_default_socket_gets_the_type_that_httpd_may_write"}},
	{opens: "semanage fcontext", run: func(t *testing.T, _ *hubSite, b block) {
		inCheckout(t, b.at(), stubs+`semanage() { grep -q "^type $4;" packaging/selinux/koji_relay.te; }
`+b.text)
	}},
}}

var architecture = document{"docs/architecture.md", []accounted{
	{opens: "hub ---> 1 hand-over", drawing: "the stations of a commit"},
	{opens: "queued ----> sent", drawing: "the states of a delivery"},
	{opens: "          nothing settles", drawing: "the states of a breaker"},
	{opens: "table --read-->", drawing: "the states of an outbox row"},
}}

// goTestFinds runs a go test, which is part of this run or takes an hour, so far that it names what it would
// do.
func goTestFinds(name string) func(*testing.T, *hubSite, block) {
	return func(t *testing.T, _ *hubSite, b block) {
		out := inCheckout(t, b.at(), strings.TrimSpace(b.text)+" -list '^"+name+"$'")
		if !strings.HasPrefix(out, name+"\n") {
			t.Errorf("%s: it does not find %s: %s", b.at(), name, out)
		}
	}
}

// targetsAreThere asks make what each command would do, and the system whether each script is there.
func targetsAreThere(t *testing.T, _ *hubSite, b block) {
	for line := range strings.Lines(b.text) {
		words := strings.Fields(line)
		switch {
		case words[0] == "make":
			inCheckout(t, b.at(), "make -n "+strings.TrimPrefix(strings.TrimSpace(line), "make"))
		case strings.HasPrefix(words[0], ".ci/"):
			inCheckout(t, b.at(), "test -x "+words[0])
		default:
			t.Errorf("%s: this runs neither make nor a script: %s", b.at(), line)
		}
	}
}

// soundConfiguration lets the program read a configuration, with files that are there.
func soundConfiguration(t *testing.T, _ *hubSite, b block) {
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	a, dir := certificates(t), t.TempDir()
	text := strings.NewReplacer("/etc/koji-hub/plugins/client.pem", a.clientPath, "/etc/koji-hub/plugins/ca.pem",
		a.caPath).Replace(b.text)
	if !strings.Contains(text, "topic_prefix") { // a piece of one that is above it
		text += "topic_prefix = /topic/koji\n"
	}
	path := filepath.Join(dir, "protonmsg.conf")
	if err := os.WriteFile(path, []byte(text+"\n[queue]\nstore = file\npath = "+dir+"/queue.db\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(program) {
		t.Fatalf("%s is no absolute path", program)
	}
	if out := inCheckout(t, b.at(), program+" check --config "+path); strings.Contains(out, "unknown") {
		t.Errorf("%s: %s", b.at(), out)
	}
}
