package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var migration = document{"docs/migration.md", []accounted{
	{opens: "runuser -u koji-relay -- koji-relay check\n", run: func(t *testing.T, s *hubSite, b block) {
		dist := madePackages(t)
		s.run(t, "dpkg -i "+s.put(t, dist.deb(t))+" "+s.put(t, dist.pluginDeb(t))+
			"; cp /usr/share/doc/koji-relay/protonmsg.conf.example /etc/koji-hub/plugins/protonmsg.conf")
		s.configure(t)
		s.listen(t)
		s.asItStands(t, b.at(), b.text)
	}},
	{opens: "koji-relay db init\n", run: func(t *testing.T, s *hubSite, b block) {
		s.fails(t, "setpriv --reuid nobody --clear-groups koji-relay db init")
		s.asItStands(t, b.at(), b.text)
	}},
	{opens: "koji-relay db init --print --relay-role koji --hub-role koji |", run: func(t *testing.T,
		s *hubSite, b block) {
		s.run(t, "koji-relay db remove --yes")
		if out, err := s.psql("postgres", "REVOKE CREATE ON DATABASE koji FROM PUBLIC, kojihub; "+
			"ALTER DATABASE koji OWNER TO koji"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s.fails(t, "koji-relay db init") // the role may not
		sql := s.asItStands(t, b.at(), fill(t, b, "role koji", "role kojihub", "runuser -u postgres -- psql koji",
			"cat"))
		if out, err := s.psql("koji", sql); err != nil {
			t.Fatalf("%s: %v\n%s", b.at(), err, out)
		}
		s.asItStands(t, b.at(), "runuser -u koji-relay -- koji-relay check --connect")
	}},
	{opens: "systemctl enable --now koji-relay.socket", run: func(t *testing.T, s *hubSite, b block) {
		if out, err := s.psql("koji", "SET ROLE kojihub; INSERT INTO proton_queue (address, props, body) VALUES ("+
			`'build.tag', '{"type": "Tag"}', '{"left": "by protonmsg"}')`); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s.asItStands(t, b.at(), b.text)
		cameBelow(t, s.listen(t), "koji", "1")
	}},
	{opens: "systemctl restart apache2\n", run: func(t *testing.T, s *hubSite, b block) {
		s.run(t, "sed -i 's/^Plugins.*/Plugins = koji_relay/' /etc/koji-hub/hub.conf")
		s.asItStands(t, b.at(), b.text)
		if said := s.tag(t, "bash-5.2.26-3.fc40", "f40-candidate", "jdoe", 1); said != "" {
			t.Errorf("%s: the hub's log has %s", b.at(), said)
		}
		cameBelow(t, s.listen(t), "koji", "2")
	}},
	{opens: "systemctl disable --now koji-relay.socket", run: func(t *testing.T, s *hubSite, b block) {
		s.plugins(t, "Plugins = protonmsg")
		if out, err := s.psql("koji", "ALTER SCHEMA koji_relay OWNER TO kojihub"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		s.asItStands(t, b.at(), b.text)
		s.outboxIsAbsent(t)
	}},
	{opens: "install -g www-data -m 640", run: justRun},
	{opens: "[broker]\ntopic_prefix = topic://koji-trial", run: func(t *testing.T, s *hubSite, b block) {
		const path = "/etc/koji-relay/trial.conf"
		s.merge(t, path, fill(t, b, "topic://koji-trial", "/topic/koji-trial")) // as the text says for RabbitMQ
	}},
	{opens: "systemd-run --unit koji-relay-trial", run: justRun},
	{opens: "[koji_relay]\ndelivery = direct", run: trialBesideProtonmsg},
	{opens: "systemctl stop koji-relay-trial", run: endOfTrial},
	{opens: "systemctl disable --now koji-relay@new-bus.socket", run: secondBusAndBack},
}}

// secondBusAndBack takes the steps to a second bus that stand in the text, in which both have what the hub
// does, and ends it.
func secondBusAndBack(t *testing.T, s *hubSite, b block) {
	const path = "/etc/koji-relay/new-bus.conf"
	s.run(t, "install -g www-data -m 640 /etc/koji-hub/plugins/protonmsg.conf "+path)
	s.merge(t, path, "[broker]\ntopic_prefix = /topic/koji-trial\n[relay]\nname = new-bus\n")
	for _, step := range []string{
		"koji-relay check --connect --config " + path, // before its first start
		"systemctl enable --now koji-relay@new-bus.service",
	} {
		s.asItStands(t, b.at(), step)
	}
	const reader = "koji-relay outbox readers | awk '$1 == \"new-bus\" {print $1}'"
	s.becomes(t, "new-bus", reader)
	count := s.listen(t)
	old, added := next(count("koji")), next(count("koji-trial"))
	s.tag(t, "both-1-1", "f40-candidate", "jdoe", 1)
	cameBelow(t, count, "koji", old)
	cameBelow(t, count, "koji-trial", added)
	s.asItStands(t, b.at(), b.text)
	s.becomes(t, "", reader)
	s.becomes(t, "inactive inactive disabled disabled",
		"echo $(for ask in is-active is-enabled; do "+
			"systemctl $ask koji-relay@new-bus.socket koji-relay@new-bus.service || true; done)")
}

// outboxIsAbsent fails t if something could be left in an outbox.
func (s *hubSite) outboxIsAbsent(t testing.TB) {
	t.Helper()
	if out, err := s.psql("koji", "SELECT to_regclass('koji_relay.outbox') IS NULL"); err != nil || out != "t" {
		t.Errorf("the table koji_relay.outbox is there: %v %s", err, out)
	}
}

// merge sets keys in an ini file of the box, as an editor does: in place where a key is there, else at the
// beginning of its section.
func (s *hubSite) merge(t testing.TB, path, settings string) {
	t.Helper()
	lines := strings.Split(s.run(t, "cat "+path), "\n")
	section := ""
	for line := range strings.Lines(settings) {
		line = strings.TrimSpace(line)
		key, _, ok := strings.Cut(line, " =")
		if !ok {
			section = line
			continue
		}
		at, there := -1, false
		for i, inSection := 0, false; i < len(lines); i++ {
			if strings.HasPrefix(lines[i], "[") {
				inSection = lines[i] == section
				if inSection {
					at = i
				}
			} else if inSection && strings.HasPrefix(lines[i], key+" =") {
				at, there = i, true
				break
			}
		}
		switch {
		case there:
			lines[at] = line
		case at >= 0:
			lines = append(lines[:at+1], append([]string{line}, lines[at+1:]...)...)
		case section != "":
			lines = append(lines, section, line)
		}
	}
	s.write(t, "/"+filepath.Base(path)+".new", "600", []byte(strings.Join(lines, "\n")+"\n"))
	s.run(t, "cat /"+filepath.Base(path)+".new >"+path) // owner and mode stay
}

// trialBesideProtonmsg: the trial's relay takes what the hub hands over; when it does not run, the hub says
// that the trial has lost an event, and nothing is kept for the production's relay.
func trialBesideProtonmsg(t *testing.T, s *hubSite, b block) {
	count := s.listen(t)
	production := count("koji")
	s.merge(t, "/etc/koji-hub/plugins/koji_relay.conf", b.text)
	s.plugins(t, "Plugins = protonmsg koji_relay")
	s.becomes(t, "660 koji-relay:www-data", "stat -c '%a %U:%G' /run/koji-relay-trial/hub.sock")
	s.run(t, "setpriv --reuid www-data --regid www-data --init-groups bash -c '(: >/dev/null) && test -w "+
		"/run/koji-relay-trial/hub.sock'")
	if said := s.tag(t, "bash-5.2.26-3.fc40", "f40-candidate", "jdoe", 3); said != "" {
		t.Errorf("%s: the hub's log has %s", b.at(), said)
	}
	cameBelow(t, count, "koji-trial", "3")
	s.run(t, "systemctl kill -s KILL koji-relay-trial")
	s.becomes(t, "", "pidof koji-relay || true")
	if said := s.tag(t, "bash-5.2.26-3.fc40", "f40-candidate", "jdoe", 1); !strings.Contains(said,
		"events lost") {
		t.Errorf("%s: without the trial's relay the hub's log has %q", b.at(), said)
	}
	if now := count("koji"); now != production {
		t.Errorf("%s: the trial sent to the production's topics: %s messages, there were %s", b.at(), now,
			production)
	}
	s.outboxIsAbsent(t)
}

// endOfTrial ends it and starts the production's relay, which has nothing of the trial to send.
func endOfTrial(t *testing.T, s *hubSite, b block) {
	count := s.listen(t)
	production := count("koji")
	s.plugins(t, "Plugins = protonmsg")
	// The trial's relay was killed; systemd forgets such a unit when it is told to.
	s.run(t, "systemctl reset-failed koji-relay-trial; systemd-run --unit koji-relay-trial -p User=koji-relay "+
		"-p RuntimeDirectory=koji-relay-trial -p StateDirectory=koji-relay-trial koji-relay serve --config "+
		"/etc/koji-relay/trial.conf")
	s.asItStands(t, b.at(), b.text)
	s.merge(t, "/etc/koji-hub/plugins/koji_relay.conf",
		"[koji_relay]\ndelivery = outbox\nsocket = /run/koji-relay/hub.sock\n")
	if out, err := s.psql("koji", "GRANT CREATE ON DATABASE koji TO kojihub"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.run(t, "koji-relay db init; systemctl start koji-relay.socket koji-relay.service")
	s.plugins(t, "Plugins = koji_relay")
	s.tag(t, "last-1-1", "f40-candidate", "jdoe", 1)
	eventually(t, 30*time.Second, "the first message after the trial", func() error {
		if now := count("koji"); now != next(production) {
			return fmt.Errorf("%s messages below the production's prefix, there were %s", now, production)
		}
		return nil
	})
}

func next(number string) string {
	n := 0
	fmt.Sscan(number, &n)
	return fmt.Sprint(n + 1)
}
