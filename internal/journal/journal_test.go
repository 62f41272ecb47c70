package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"koji-relay/config"
)

// sentRecord is what the journal was given.
type sentRecord struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

// journalLogger logs to a journal that keeps its last record.
func journalLogger(level slog.Leveler) (*slog.Logger, *sentRecord) {
	var last sentRecord
	send := func(message string, priority journal.Priority, fields map[string]string) error {
		last = sentRecord{message, priority, maps.Clone(fields)}
		return nil
	}
	return slog.New(newHandler(send, slog.NewJSONHandler(io.Discard, &slog.HandlerOptions{Level: level}))), &last
}

func TestJournalRecordHasMessageAndFields(t *testing.T) {
	t.Parallel()
	created := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	cases := []struct {
		name   string
		log    func(*slog.Logger)
		want   string
		fields map[string]string
	}{
		{"a message's way is found by one field", func(l *slog.Logger) {
			l.Warn("message set aside", "commit", "7f3c", "event", 3, "address", "build.tag", "message_id", "b1-2")
		}, "message set aside commit=7f3c event=3 address=build.tag message_id=b1-2",
			map[string]string{"COMMIT": "7f3c", "EVENT": "3", "ADDRESS": "build.tag", "RELAY_MESSAGE_ID": "b1-2"}},
		{"text with spaces is quoted in the message only", func(l *slog.Logger) {
			l.Info("broker down", "cause", `dial: "no route"`)
		}, `broker down cause="dial: \"no route\""`, map[string]string{"CAUSE": `dial: "no route"`}},
		{"a value of several lines stays one line of the message", func(l *slog.Logger) {
			l.Error("reload refused", "error", errors.New("first\nsecond"))
		}, `reload refused error="first\nsecond"`, map[string]string{"ERROR": "first\nsecond"}},
		{"empty values are seen", func(l *slog.Logger) { l.Info("x", "changed", "") }, `x changed=""`,
			map[string]string{"CHANGED": ""}},
		{"With and groups", func(l *slog.Logger) {
			l.With("broker", "b:5672").WithGroup("tls").With("name", "n").Info("x", slog.Group("peer", "port", 1), "a",
				true)
		}, "x broker=b:5672 tls.name=n tls.peer.port=1 tls.a=true",
			map[string]string{"BROKER": "b:5672", "TLS_NAME": "n", "TLS_PEER_PORT": "1", "TLS_A": "true"}},
		{"a group without a name is inline", func(l *slog.Logger) {
			l.WithGroup("").Info("x", slog.Group("", "a", 1), slog.Attr{})
		}, "x a=1", map[string]string{"A": "1"}},
		{"times and durations", func(l *slog.Logger) {
			l.Info("x", "created", created, "took", 1500*time.Millisecond)
		},
			"x created=2024-02-29T12:00:00Z took=1.5s",
			map[string]string{"CREATED": "2024-02-29T12:00:00Z", "TOOK": "1.5s"}},
		{"the journal's own names are left to it", func(l *slog.Logger) {
			l.Info("x", "priority", 1, "unit", "u", "_pid", 2, "syslog_identifier", "other", "9lives", 9, "__", 1)
		}, "x priority=1 unit=u _pid=2 syslog_identifier=other 9lives=9 __=1", map[string]string{
			"RELAY_PRIORITY": "1", "RELAY_UNIT": "u", "PID": "2", "RELAY_SYSLOG_IDENTIFIER": "other",
			"RELAY_9LIVES": "9"}},
		{"values that mask themselves stay masked", func(l *slog.Logger) {
			l.Info("x", "database", config.ConnString("host=db password=k0ji-secret"))
		}, `x database="host=db password=***"`, map[string]string{"DATABASE": "host=db password=***"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			log, last := journalLogger(slog.LevelInfo)
			c.log(log)
			want := maps.Clone(c.fields)
			want["SYSLOG_IDENTIFIER"] = "koji-relay"
			if last.message != c.want {
				t.Errorf("MESSAGE is %q, want %q", last.message, c.want)
			}
			if !maps.Equal(last.fields, want) {
				t.Errorf("fields are %q, want %q", last.fields, want)
			}
		})
	}
}

func TestJournalPriorityFollowsTheLevel(t *testing.T) {
	t.Parallel()
	level := new(slog.LevelVar)
	log, last := journalLogger(level)
	log.Debug("below the level")
	if last.message != "" {
		t.Errorf("logged %q, which is below the level", last.message)
	}
	level.Set(slog.LevelDebug)
	for l, want := range map[slog.Level]journal.Priority{
		slog.LevelDebug: journal.PriDebug, slog.LevelInfo: journal.PriInfo,
		slog.LevelWarn: journal.PriWarning, slog.LevelError: journal.PriErr, slog.LevelError + 4: journal.PriErr,
	} {
		log.Log(t.Context(), l, "x")
		if last.priority != want {
			t.Errorf("%v has priority %d, want %d", l, last.priority, want)
		}
	}
}

func TestRecordThatTheJournalRefusesIsWrittenAsJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	refuse := func(string, journal.Priority, map[string]string) error { return errors.New("no such socket") }
	log := slog.New(newHandler(refuse, slog.NewJSONHandler(&out, nil)))
	log.With("broker", "b:5672").WithGroup("g").Warn("broker down", "cause", "refused")
	var record struct {
		Level, Msg, Broker string
		G                  struct{ Cause string }
	}
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	if record.Level != "WARN" || record.Msg != "broker down" || record.Broker != "b:5672" ||
		record.G.Cause != "refused" {
		t.Errorf("wrote %s", out.String())
	}
}

func TestJournalFieldNamesAreBounded(t *testing.T) {
	t.Parallel()
	if name := fieldName(strings.Repeat("é_a", 60)); len(name) != 64 {
		t.Errorf("%q has %d characters; the journal takes 64", name, len(name))
	}
}
