package integration

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// alertCase leads one relay into the situation of an alert and out again.
type alertCase struct {
	settings settings
	trouble  func(s *alertSite) // returns when the metrics show it; nil: time alone does it
	end      func(s *alertSite) // returns when the metrics show that it is over
	// hours is what an hour of a duration that the relay measured took in the test; 0 is as long. The relay is
	// built with failpoints then: its own minute is as short.
	hours float64
	// says is the reason that the relay names meanwhile, in all ways that it has; empty where what happened is
	// over, or is not known to the relay. unready says that it hands commits back.
	says    string
	unready bool
	log     string // what is logged of it
}

// alertCases are all alerts of the rules. Ages come from rows that are made old; how long a state lasts is
// up to the rules, to which Prometheus' own evaluation gives hours in no time.
var alertCases = map[string]alertCase{
	"KojiRelayAbsent": {
		trouble: func(s *alertSite) { s.relay.kill(s) },
		end:     func(s *alertSite) { s.relay.start(s); s.until("it answers", up) },
	},
	"KojiRelayNotReady": {
		says: "QUEUE_OFF", unready: true, log: "broker down",
		settings: settings{"queue.enabled": "off"},
		trouble:  func(s *alertSite) { s.ways[0].cut(); s.until("not ready", is("koji_relay_ready", 0)) },
		end:      func(s *alertSite) { s.ways[0].mend(); s.until("ready", is("koji_relay_ready", 1)) },
	},
	"KojiRelayNoBroker": {
		says: "NO_BROKER", log: "no broker is up: messages are kept in the queue until one is",
		trouble: func(s *alertSite) {
			s.ways[0].cut()
			s.ways[1].cut()
			s.until("no broker", is("koji_relay_broker_up", 0))
		},
		end: func(s *alertSite) { s.ways[0].mend(); s.until("one broker", is("koji_relay_broker_up", 1)) },
	},
	"KojiRelayBrokerDown": {
		says: "BROKER_DOWN", log: "broker down",
		trouble: func(s *alertSite) { s.ways[1].cut(); s.until("one broker", is("koji_relay_broker_up", 1)) },
		end:     func(s *alertSite) { s.ways[1].mend(); s.until("both brokers", is("koji_relay_broker_up", 2)) },
	},
	"KojiRelaySilence": {
		end: func(s *alertSite) { s.post(tag()); s.until("a message", is("koji_relay_messages_sent_total", 1)) },
	},
	"KojiRelayBacklog":        {says: "BACKLOG", trouble: oldMessage(20 * time.Minute), end: emptyQueue},
	"KojiRelayBacklogExpires": {says: "EXPIRES_SOON", trouble: oldMessage(19 * time.Hour), end: emptyQueue},
	"KojiRelayOutboxBacklog": {
		says: "OUTBOX_BACKLOG", unready: true,
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
		hours: 1.0 / 1000, says: "OUTBOX_ONLY",
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
		says: "HANDED_BACK", log: "events are refused, the hub keeps them: neither sent nor stored",
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
		says: "TURNED_AWAY", log: "address in trouble",
		trouble: func(s *alertSite) {
			eventually(s, time.Minute, "the commit is taken", func() error { // by a database that has the time
				if code := s.post(unboundCommit()); code != http.StatusOK {
					return fmt.Errorf("the hub was answered %d", code)
				}
				return nil
			})
			s.until("set aside", is("koji_relay_queue_set_aside", 1))
		},
		end: emptyQueue,
	},
	"KojiRelayDeadLetters": {
		says: "DEAD_LETTERS",
		trouble: func(s *alertSite) {
			s.post(fmt.Appendf(nil, `{"commit": %q, "events": [{"callback": "postPackageListChange",
				"kwargs": {"action": null}}]}`, uuid.NewString()))
			s.until("a dead letter", is("koji_relay_dead_letter_total", 1))
		},
	},
	"KojiRelayExpired": {
		says: "NO_BROKER", log: "messages are lost: older than max_age, and expired = drop",
		trouble: func(s *alertSite) {
			s.ways[0].cut()
			s.ways[1].cut()
			s.until("no broker", is("koji_relay_broker_up", 0))
			s.old(30 * time.Hour)
			s.until("it is given up", is("koji_relay_expired_total", 1))
		},
	},
	"KojiRelayReaderAway": {
		says: "READER_AWAY",
		trouble: func(s *alertSite) {
			s.readers(`INSERT INTO koji_relay.reader VALUES ('new-bus', '*', now() - interval '1 hour')`)
			s.until("it is away", is("koji_relay_outbox_reader_away", 1))
		},
		end: func(s *alertSite) {
			s.readers(`DELETE FROM koji_relay.reader WHERE name = 'new-bus'`)
			s.until("it is forgotten", func(m metrics) bool { return m["koji_relay_outbox_reader_away"] == nil })
		},
	},
	"KojiRelayHistoryGap": {
		trouble: func(s *alertSite) {
			s.sql("BEGIN; LOCK TABLE koji_relay.history_message")
			s.post(largeCommit(100, 100_000)) // 10 MB, where 3 wait and 3 are on their way
			s.until("a gap", func(m metrics) bool { return m.total("koji_relay_history_gap_messages_total") > 0 })
			s.sql("ROLLBACK")
		},
	},
	"KojiRelayCertificateExpires": {
		says:    "CERTIFICATE_EXPIRES",
		trouble: func(s *alertSite) { s.certify(s.clientPath, 7); s.until("its end is near", near(fileExpiry)) },
		end:     func(s *alertSite) { s.certify(s.clientPath, 90); s.until("it is far", far(fileExpiry)) },
	},
	"KojiRelayBrokerCertificateExpires": {
		says:    "CERTIFICATE_EXPIRES",
		trouble: func(s *alertSite) { s.exchange(7); s.until("its end is near", near(brokerExpiry)) },
		end:     func(s *alertSite) { s.exchange(90); s.until("it is far", far(brokerExpiry)) },
	},
	"KojiRelayReloadFailed": {
		says: "RELOAD_FAILED",
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
		says: "DRAIN_PAUSED",
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
	text, err := os.ReadFile("../packaging/prometheus/koji-relay.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules := string(text)
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
			t.Parallel()
			c := alertCases[name]
			s := newAlertSite(t, broker, db, fmt.Sprintf("alert%d", i), c.hours > 0, c.settings)
			seen := []scraped{s.scrape()}
			if c.trouble != nil {
				c.trouble(s)
			}
			seen = append(seen, s.scrape())
			c.compare(t, s)
			if c.end != nil {
				c.end(s)
				s.relay.quiet(t, s.admin, c.says)
			}
			seen = append(seen, s.scrape())
			judge(t, promtool, rules, name, seen, c.hours)
		})
	}
	for name, lead := range map[string]func(*testing.T, *server, *server) []scraped{
		"a full disk": onAFullDisk, "a hot standby": onAStandby,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			judge(t, promtool, rules, "KojiRelayNotReady", lead(t, broker, db), 0)
		})
	}
}

// compare asks the relay in all ways whether it says what the alert says.
func (c *alertCase) compare(t *testing.T, s *alertSite) {
	t.Helper()
	if c.says == "" {
		return
	}
	state := "degraded"
	if c.unready {
		state = "not_ready"
	}
	s.relay.says(t, s.admin, 2*time.Minute, state, c.says)
	if c.log != "" {
		s.relay.await(t, c.log, nil)
	}
}
