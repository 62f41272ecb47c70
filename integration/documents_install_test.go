package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var readme = document{"README.md", []accounted{
	{opens: "hub (mod_wsgi)", drawing: "hub, relay, queue, brokers"},
	{opens: "make packages", run: func(t *testing.T, s *hubSite, b block) {
		if b.text != makePackages+"\n" {
			t.Errorf("%s: it is not %q, which is run once for all journeys", b.at(), makePackages)
		}
		s.copyIn(t, string(madePackages(t)), "/root/dist")
	}},
	{opens: "apt-get install", run: func(t *testing.T, s *hubSite, b block) {
		s.asItStands(t, b.at(), b.text)
		s.configure(t)
	}},
	{opens: "koji-relay db init\n", run: func(t *testing.T, s *hubSite, b block) {
		// As a user who may not read hub.conf.
		s.fails(t, "setpriv --reuid nobody --clear-groups koji-relay db init")
		s.asItStands(t, b.at(), b.text)
	}},
	{opens: "$ koji-relay status", run: func(t *testing.T, s *hubSite, b block) {
		count := s.listen(t)
		s.plugins(t, "Plugins = koji_relay")
		s.tag(t, "bash-5.2.26-3.fc40", "f40-candidate", "jdoe", 2)
		cameBelow(t, count, "koji", "2")
		for _, e := range exchanges(b.text) {
			printed(t, b.at(), e.shown, s.asItStands(t, b.at(), e.command))
		}
	}},
	{opens: "make demo\n", run: func(t *testing.T, _ *hubSite, b block) {
		demo = inCheckout(t, b.at(), b.text)
	}},
	{opens: "1. All is well\n", run: func(t *testing.T, _ *hubSite, b block) {
		printed(t, b.at(), uncounted("…\n"+b.text), uncounted(demo))
	}},
	{opens: "$ cat > relay.conf", run: func(_ *testing.T, _ *hubSite, b block) { begunSession = b }},
	{opens: "$ head -1 testdata/golden", run: func(t *testing.T, s *hubSite, b block) {
		relayOfOnesOwn(t, s, block{b.file, b.line, begunSession.text + b.text})
	}},
	{opens: "make test\n", run: targetsAreThere},
	{opens: "cmd/koji-relay/ ", run: func(t *testing.T, _ *hubSite, b block) {
		for _, m := range regexp.MustCompile(`(?m)^([a-z/-]+)/ |; ([a-z]+)/ `).FindAllStringSubmatch(b.text, -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", b.at(), err)
			}
		}
	}},
}}

// demo is what the README's make demo printed, which the next block shows.
var demo string

// begunSession is the first block of the README's session, which goes on in the next one.
var begunSession block

const makePackages = "make packages"

var packagesOnce struct {
	sync.Once
	dist packages
}

// madePackages is what the README's command for it leaves in a copy of the checkout.
func madePackages(t testing.TB) packages {
	t.Helper()
	packagesOnce.Do(func() {
		top := filepath.Join(scratch, "a checkout")
		copySources(t, top)
		inCheckout(t, "README.md", "cd '"+top+"'; "+makePackages, "VERSION="+newVersion)
		packagesOnce.dist = packages(filepath.Join(top, "dist"))
	})
	if packagesOnce.dist == "" {
		t.Fatal("make packages failed, see above")
	}
	return packagesOnce.dist
}

// uncounted takes a zero for any other number, but where nothing may be lost.
func uncounted(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "lost") {
			line = regexp.MustCompile(`\b0\b`).ReplaceAllString(line, "1")
		}
		out.WriteString(line)
	}
	return out.String()
}

// configure is what a text between two blocks tells the administrator to do: brokers, prefix, and who may
// read.
func (s *hubSite) configure(t testing.TB) {
	t.Helper()
	s.run(t, `cd /etc/koji-hub/plugins
		sed -i 's|^urls = .*|urls = amqp://koji:`+password+`@127.0.0.1:5672|' protonmsg.conf
		sed -i 's|^topic_prefix = .*|topic_prefix = /topic/koji|' protonmsg.conf
		chgrp www-data protonmsg.conf; chmod 640 protonmsg.conf`)
}

// relayOfOnesOwn is a session in a checkout, with a broker on this machine. A reader sees a program that runs
// beside the shell say that it is ready, before typing on.
func relayOfOnesOwn(t *testing.T, s *hubSite, b block) {
	ready := map[string]string{"serve": "broker connected", "tail": "msg=subscribed"}
	dir := t.TempDir()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/golden/commits.extra0.jsonl"
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(golden)), 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{program: "koji-relay", "../" + golden: golden} {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), content, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const mark = "---- the next one"
	session := exchanges(b.text)
	script := "trap 'kill $(jobs -p)' EXIT\n"
	for i, e := range session {
		command := strings.TrimSpace(e.command)
		if beside, ok := strings.CutSuffix(command, "&"); ok {
			said, log := "", "beside."+strconv.Itoa(i)
			for word, says := range ready {
				if strings.Contains(command, word) {
					said = says
				}
			}
			script += beside + " >" + log + " 2>&1 &\n" +
				"timeout 30 sh -c 'until grep -q \"" + said + "\" " + log + "; do sleep 0.1; done' || { cat " + log +
				"; exit 1; }\n"
		} else {
			script += e.command
		}
		script += "\necho '" + mark + "'\n"
	}
	script += "timeout 30 sh -c 'until grep -q package[.] beside.4; do sleep 0.1; done' || { cat beside.*; " +
		"exit 1; }\n"
	// With a /tmp of its own: the document has files there.
	cmd := s.inItsNetwork(within(t, documentLimit), dir, `unshare -m bash -ec '
		mount --bind . /mnt; mount -t tmpfs none /tmp; cd /mnt; PATH=/mnt:$PATH; exec bash -e session'`)
	if err := os.WriteFile(filepath.Join(dir, "session"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s\n%s", b.at(), err, script, out, stderr.String())
	}
	answers := strings.Split(string(out), mark+"\n")
	for i, e := range session {
		if e.shown != "" {
			printed(t, b.at(), e.shown, answers[i])
		}
	}
}

var operations = document{"docs/operations.md", []accounted{
	{opens: "dnf install ./koji-relay-*.x86_64.rpm", shown: []string{"TestRPM"}},
	{opens: "runuser -u koji-relay -- koji-relay check --connect", run: justRun},
	{opens: "[Socket]\nSocketGroup=kojihub", run: func(t *testing.T, s *hubSite, b block) {
		s.run(t, "groupadd kojihub")
		s.dropIn(t, "koji-relay.socket", b.text, func() {
			s.run(t, "systemctl restart koji-relay.socket koji-relay.service")
			s.prints(t, "kojihub", "ls -l /run/koji-relay/hub.sock | cut -d' ' -f4")
		})
		s.run(t, "systemctl restart koji-relay.socket koji-relay.service")
		s.prints(t, "www-data", "ls -l /run/koji-relay/hub.sock | cut -d' ' -f4")
	}},
	{opens: "[Service]\nIPAddressDeny=any", run: func(t *testing.T, s *hubSite, b block) {
		s.dropIn(t, "koji-relay.service", b.text, func() {
			out := s.run(t, "systemd-analyze verify --man=no koji-relay.service 2>&1; "+
				"systemctl show -P IPAddressAllow koji-relay")
			for _, want := range []string{"192.0.2.10/32", "127.0.0.0/8"} {
				if !strings.Contains(out, want) {
					t.Errorf("%s: systemd takes it for %q", b.at(), out)
				}
			}
		})
	}},
	{opens: "# /etc/koji-relay/new-bus.conf\n[broker]", run: func(t *testing.T, s *hubSite, b block) {
		s.write(t, "/etc/koji-relay/new-bus.conf", "640", []byte(b.text))
		// The directories are what its unit has made.
		s.run(t, "chgrp www-data /etc/koji-relay/new-bus.conf; "+
			"install -d -o koji-relay /var/lib/koji-relay-new-bus /run/koji-relay-new-bus")
		s.asItStands(t, b.at(), "runuser -u koji-relay -- koji-relay check --config /etc/koji-relay/new-bus.conf")
	}},
	{opens: "journalctl -u koji-relay RELAY_MESSAGE_ID=…", run: func(t *testing.T, s *hubSite, b block) {
		s.run(t, "koji-relay log-level debug")
		s.tag(t, "vim-9.1-1.fc40", "f40-candidate", "jdoe", 1)
		id := s.messageID(t, "vim-9.1-1.fc40")
		eventually(t, 20*time.Second, "the line of a message in the journal", func() error {
			out, err := s.try(strings.TrimSpace(fill(t, b, "…", id)) + " | grep " + id)
			return wrap(err, out)
		})
		s.run(t, "koji-relay log-level info")
	}},
	{opens: "koji-relay outbox drop", run: justRun},
	{opens: "koji-relay history --build bash-5.2.26-3.fc40", run: func(t *testing.T, s *hubSite, b block) {
		// One message is dead, or the third command has nothing to show and fails.
		s.run(t, "koji-relay pause --publish")
		s.tag(t, "emacs-30.1-1.fc40", "f40-candidate", "jdoe", 1)
		s.becomes(t, "1", "koji-relay queue list --json | grep -c message_id")
		out := s.asItStands(t, b.at(), fill(t, b, "koji-relay history --fate dead ",
			"koji-relay history --fate queued ",
			"2b53e448-91ec-5132-8b6f-8078aa6cb1a3", s.messageID(t, "bash-5.2.26-3.fc40")))
		for _, want := range []string{"bash-5.2.26-3.fc40 in f40-candidate", "emacs-30.1-1.fc40", `"nvr": "bash`} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: it does not print %s:\n%s", b.at(), want, out)
			}
		}
		s.run(t, "koji-relay resume --publish")
	}},
	{opens: "koji-relay replay --since '2026-11-26 14:00'", run: func(t *testing.T, s *hubSite, b block) {
		count := s.listen(t)
		before, err := strconv.Atoi(count("koji"))
		if err != nil {
			t.Fatal(err)
		}
		known, _ := strconv.Atoi(s.run(t, "koji-relay history --json | wc -l"))
		now := time.Now().UTC()
		s.asItStands(t, b.at(), fill(t, b, "2026-11-26 14:00", now.Add(-time.Hour).Format("2006-01-02 15:04"),
			"2026-11-26 15:00", now.Add(time.Hour).Format("2006-01-02 15:04"),
			"amqps://new-broker:5671", "amqp://koji:"+password+"@127.0.0.1:5672"))
		if after, _ := strconv.Atoi(count("koji")); known == 0 || after != before+3*known {
			t.Errorf("%s: %d messages were there, %d after three replays of %d", b.at(), before, after, known)
		}
	}},
	{opens: "koji-relay audit ", run: justRun},
	{opens: "koji-relay queue export > queue.jsonl", run: func(t *testing.T, s *hubSite, b block) {
		s.run(t, "koji-relay pause --publish")
		s.tag(t, "zsh-5.9-1.fc40", "f40-candidate", "jdoe", 1)
		s.becomes(t, "1", "koji-relay queue list --json | grep -c message_id")
		s.run(t, "systemctl stop koji-relay.service koji-relay.socket")
		s.asItStands(t, b.at(), b.text)
		s.run(t, "grep -q zsh /root/queue.jsonl; systemctl start koji-relay.socket koji-relay.service")
		s.becomes(t, "0", "koji-relay resume --publish >/dev/null 2>&1; koji-relay queue list --json | grep "+
			"-c message_id")
	}},
}}

// justRun runs a block whose exit code says enough.
func justRun(t *testing.T, s *hubSite, b block) { s.asItStands(t, b.at(), b.text) }

// dropIn is systemctl edit, until f returns.
func (s *hubSite) dropIn(t testing.TB, unit, text string, f func()) {
	t.Helper()
	path := "/etc/systemd/system/" + unit + ".d/override.conf"
	s.write(t, path, "644", []byte(text))
	s.run(t, "systemctl daemon-reload")
	f()
	s.run(t, "rm "+path+"; systemctl daemon-reload")
}

// messageID is that of a message about a build.
func (s *hubSite) messageID(t testing.TB, build string) (id string) {
	t.Helper()
	eventually(t, 20*time.Second, "the history of "+build, func() error {
		out, err := s.try("koji-relay history --json --build " + build + " | head -n 1")
		if err != nil {
			return wrap(err, out)
		}
		var record struct {
			ID string `json:"message_id"`
		}
		err = json.Unmarshal([]byte(out), &record)
		id = record.ID
		return wrap(err, out)
	})
	return id
}

var pluginReadme = document{"hubplugin/README.md", []accounted{
	{opens: "install -m 644 koji_relay.py", run: func(t *testing.T, s *hubSite, b block) {
		s.copyIn(t, "../hubplugin", "/root/hubplugin")
		s.asItStands(t, b.at(), "cd hubplugin\n"+b.text)
	}},
	{opens: "Plugins = koji_relay\n", run: func(t *testing.T, s *hubSite, b block) {
		count := s.listen(t)
		s.plugins(t, strings.TrimSpace(b.text))
		before, _ := strconv.Atoi(count("koji"))
		if said := s.tag(t, "dash-0.5-1.fc40", "f40-candidate", "jdoe", 1); said != "" {
			t.Errorf("%s: the hub's log has %s", b.at(), said)
		}
		cameBelow(t, count, "koji", strconv.Itoa(before+1))
	}},
	{opens: "pip install -r .ci/requirements.txt", shown: []string{
		"test_default_socket_gets_the_type_that_httpd_may_write", "TestBenchmarksRunOnce"}},
}}

var consumersGuide = document{"docs/consumers.md", []accounted{
	{opens: "$ python3 examples/consumers/python/consumer.py", shown: []string{"TestConsumerExamples"}},
	{opens: "rabbitmqctl set_policy", run: func(t *testing.T, s *hubSite, b block) {
		out := inCheckout(t, b.at(), "rabbitmqctl() { docker exec "+s.rabbit+" /opt/koji-relay-test/run ctl "+
			"\"$@\"; }\n"+
			b.text+"rabbitmqctl list_policies")
		if !strings.Contains(out, "600000") {
			t.Errorf("%s: RabbitMQ has the policies %s", b.at(), out)
		}
	}},
	// Jenkins' plugin itself cannot be had; the test makes the JMS calls of such a configuration.
	{opens: "unclassified:\n  jmsProviders:", shown: []string{"TestOtherConsumers"}},
	{opens: "triggers {", shown: []string{"TestOtherConsumers"}},
	{opens: "{\"message_id\": ", shown: []string{"TestMessageInTheConsumersGuideIsReal"}},
	{opens: "{\"queues\": [{\"vhost\"", run: func(t *testing.T, s *hubSite, b block) {
		s.define(t, b.text)
		if out := s.ctl(t, "list_bindings"); !strings.Contains(out, "NAME") || !strings.Contains(out,
			"koji.build.*") {
			t.Errorf("%s: RabbitMQ has the bindings %s", b.at(), out)
		}
	}},
}}
